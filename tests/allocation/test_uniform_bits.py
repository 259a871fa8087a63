"""Uniform policies: the same bits wherever the table offers them."""

import numpy as np
import pytest
from cost_problems import keeps, policies, problems, tables
from hypothesis import given, settings

from haq.allocation.budgets import Budget, most_bits, uniform_policy, uniform_within
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, tabulate
from haq.allocation.policy import Bits
from haq.network.layers import Layer

LAYERS = [Layer(name, "conv", 1, 1, weights=w) for name, w in (("a", 80), ("b", 10), ("c", 10))]


def table(**ranges):
    return tabulate(LAYERS, permitted(LAYERS, None, **ranges))


def within(limit, **ranges):
    policy = uniform_within(table(**ranges), [Budget("avg_weight_bits", limit)])
    return None if policy is None else " ".join(map(str, policy.values()))


@pytest.mark.parametrize(
    "limit, ranges, expected",
    [
        (8, {}, "w8a8 w8a8 w8a8"),
        (4, {}, "w4a4 w4a4 w4a4"),
        (3.999, {}, "w3a3 w3a3 w3a3"),
        (1.999, {}, None),
        (3.5, {"act_bits": 8}, "w3a8 w3a8 w3a8"),
        (4.4, {"act_bits": 4, "pins": {"b": 8}}, "w4a4 w8a8 w4a4"),  # .9 * 4 + .1 * 8 is 4.4
        (4.39, {"act_bits": 4, "pins": {"b": 8}}, "w3a4 w8a8 w3a4"),
        (8, {"weight_bits": (3, 5)}, "w5a8 w5a8 w5a8"),
        (2.9, {"weight_bits": (3, 5)}, None),
    ],
)
def test_the_best_uniform_bits_within_a_budget_by_hand(limit, ranges, expected):
    assert within(limit, **ranges) == expected


def test_where_a_width_is_not_offered_the_most_bits_below_it_are_taken():
    choices = {"a": (Bits(2, 8), Bits(4, 4), Bits(4, 8), Bits(32, 32))}
    rows = {"size": {"a": np.ones(4)}}
    offered = CostTable((Layer("a", "conv", 1, 1),), choices, rows, {"size": "bytes"})
    bits = [uniform_policy(offered, width)["a"] for width in range(2, 9)]
    # Activations first: 4 bits are the fewest, 8 are offered from 8 on; float is not uniform bits.
    assert bits == [Bits(4, 4)] * 6 + [Bits(4, 8)]


def test_the_most_bits_are_those_that_all_readers_of_a_tensor_can_have():
    dense, depthwise = (
        tuple(Bits(w, a) for w in range(2, 9) for a in range(2, 9) if w + a <= most)
        for most in (15, 16)
    )
    layers = Layer("dense", "conv", 4, 4, reads="x"), Layer("deep", "depthwise", 4, 4, reads="x")
    choices = {"dense": dense, "deep": depthwise}  # as ONNX Runtime's kernels are exact
    assert dense[-1].act != depthwise[-1].act
    assert most_bits(tabulate(layers, choices)) == {"dense": Bits(7, 8), "deep": Bits(8, 8)}


def test_the_most_bits_are_float_where_a_layer_may_stay_so():
    choices = {"a": (Bits(4, 4), Bits(8, 8), Bits(32, 32))}
    assert most_bits(tabulate([Layer("a", "conv", 1, 1)], choices)) == {"a": Bits(32, 32)}


def test_the_best_is_the_widest_that_fits_also_where_fewer_bits_cost_more():
    (name,) = choices = {"a": (Bits(2, 2), Bits(4, 4), Bits(8, 8))}
    rows = {"latency": {"a": np.array([9.0, 5.0, 7.0])}}
    measured = CostTable((Layer(name, "conv", 1, 1),), choices, rows, {"latency": "us"})
    for limit, expected in [(9, 8), (7, 8), (6.9, 4), (4.9, None)]:
        policy = uniform_within(measured, [Budget("latency", limit)])
        assert (policy and policy["a"].weight) == expected


@settings(max_examples=100, deadline=None)
@given(tables())
def test_a_uniform_policy_is_a_policy_of_the_table(some):
    assert all(uniform_policy(some, width) in policies(some) for width in range(2, 9))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_best_uniform_bits_keep_every_budget(problem):
    some, budgets = problem
    policy = uniform_within(some, budgets)
    fitting = [w for w in range(2, 9) if keeps(some, uniform_policy(some, w), budgets)]
    assert policy == (uniform_policy(some, max(fitting)) if fitting else None)
