"""What every search is compared with: uniform bits, evaluated as its own policy."""

import math

import numpy as np
import pytest
import torch

from haq import search
from haq.allocation.budgets import Budget, uniform_references
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits
from haq.errors import BudgetError
from haq.network.layers import Layer
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.training.paired import Paired, drop_interval

SMALL = {"model": "digits_mlp", "float_epochs": 1, "val_images": 60, "train_images": 64,
         "final_epochs": 0, "threads": 1, "rounding_steps": 0, "episodes": 1}  # fmt: skip

NAMES = "ab"


def table():
    """Return a table of two layers whose sizes are their bits."""
    layers = tuple(Layer(name, "conv", 1, 1, weights=1) for name in NAMES)
    choices = {name: tuple(Bits(w, 8) for w in range(2, 9)) for name in NAMES}
    rows = {name: np.arange(2.0, 9.0) for name in NAMES}
    return CostTable(layers, choices, {"size": rows}, {"size": "bytes"})


def widths(policy):
    return [policy[name].weight for name in NAMES]


@pytest.mark.parametrize(
    "limit, expected",
    [
        (16, [[8, 8]]),  # the most bits there are: nothing above to lower
        (7, [[3, 3], [4, 3]]),  # the next more, its last layer lowered
        (6, [[3, 3]]),  # lowered, it is the same policy again
        (4, [[2, 2]]),
    ],
)
def test_the_references_by_hand(limit, expected):
    assert [widths(p) for p in uniform_references(table(), [Budget("size", limit)])] == expected


def test_without_a_policy_that_keeps_the_budget_there_is_none():
    with pytest.raises(BudgetError):
        uniform_references(table(), [Budget("size", 3.0)])


@pytest.mark.parametrize("agent", ["random", "ilp", "uniform"])
def test_every_agent_is_compared(tmp_path, agent):
    summary = run(parse_job(**SMALL, agent=agent, budgets=["avg_weight_bits=5"]), tmp_path)
    row = summary["uniform_reference"]
    assert row["cost"]["avg_weight_bits"] <= 5
    assert row["images"] >= 60 and row["interval"][0] <= row["own"] - row["uniform"]
    assert 0 <= row["uniform"] <= 1


def test_an_interval_turns_with_its_pairs():
    low, high = drop_interval(Paired(200, 0.9, 12, 5))
    turned = drop_interval(Paired(200, 0.865, 5, 12))
    assert turned == (pytest.approx(-high), pytest.approx(-low))
    assert low < 0.035 < high


def test_equal_answers_leave_the_chance_of_what_was_not_seen():
    """Hand-worked: nothing lost of 100 bounds the drop by z**2 / (n + z**2), z = 1.96."""
    low, high = drop_interval(Paired(100, 1.0, 0, 0))
    assert high == pytest.approx(3.8415 / 103.8415, rel=1e-3) and low == -high


def test_uniform_bits_that_give_no_number_are_no_reference(tmp_path):
    """A perplexity may overflow, and JSON has no word for that."""
    called = []

    def evaluate(network):
        called.append(network)
        # The float network, the episode and what came of it.
        return 1.0 if len(called) <= 3 else math.inf

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    result = search(model, torch.randn(64, 4), evaluate=evaluate, agent="random", episodes=1,
                    weight_bits=(2, 8), pins={}, budgets=["avg_weight_bits=5"], rounding_steps=0,
                    out=tmp_path / "run")  # fmt: skip
    assert len(called) > 3 and result.summary["uniform_reference"] is None
