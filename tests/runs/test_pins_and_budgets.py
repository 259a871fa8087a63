"""Budgets that pins make impossible: the pins are named, and no others."""

import pytest
from torch import nn

from haq.errors import BudgetError
from haq.runs.job import parse_job
from haq.runs.plan import plan


def refused(**fields) -> str:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(BudgetError) as error:
        plan(parse_job(agent="uniform", **fields), model, {"shape": (6,)})
    return str(error.value)


def test_the_default_pins_are_named_where_they_are_the_reason():
    sentence = refused(budgets=("avg_weight_bits=3",))
    assert "no policy fits avg_weight_bits <= 3 bits: the cheapest one needs 8" in sentence
    assert "pinned unless asked otherwise: 0=w8a8, 2=w8a8" in sentence
    assert "--pin none" in sentence


def test_a_pin_of_the_user_is_named_where_it_is_the_reason():
    assert "(pinned: 0=w8a8)" in refused(budgets=("avg_weight_bits=3",), pins={"0": 8})


def test_pins_are_not_named_where_no_policy_fits_without_them_either():
    assert "pin" not in refused(budgets=("avg_weight_bits=1",))


def test_without_pins_the_same_budget_is_kept():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    job = parse_job(agent="uniform", budgets=("avg_weight_bits=3",), pins={})
    assert plan(job, model, {"shape": (6,)}).budgets[0].limit == 3
