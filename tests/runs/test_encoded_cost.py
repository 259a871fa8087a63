"""Costs that depend on weights: planned on the float network, and of the codes handed over."""

import numpy as np
import pytest
import torch
from hw_targets import needs_vela
from torch import nn

import haq
from haq.cli.terminal.run import encoded_sentence
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.network.graph import trace
from haq.runs.encoded_cost import clipped_by, encodes, on_weights, rows_of

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
