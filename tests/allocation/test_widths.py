"""Bits and channels together: costs of narrower networks, and the exact choice among all."""

import itertools

import numpy as np
import pytest

from haq.allocation.budgets import Budget
from haq.allocation.costs import size_bytes, total
from haq.allocation.policy import Bits
from haq.allocation.widths import SHARES, Readers, Width, choose, kept_channels, narrowed, widened
from haq.errors import BudgetError, HaqError
from haq.network.layers import Layer

LAYERS = (
    Layer("a", "pointwise", 3, 8, weights=24, biases=8, macs=24 * 16),
    Layer("d", "depthwise", 8, 8, kernel=(3, 3), groups=8, weights=72, biases=8, macs=72 * 16),
    Layer("b", "pointwise", 8, 4, weights=32, biases=4, macs=32 * 16),
    Layer("c", "linear", 12, 5, weights=60, biases=5, macs=60),
)
CHOICES = dict.fromkeys("adbc", (Bits(2, 8), Bits(4, 8)))
# c reads b's four channels and the eight of something that keeps all of them.
READERS = {"a": Readers({"d": 1.0, "b": 1.0}, frozenset({"d"})), "b": Readers({"c": 4 / 12})}


def by_hand(policy):
    """Return the size of the narrower network, layer after layer."""
    a = kept_channels(policy["a"].keep, 8)
    b = kept_channels(policy["b"].keep, 4)
    layers = [
        (Layer("a", "pointwise", 3, a, weights=3 * a, biases=a), "a"),
        (Layer("d", "depthwise", a, a, groups=a, weights=9 * a, biases=a), "d"),
        (Layer("b", "pointwise", a, b, weights=a * b, biases=b), "b"),
        (Layer("c", "linear", 8 + b, 5, weights=5 * (8 + b), biases=5), "c"),
    ]
    return sum(size_bytes(layer, policy[name].weight) for layer, name in layers)


def every_policy(table):
    names = list(table.choices)
    for choice in itertools.product(*(table.choices[name] for name in names)):
        yield dict(zip(names, choice, strict=True))


def test_every_choice_costs_what_the_narrower_network_does():
    table = widened(LAYERS, CHOICES, READERS)
    assert len(table.choices["a"]) == 8 and len(table.choices["d"]) == 2
    for policy in every_policy(table):
        assert total(table, policy, "size") == by_hand(policy)


def test_what_stays_float_is_counted_and_an_average_is_not():
    table = widened(LAYERS, CHOICES, READERS, float_values=7)
    policy = {name: choices[0] for name, choices in table.choices.items()}
    assert total(table, policy, "size") == by_hand(policy) + 28
    assert set(table.units) == {"size", "bops"}


@pytest.mark.parametrize("limit", [None, 100, 130, 160, 210])
def test_the_choice_is_the_best_of_all(limit):
    table = widened(LAYERS, CHOICES, READERS)
    limit = min(map(by_hand, every_policy(table))) if limit is None else limit
    generator = np.random.default_rng(limit)
    of_bits = {name: np.sort(generator.random(2))[::-1] for name in CHOICES}
    of_channels = {
        name: dict(zip(SHARES, [0.0, *np.sort(generator.random(3))], strict=True))
        for name in READERS
    }

    def damage(policy):
        bits = sum(of_bits[name][(2, 4).index(policy[name].weight)] for name in policy)
        return bits + sum(of_channels[name][policy[name].keep] for name in READERS)

    allowed = [policy for policy in every_policy(table) if by_hand(policy) <= limit]
    chosen = choose(table, of_bits, of_channels, [Budget("size", limit)])
    assert by_hand(chosen) <= limit
    assert damage(chosen) == pytest.approx(min(map(damage, allowed)))


def test_budgets_that_cannot_be_kept_are_refused():
    table = widened(LAYERS, CHOICES, READERS)
    ones = {name: np.ones(2) for name in CHOICES}
    with pytest.raises(BudgetError, match="no bits and channels keep size <= 10; raise the budget"):
        choose(table, ones, {}, [Budget("size", 10)])
    with pytest.raises(HaqError, match="a budget on avg_weight_bits does not go with channels"):
        choose(table, ones, {}, [Budget("avg_weight_bits", 3)])


def test_a_share_that_would_leave_nothing_is_no_choice():
    (layer,) = (Layer("x", "linear", 4, 1, weights=4),)
    table = widened([layer], {"x": (Bits(4, 8),)}, {"x": Readers({})})
    assert {choice.keep for choice in table.choices["x"]} == {1.0, 0.75, 0.5}
    assert narrowed(layer, 0.5).weights == 2


def test_choices_differ_by_their_shares():
    assert Width(4, 8, 0.5) != Width(4, 8) and hash(Width(4, 8, 0.5)) == hash(Bits(4, 8))
    assert len({Width(4, 8, share) for share in SHARES}) == 4
