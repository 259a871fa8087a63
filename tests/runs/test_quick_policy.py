"""A policy in seconds keeps its budgets, changes nothing, and refuses what a search refuses."""

import copy

import pytest
import torch

import haq
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.errors import HaqError
from haq.models import build
from haq.network.graph import trace


@pytest.mark.parametrize("budget", ["avg_weight_bits=4", "bops=30%w8a8"])
def test_the_budget_is_kept_and_filled(budget):
    torch.manual_seed(0)
    model, inputs = build("digits_cnn").eval(), torch.randn(32, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    policy = haq.quick_policy(model, inputs, budget)
    layers = trace(model, inputs[:1]).layers
    table = tabulate(layers, permitted(layers, None))
    quantity, _, limit = budget.partition("=")
    if quantity == "avg_weight_bits":
        assert 3.5 < total(table, policy, quantity) <= float(limit)
        assert {bits.act for bits in policy.values()} == {8}
    else:
        eight = total(table, {layer.name: Bits(8, 8) for layer in layers}, quantity)
        assert 0.2 * eight < total(table, policy, quantity) <= 0.3 * eight
        assert len({bits.act for bits in policy.values()}) > 1
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
    assert policy == haq.quick_policy(model, inputs, budget)


def test_an_impossible_budget_and_inputs_that_are_no_numbers_are_refused():
    model, inputs = build("digits_mlp"), torch.randn(8, 1, 8, 8)
    with pytest.raises(HaqError, match="no policy fits"):
        haq.quick_policy(model, inputs, "avg_weight_bits=1.5")
    inputs[3] = torch.nan
    with pytest.raises(HaqError, match="input 3 of data= holds NaN"):
        haq.quick_policy(model, inputs)
