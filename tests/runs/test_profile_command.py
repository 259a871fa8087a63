"""haq profile: from a network to a file that a search can use."""

import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_parts import measured_profile
from onnx import TensorProto
from torch import nn

from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import reference, tabulate, total
from haq.allocation.policy import Bits, check_policy
from haq.cli.main import main
from haq.errors import HaqError, ModelError, TargetError
from haq.formats.onnx.runtime import exact_kernels
from haq.hw_profiles import load
from haq.hw_profiles.measure.onnx_runtime import Setup, machine, session
from haq.hw_profiles.measured import CLIPPED, FLOATS, INTEGERS, STANDARD, kernel
from haq.network.graph import trace
from haq.network.layers import Layer
from haq.runs.candidates import cpu_of, measure_candidates, setup_of
from haq.runs.profiling import networks as profiled_networks
from haq.runs.profiling.policies import mixed
from haq.runs.profiling.profile import describe, run_profile
from haq.runs.profiling.subject import Subject, lowering, placeholder_clips, subject


@cache
def network():
    return subject("digits_cnn")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Return the profile of digits_cnn, its file and the progress that was told."""
    out = tmp_path_factory.mktemp("profiles") / "mine.json"
    told = []
    profile = run_profile(network(), out, Setup(), rounds=4, on_progress=told.append)
    return profile, out, told


def uniform(bits):
    return {layer.name: bits for layer in network().graph.layers}


def test_a_search_can_count_with_a_profile(profiled):
    profile, out, _ = profiled
    target, layers = load(str(out)), network().graph.layers
    choices = permitted(layers, target)
    assert choices["conv1"] == (*(Bits(w, 8) for w in range(2, 8)), FLOATS)
    assert len(choices["linear"]) == 49
    table = tabulate(layers, choices, target)
    assert [(edge.producer, edge.consumer) for edge in table.edges] == [
        ("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "conv4"), ("conv4", "linear"),
    ]  # fmt: skip
    floats = profile.model.networks["fp32"].value
    assert parse_budget("latency=70%fp32", layers, target).limit == pytest.approx(0.7 * floats)
    assert parse_budget("latency=1ms", layers, target).limit == pytest.approx(1000)


@pytest.mark.parametrize("what, bits", [("fp32", FLOATS), ("w7a8", STANDARD)])
def test_networks_of_one_precision_are_predicted_as_they_were_measured(profiled, what, bits):
    profile, out, _ = profiled
    measured = profile.model.networks[what].value
    assert reference(network().graph.layers, load(str(out)), "latency", bits) == pytest.approx(
        measured, rel=1e-6
    )


def test_fewer_bits_than_eight_gain_no_latency(profiled):
    _, out, _ = profiled
    target, layers = load(str(out)), network().graph.layers
    table = tabulate(layers, permitted(layers, target), target)
    seven = total(table, uniform(STANDARD), "latency")
    assert total(table, uniform(Bits(2, 8)), "latency") == seven
    clipped = uniform(Bits(8, 4)) | {"conv1": STANDARD}
    assert total(table, clipped, "latency") >= seven


def test_a_profile_says_how_it_came_about_and_how_good_it_is(profiled):
    profile, _, _ = profiled
    assert profile.runtime.version == onnxruntime.__version__
    assert profile.runtime.options["disabled_optimizers"] == "WeightBiasQuantization"
    assert profile.runtime.options["threads"] == 1
    assert (profile.model.fitted_on, profile.model.validation.policies) == (48, 48)
    assert profile.quantities["latency"].error == profile.model.validation.worst_error
    text = describe(profile)
    assert "48 mixed policies that the fit had not seen: mean error " in text
    assert "fp32 " in text and "w7a8 " in text


def test_progress_is_told(profiled):
    _, _, told = profiled
    stages = {where.stage: (where.done, where.total) for where in told}
    assert stages == {"build": (51, 51), "measure": (6, 6), "layers": (3, 3)}


def test_candidates_are_measured_beside_the_references(profiled):
    profile, out, _ = profiled
    target, layers = load(str(out)), network().graph.layers
    table = tabulate(layers, permitted(layers, target), target)
    mixed_one = uniform(FLOATS) | {"conv3": Bits(3, 4), "conv4": Bits(5, 8)}
    rows = measure_candidates(
        lowering(network()), [mixed_one, uniform(Bits(4, 8))], table, profile, rounds=3
    )
    assert [row.policy for row in rows] == [mixed_one, uniform(Bits(4, 8))]
    for row in rows:
        assert row.predicted == total(table, row.policy, "latency")
        assert 0 < row.low <= row.us <= row.high
        assert row.samples == 3
    assert setup_of(profile) == Setup()


# --- networks ----------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """Its last layer is a convolution: what that gives is not rounded."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = nn.functional.relu(self.first(x))
        x = nn.functional.relu(self.second(x))
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


def subject_of(model):
    sample = torch.zeros(1, 3, 8, 8)
    graph = trace(model, sample)
    return Subject("mine", graph, placeholder_clips(graph), sample)


def test_a_convolution_at_the_end_has_bits_like_any_other(tmp_path):
    asked = subject_of(Convolutional())
    out = tmp_path / "mine.json"
    run_profile(asked, out, Setup(), rounds=2)
    choices = permitted(asked.graph.layers, load(str(out)))
    assert (len(choices["first"]), len(choices["second"])) == (7, 49)
    assert len(choices["head"]) == 49


def test_large_networks_are_measured_group_by_group(monkeypatch, tmp_path):
    eight = 8 * 4 * 33_000  # three references and five others
    monkeypatch.setattr(profiled_networks, "MEMORY_BYTES", eight)
    monkeypatch.setattr(profiled_networks, "MIXED", 8)
    told = []
    profile = run_profile(network(), tmp_path / "x.json", Setup(), 2, on_progress=told.append)
    assert {where.note for where in told if where.stage == "measure"} == {
        "group 1 of 2", "group 2 of 2"
    }  # fmt: skip
    assert (profile.model.fitted_on, profile.model.validation.policies) == (8, 8)


def test_a_network_of_one_layer_leaves_nothing_to_mix(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    with pytest.raises(HaqError, match="model mine leaves nothing to mix: a profile needs two lay"):
        run_profile(subject_of(model), tmp_path / "mine.json", Setup(), rounds=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [FLOATS, INTEGERS])
def test_a_maximum_is_taken_of_floats_and_of_integers(bits):
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    asked = subject_of(nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 4)))
    model = lowering(asked)({layer.name: bits for layer in asked.graph.layers})
    assert session(model, Setup()).get_outputs()[0].name == "logits"


def test_models_without_a_size_need_one():
    with pytest.raises(HaqError, match="give --size, the height and width of its images"):
        subject("torch.nn:Identity")


def test_weights_must_fit(tmp_path):
    with pytest.raises(ModelError):
        subject("digits_cnn", weights=tmp_path / "none.safetensors")


def weight_types(cpu):
    file = onnx.load_from_string(lowering(network(), cpu)(uniform(Bits(8, 8))))
    types = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    return [types[f"{layer.name}.weight_codes"] for layer in network().graph.layers]


def test_files_for_vnni_keep_8_bit_weights_int8():
    unsigned, signed = TensorProto.UINT8, TensorProto.INT8
    assert network().graph.layers[2].kind == "depthwise"
    assert weight_types("any") == [unsigned, unsigned, signed, unsigned, unsigned]
    assert weight_types("vnni") == [signed] * 5


def test_a_profile_says_which_cpus_its_files_are_for(profiled):
    profile, _, _ = profiled
    assert cpu_of(profile) == "any"
    assert cpu_of(measured_profile(runs_on="vnni")) == "vnni"
    assert cpu_of(measured_profile()) == "any"


# --- policies to measure -----------------------------------------------------------------------


@st.composite
def networks(draw):
    """Return layers, some of which share a tensor, and the names of those that can be quantized."""
    count = draw(st.integers(1, 9))
    reads = [draw(st.integers(max(0, place - 1), place)) for place in range(count)]
    layers = tuple(
        Layer(f"l{i}", "conv", 1, 1, reads=f"l{reads[i]}", reads_input=not i) for i in range(count)
    )
    unable = draw(st.sets(st.sampled_from([layer.reads for layer in layers]), max_size=2))
    return layers, {layer.name for layer in layers if layer.reads not in unable}


@settings(max_examples=40)
@given(networks(), st.integers(0, 9))
def test_mixed_policies_are_possible_different_and_mixed(drawn, seed):
    layers, able = drawn
    policies = mixed(layers, able, 12, seed)
    kernels = [tuple(kernel(bits) for bits in policy.values()) for policy in policies]
    assert len(set(kernels)) == len(kernels) <= 12
    for policy in policies:
        check_policy(policy, layers)
        assert all(bits == FLOATS or sum(bits) <= 15 for bits in policy.values())
        assert FLOATS in policy.values() and len(set(policy.values())) > 1
        assert all(policy[name] == FLOATS for name in policy.keys() - able)
        assert policy["l0"].act in (8, 32)
    assert mixed(layers, able, 12, seed) == policies


def test_there_are_as_many_as_asked_for_where_there_are_enough():
    layers = network().graph.layers
    policies = mixed(layers, {layer.name for layer in layers}, 48, seed=3)
    assert len(policies) == 48
    kernels = {kernel(bits) for policy in policies for bits in policy.values()}
    assert kernels == {FLOATS, INTEGERS, CLIPPED}
    blocks = [np.diff([bits == FLOATS for bits in policy.values()]) for policy in policies]
    assert any(np.abs(block).sum() == 1 for block in blocks)


# --- the command -------------------------------------------------------------------------------


def haq(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["haq", "profile", "--model", "digits_cnn", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_the_command_writes_a_profile_and_says_what_it_found(monkeypatch, capsys, tmp_path):
    out = tmp_path / "my-machine.json"
    given = ["--rounds", "2", "--batch", "2", *(["--cpu", "vnni"] if exact_kernels() else [])]
    assert haq(monkeypatch, "--out", str(out), *given) == 0
    printed = capsys.readouterr().out
    for word in ("digits_cnn in ONNX Runtime", "fp32", "w7a8", "mean error", "--target"):
        assert word in printed
    assert load(str(out)).batch == 2
    assert (Bits(8, 8) in load(str(out)).pairs) == (exact_kernels())


@pytest.mark.parametrize("cores", ["avx2", "avx512f"])
def test_this_cpu_saturates_if_it_is_an_x86_one_without_vnni(cores):
    instructions = str(machine()["instructions"]).split()
    if cores not in instructions:
        pytest.skip(f"this CPU has no {cores}, or does not say so")
    exact = {"avx_vnni", "avx512_vnni", "amx_int8"}.intersection(instructions)
    assert exact_kernels() == bool(exact)


@pytest.mark.skipif(exact_kernels(), reason="this CPU adds in 32 bits")
def test_a_profile_of_pairs_that_saturate_here_is_refused(tmp_path):
    with pytest.raises(HaqError, match="cpu vnni: this CPU adds products of 8 bits in 16 bits"):
        run_profile(network(), tmp_path / "mine.json", Setup(), cpu="vnni")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--provider", "cpus"], "unknown provider 'cpus'; did you mean 'cpu'?"),
        (["--cpu", "vnny"], "unknown cpu 'vnny'; did you mean 'vnni'?"),
        (["--out", "nowhere/mine.json"], "cannot write nowhere/mine.json: there is no folder"),
        (["--out", "mine.txt"], "a profile's name ends in .json"),
    ],
)
def test_what_cannot_be_profiled_says_why(monkeypatch, capsys, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    given = options if "--out" in options else [*options, "--out", "mine.json"]
    assert haq(monkeypatch, *given) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="ONNX Runtime has CUDAExecutionProvider here",
)
def test_a_provider_that_is_not_there_is_said_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert haq(monkeypatch, "--provider", "cuda", "--out", "mine.json") == 2
    assert "finds only" in capsys.readouterr().err
    with pytest.raises(TargetError, match="CUDAExecutionProvider"):
        run_profile(network(), tmp_path / "mine.json", Setup("cuda"))
