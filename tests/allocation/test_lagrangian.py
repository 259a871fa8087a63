"""Policies that are nearly the best: never over a budget, and how far from the best."""

import numpy as np
import pytest
from cost_problems import array, keeps, policies, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.allocation.budgets import Budget, solve, solve_nearly
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.network.layers import Layer


def value(objective, table, policy):
    return sum(objective[n][table.positions[n][bits]] for n, bits in policy.items())


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_no_policy_is_over_a_budget_and_none_is_missed(problem, data):
    table, budgets = problem
    objective = {name: array(data.draw, len(some)) for name, some in table.choices.items()}
    able = [policy for policy in policies(table) if keeps(table, policy, budgets)]
    policy = solve_nearly(objective, table, budgets)
    if not able:
        assert policy is None
        return
    assert policy in able
    best = min(value(objective, table, one) for one in able)
    widest = max(float(np.ptp(objective[name])) for name in table.choices)
    assert best - 1e-6 <= value(objective, table, policy) <= best + widest + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_of_twenty_layers_it_is_within_a_twentieth_of_the_best(seed):
    generator = np.random.default_rng(seed)
    layers = [
        Layer(f"l{i}", "conv", 8, 8, weights=int(w))
        for i, w in enumerate(generator.integers(1e3, 4e4, 20))
    ]
    table = tabulate(layers, permitted(layers, None, act_bits=8))
    objective = {
        name: generator.lognormal() * np.array([4.0**-bits.weight for bits in choices])
        for name, choices in table.choices.items()
    }
    budgets = [Budget("avg_weight_bits", 3.3)]
    policy, best = (f(objective, table, budgets) for f in (solve_nearly, solve))
    assert total(table, policy, "avg_weight_bits") <= 3.3
    assert value(objective, table, policy) <= 1.05 * value(objective, table, best)
