"""haq profile with number formats: kernels of weights in groups and of dynamic activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import haq
from haq.allocation.choices import permitted
from haq.allocation.costs import reference, tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.schemes import Formats
from haq.hw_profiles import load
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measured import FLOATS, kernel
from haq.network.graph import trace
from haq.runs.profiling.policies import mixed, references, special_kernels
from haq.runs.profiling.profile import run_profile
from haq.runs.profiling.subject import Subject, placeholder_clips

FORMATS = Formats(("weight-only", "dynamic", "dynamic-tensor"), (32, 0))
KERNELS = ["w2g32", "w2g32t8", "w4g32", "w4g32t8", "w8t8", "w8d8", "w8g32", "w8g32t8"]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.wide = nn.Linear(64, 96)
        self.out = nn.Linear(96, 5)

    def forward(self, x):
        return self.out(functional.gelu(self.wide(self.words(x))).mean(1))


@pytest.fixture(scope="module")
def words():
    torch.manual_seed(0)
    model, inputs = Words().eval(), torch.randint(50, (64, 6))
    graph = trace(model, inputs[:2])
    return model, inputs, Subject("words", graph, placeholder_clips(graph), inputs[:1], FORMATS)


@pytest.fixture(scope="module")
def profiled(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("profiles") / "mine.json"
    return run_profile(words[2], out, Setup(), rounds=2), out


def test_every_kernel_of_a_format_is_measured_in_a_network_of_its_own(words, profiled):
    layers = words[2].graph.layers
    assert sorted(map(str, special_kernels(layers, FORMATS))) == sorted(KERNELS)
    names = {"fp32", *(name.replace("w8t8", "w7t8").replace("w8d8", "w7d8") for name in KERNELS)}
    assert profiled[0].model.networks.keys() == names
    policies = references(layers, set(), FORMATS)
    assert policies["w7t8"] == {
        "words": FLOATS, "wide": Bits(7, 32, 0, "token"), "out": Bits(7, 32, 0, "token")
    }  # fmt: skip


def test_a_format_costs_what_its_kernel_does(words, profiled):
    target, [_, wide, _] = load(str(profiled[1])), words[2].graph.layers
    rows = {row.bits: row.cost["latency"].value for row in profiled[0].table.rows
            if row.layer == "wide"}  # fmt: skip
    offered = {*target.choices(wide)}
    assert {FLOATS, Bits(3, 32, 32), Bits(7, 32, 0, "token")} <= offered
    # 8 bits on both sides saturate on some CPUs; weights alone without groups are not measured
    assert not {Bits(8, 32, 0, "token"), Bits(4, 32), Bits(4, 8)} & offered
    for bits in offered:
        assert target.cost(wide, bits)["latency"] == rows[kernel(bits)]
    assert target.how(wide, Bits(3, 32, 32))["latency"].method == "rounded up"
    assert target.how(wide, Bits(4, 32, 32))["latency"].method == "exact"


@pytest.mark.parametrize("bits", [Bits(4, 32, 32), Bits(7, 32, 0, "tensor")])
def test_networks_of_one_format_are_predicted_as_they_were_measured(words, profiled, bits):
    target, layers = load(str(profiled[1])), words[2].graph.layers
    choices = permitted(layers, target, formats=FORMATS)
    table = tabulate(layers, choices, target)
    policy = {"words": Bits(4, 32, 32), "wide": bits, "out": bits}
    measured = profiled[0].model.networks[str(bits)].value
    assert total(table, policy, "latency") == pytest.approx(measured, rel=1e-6)
    floats = profiled[0].model.networks["fp32"].value
    assert reference(layers, target, "latency", FLOATS) == pytest.approx(floats, rel=1e-6)


def test_a_search_on_the_profile_keeps_its_budget_as_measured(words, profiled, tmp_path):
    model, inputs, _ = words
    limit = 10 * profiled[0].model.networks["fp32"].value  # whatever the machine is doing now
    run = haq.search(
        model, inputs, schemes=["weight-only", "dynamic"], groups=[32], agent="ilp", seed=1,
        target=str(profiled[1]), budgets=[f"latency={limit:.0f}us", "avg_weight_bits=4"],
        out=tmp_path / "run", batch=1,
    )  # fmt: skip
    assert run.summary["cost"]["avg_weight_bits"] <= 4
    assert run.summary["measured_latency"]["value"] <= limit
    assert all(bits.act == 32 for bits in run.policy.values())


def test_mixed_policies_mix_formats_and_stay_what_they_were_without(words):
    layers = words[2].graph.layers
    policies = mixed(layers, set(), 48, 0, FORMATS)
    ran = {str(kernel(bits)) for policy in policies for bits in policy.values()}
    assert ran == {"fp32", *KERNELS}
    plain = mixed(layers, {"wide", "out"}, 48, 0)
    assert plain and {bits.is_special for policy in plain for bits in policy.values()} == {False}


def test_a_row_of_a_format_is_apart_from_one_of_the_same_bits(profiled):
    content = profiled[0].model_dump(mode="json")
    rows = [row for row in content["table"]["rows"] if row["layer"] == "wide"]
    assert [row["block"] for row in rows if (row["weight"], row["dynamic"]) == (4, "")] == [32]
    content["table"]["rows"].append(rows[-1])
    with pytest.raises(ValueError, match="is for the same layer, bits and batch"):
        type(profiled[0]).model_validate(content)
