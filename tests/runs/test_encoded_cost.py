"""Costs that depend on weights: planned on the float network, and of the codes handed over."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hw_targets import needs_vela
from torch import nn

import haq
from haq.allocation.budgets import Budget
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.trials import Score, Trial
from haq.cli.terminal.run import encoded_sentence
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.network.graph import trace
from haq.quantization.fake_quant import quantize
from haq.runs.coded_size import kept, replanned
from haq.runs.encoded_cost import clipped_by, costs_of, encodes, on_weights, rows_of
from haq.runs.job import parse_job
from haq.runs.plan import Plan
from haq.runs.profiling.subject import placeholder_clips

pytestmark = needs_vela


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 16, 3)
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.two = nn.Conv2d(12, 24, 3)
        self.last = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.up(torch.relu(self.one(x))))))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


def _search(model, out, **more):
    inputs = torch.randn(48, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    asked = {
        "evaluate": lambda network: -float((network(inputs) - model(inputs)).norm()),
        "target": "ethos-u55-128", "budgets": ["flash=60%w8a8"], "agent": "ilp",
        "rounding_steps": 0, "out": out,
    }  # fmt: skip
    return haq.search(model, inputs, **(asked | more))


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return _search(model, tmp_path_factory.mktemp("runs") / "run")


def test_what_was_planned_is_what_is_encoded(run):
    flash = run.summary["encoded"]["flash"]
    assert flash["encoded"] == flash["predicted"] <= flash["budget"]
    assert run.summary["budgets"][0]["achieved"] == flash["encoded"]
    layers = sum(layer["cost"]["flash"] for layer in run.summary["layers"])
    assert layers == flash["encoded"] and flash["unit"] == "bytes"


def test_a_layer_costs_what_its_own_codes_cost(model):
    graph = trace(model, torch.zeros(1, 1, 10, 10))
    target = on_weights(load("ethos-u55-128"), model, clipped_by(model, "max", True))
    for layer in graph.layers:
        rows = rows_of(model, layer.name).numpy()
        most = np.abs(rows).reshape(len(rows), -1).max(1).reshape(-1, *(1,) * (rows.ndim - 1))
        by_hand = np.rint(rows / (most / np.float32(7))).astype(np.int8)
        own = load("ethos-u55-128").of_network(lambda _layer, _bits, it=by_hand: it)
        bits = next(bits for bits in target.choices(layer) if bits.weight == 4)
        assert target.cost(layer, bits) == own.cost(layer, bits)


def sparse(model):
    """The network with zeros in half of a layer, which take next to nothing."""
    pruned = deepcopy(model)
    pruned.two.weight.data[:12] = 0
    return pruned


def planned_on(model):
    sample = torch.zeros(1, 1, 10, 10)
    graph = trace(model, sample)
    target = on_weights(load("ethos-u55-128"), model, clipped_by(model, "max", True))
    table = tabulate(graph.layers, permitted(graph.layers, target), target)
    return Plan(model, sample, graph, target, table, (), (), None, ())


def test_weights_that_were_trained_since_the_plan_are_encoded_anew(model):
    before, trained = planned_on(model), planned_on(sparse(model))
    planned = replace(before, graph=trained.graph)
    job = parse_job(budgets=("flash=80%w8a8",))
    after = replanned(job, planned, placeholder_clips(trained.graph))
    flat = {layer.name: Bits(8, 8) for layer in trained.graph.layers}
    flash = total(after.table, flat, "flash")
    assert flash == total(trained.table, flat, "flash") < total(before.table, flat, "flash")
    assert after.budgets[0].limit == pytest.approx(0.8 * flash)


def test_codes_over_the_budget_lower_the_policy(model):
    planned = planned_on(sparse(model))
    graph = trace(model, planned.sample)  # what training made of it has no zeros

    def network(policy):
        return quantize(graph, policy, placeholder_clips(graph))

    def own(policy):
        return costs_of(planned.target, graph.layers, policy, network(policy))["flash"]

    flat = {layer.name: Bits(8, 8) for layer in graph.layers}
    limit = total(planned.table, flat, "flash")
    assert own(flat) > limit
    planned = replace(planned, budgets=(Budget("flash", limit),))
    scores = SimpleNamespace(score=lambda _: Score(0.5, 1.0))
    search = SimpleNamespace(planned=planned, evaluation=scores)
    top = Trial(0, flat, {"flash": limit}, 0.9, 0.9, 0.1, 1.0, False)
    lowered, _ = kept(search, top, network(flat), network)
    assert own(lowered.policy) <= limit and lowered.policy != flat and lowered.accuracy == 0.5


def test_coded_bytes_of_a_transposed_layer_are_those_of_its_channels(model, tmp_path):
    run = _search(model, tmp_path / "run", target=None, budgets=["coded_size=60%w8a8"])
    assert run.summary["coded_size"]["packet"] <= run.summary["coded_size"]["budget"]


def test_other_targets_do_not_ask_for_weights(model):
    target = load("mpic")
    assert on_weights(target, model, lambda name: {}) is target and not encodes(target)
    assert on_weights(None, model, lambda name: {}) is None


def test_channels_are_not_chosen_on_such_a_target(model, tmp_path):
    with pytest.raises(HaqError, match="channels cannot be chosen on ethos-u55-128"):
        _search(model, tmp_path / "run", widths=[1.0, 0.5])
    assert not (tmp_path / "run").exists()


def test_a_packet_that_is_over_the_budget_is_said():
    encoded = {"predicted": 4064.0, "encoded": 4112, "unit": "bytes", "budget": 4096.0}
    assert encoded_sentence("flash", encoded) == (
        "flash with the codes that are handed over: 4,112 bytes, planned 4,064, and over the "
        "budget: give one that is lower by as much"
    )
    assert encoded_sentence("flash", encoded | {"budget": None}).endswith("planned 4,064")
