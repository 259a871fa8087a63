"""Profiles of networks in TensorRT, on stand-ins for its package and for a GPU."""

import pytest
import torch
from nvidia_stand_in import PRICE, install
from torch import nn

from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.errors import HaqError, TargetError
from haq.hw_profiles import load
from haq.hw_profiles.measure.onnx_runtime import Setup, check_floats, check_provider
from haq.network.graph import trace
from haq.runs.candidates import measure_candidates, setup_of
from haq.runs.profiling.profile import describe, run_profile
from haq.runs.profiling.subject import Subject, lowering, placeholder_clips


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x).relu()
        x = (x + self.b(x)).relu()
        return self.fc(self.d(self.c(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def asked():
    torch.manual_seed(0)
    sample = torch.zeros(1, 3, 8, 8)
    graph = trace(Net().eval(), sample)
    return Subject("net", graph, placeholder_clips(graph), sample)


@pytest.mark.parametrize("version, floats", [(10, "float16"), (11, "float32")])
def test_a_network_is_profiled_and_its_mixtures_are_predicted(
    asked, tmp_path, monkeypatch, version, floats
):
    install(monkeypatch, version=version)
    setup, out = Setup("tensorrt", batch=2, floats=floats), tmp_path / "gpu.json"
    profile = run_profile(asked, out, setup, rounds=3)
    assert profile.runtime.name == "TensorRT" and profile.runtime.version == f"{version}.0.0"
    options = profile.runtime.options
    assert (options["floats"], options["clock"]) == (floats, "CUDA events")
    assert options["warm_ups"] >= 50 and options["typing"] == "strong"
    model = profile.model
    price = PRICE["Half" if floats == "float16" else "Float"]
    works = 1 + 2 + 3 + 4 + 5
    assert model.networks["fp32"].value == pytest.approx(price * works)
    assert model.networks["w7a8"].value == pytest.approx(PRICE["Int8"] * works)
    assert model.validation.policies >= 6 and model.validation.worst_error < 0.1
    assert model.validation.rank_correlation > 0.95
    target = load(str(out))
    layers = asked.graph.layers
    assert Bits(8, 8) in target.choices(layers[1]) and Bits(3, 4) in target.choices(layers[1])
    costs = [target.cost(layers[1], Bits(width, 8))["latency"] for width in (2, 5, 8)]
    assert costs == pytest.approx([2 * PRICE["Int8"]] * 3, rel=0.1)  # size, not time
    assert "they gain size, not time" in describe(profile)


def test_a_layer_that_the_engine_does_not_run_in_int8_is_offered_in_float_only(
    asked, tmp_path, monkeypatch
):
    install(monkeypatch, stubborn=("c",))
    out = tmp_path / "gpu.json"
    run_profile(asked, out, Setup("tensorrt", floats="float16"), rounds=2)
    target = load(str(out))
    assert [str(bits) for bits in target.choices(asked.graph.layers[2])] == ["fp32"]


def test_a_row_whose_kernel_is_not_the_asked_one_is_refused_with_its_name(asked, monkeypatch):
    """An engine is built anew for every policy, and may decide otherwise each time."""
    from haq.runs.profiling.networks import checked_variant

    install(monkeypatch, stubborn=("b",))
    setup = Setup("tensorrt", floats="float16")
    policy = {name: Bits(7, 8) for name in ("a", "b", "c", "d", "fc")}
    with pytest.raises(TargetError, match="layer 'b' at w7a8 runs in float16 in TensorRT's engine"):
        checked_variant(lowering(asked, setup=setup), policy, setup)


def test_candidates_are_measured_as_their_profile_was(asked, tmp_path, monkeypatch):
    install(monkeypatch)
    out = tmp_path / "gpu.json"
    setup = Setup("tensorrt", batch=2, floats="float16")
    profile = run_profile(asked, out, setup, rounds=3)
    assert setup_of(profile) == setup
    layers, floats = asked.graph.layers, Bits(32, 32)
    policy = {layer.name: floats if layer.name in "cd" else Bits(5, 8) for layer in layers}
    table = tabulate(layers, {name: (bits,) for name, bits in policy.items()}, load(str(out)))
    lowered = lowering(asked, setup=setup)
    (one,) = measure_candidates(lowered, [policy], table, profile, rounds=2)
    assert one.us == pytest.approx(total(table, policy, "latency"), rel=0.1)
    assert one.drift == pytest.approx(1)
    install(monkeypatch, version=11)
    with pytest.raises(TargetError, match=r"was measured with version '10.0.0', here it is '11"):
        setup_of(profile)


def test_a_network_that_tensorrt_does_not_read_is_said(asked, tmp_path, monkeypatch):
    install(monkeypatch, broken=True)
    with pytest.raises(TargetError, match="does not read the network: In node 3: unsupported"):
        run_profile(asked, tmp_path / "gpu.json", Setup("tensorrt"), rounds=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_the_package_or_a_gpu_it_is_refused_at_once(monkeypatch):
    with pytest.raises(TargetError, match="provider 'tensorrt' needs"):
        check_provider("tensorrt")
    install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="needs a GPU, and PyTorch finds none here"):
        check_provider("tensorrt")


def test_types_of_floats_are_those_of_gpus():
    check_floats("float16", "cuda")
    check_floats("float32", "cpu")
    with pytest.raises(HaqError, match="floats float16: ONNX Runtime's CPU kernels"):
        check_floats("float16", "cpu")
    with pytest.raises(HaqError, match="unknown type of floats 'fp16'"):
        check_floats("fp16", "cuda")
