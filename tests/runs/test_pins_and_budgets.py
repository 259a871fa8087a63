"""Budgets that pins make impossible: the pins are named, and no others; large layers have none."""

import itertools

import pytest
from torch import nn

from haq.errors import BudgetError
from haq.runs.job import parse_job
from haq.runs.plan import plan

SMALL_ENDS = (6, 4, 90, 4, 2)
"""Features: of 752 weights the first layer has 24 and the last 8."""

LARGE_HEAD = (6, 4, 4, 100)
"""The last of 440 weights are 400."""


def network(features) -> nn.Module:
    pairs = itertools.pairwise(features)
    return nn.Sequential(*(part for pair in pairs for part in (nn.Linear(*pair), nn.ReLU())))


def planned(features=SMALL_ENDS, **fields):
    return plan(parse_job(agent="uniform", **fields), network(features), {"shape": (6,)})


def refused(**fields) -> str:
    with pytest.raises(BudgetError) as error:
        planned(**fields)
    return str(error.value)


def test_the_default_pins_are_named_where_they_are_the_reason():
    sentence = refused(budgets=("avg_weight_bits=2.1",))  # (32 * 8 + 720 * 2) / 752
    assert "no policy fits avg_weight_bits <= 2.1 bits: the cheapest one needs 2.2553" in sentence
    assert "pinned unless asked otherwise: 0=w8a8, 6=w8a8" in sentence
    assert "--pin none" in sentence


def test_a_pin_of_the_user_is_named_where_it_is_the_reason():
    assert "(pinned: 2=w8a8)" in refused(budgets=("avg_weight_bits=3",), pins={"2": 8})


def test_pins_are_not_named_where_no_policy_fits_without_them_either():
    assert "pin" not in refused(budgets=("avg_weight_bits=1",))


def test_without_pins_the_same_budget_is_kept():
    assert planned(budgets=("avg_weight_bits=2.1",), pins={}).budgets[0].limit == 2.1


def test_a_classifier_of_most_of_the_weights_is_not_pinned_and_that_is_said():
    large = planned(LARGE_HEAD, budgets=("avg_weight_bits=3",))
    widths = {name: {bits.weight for bits in large.table.choices[name]} for name in ("0", "4")}
    assert widths == {"0": {8}, "4": {2, 3, 4, 5, 6, 7, 8}}
    note = "layer '4' holds 91% of the weights, so the search chooses its bits; --pin 4=8 pins it"
    assert note in large.notes


def test_a_pin_of_the_user_holds_however_large_its_layer_is():
    large = planned(LARGE_HEAD, budgets=("avg_weight_bits=8",), pins={"4": 8})
    assert {bits.weight for bits in large.table.choices["4"]} == {8}
    assert not any("holds" in note for note in large.notes)
