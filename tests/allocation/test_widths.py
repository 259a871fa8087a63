"""Bits and channels together: costs of narrower networks, and the exact choice among all."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.budgets import Budget, cheapest, fit, most_bits, solve, solve_nearly
from haq.allocation.costs import size_bytes, total
from haq.allocation.policy import Bits, read_policy, write_policy
from haq.allocation.trials import Trial
from haq.allocation.widths import (
    SHARES,
    WidthGroup,
    check_budgeted,
    check_shares,
    kept_channels,
    narrowed,
    narrowed_layers,
    widened,
    with_channels,
)
from haq.errors import BudgetError, HaqError, PolicyError
from haq.network.layers import Layer

LAYERS = (
    Layer("a", "pointwise", 3, 8, weights=24, biases=8, macs=24 * 16),
    Layer("d", "depthwise", 8, 8, kernel=(3, 3), groups=8, weights=72, biases=8, macs=72 * 16),
    Layer("b", "pointwise", 8, 4, weights=32, biases=4, macs=32 * 16),
    Layer("e", "pointwise", 4, 4, weights=16, biases=4, macs=16 * 16),
    Layer("c", "linear", 12, 5, weights=60, biases=5, macs=60),
)
NAMES = tuple(layer.name for layer in LAYERS)
CHOICES = dict.fromkeys(NAMES, (Bits(2, 8), Bits(4, 8)))


def shares_of(channels):
    return {share: kept_channels(share, channels) / channels for share in SHARES}


# b and e add up; c reads their four channels and the eight of something that keeps all of them.
A = WidthGroup(
    ("a",), {s: {"a": left} for s, left in shares_of(8).items()},
    {s: {"d": 1 - left, "b": 1 - left} for s, left in shares_of(8).items()}, frozenset({"d"}),
)  # fmt: skip
B = WidthGroup(
    ("b", "e"), {s: {"b": left, "e": left} for s, left in shares_of(4).items()},
    {s: {"e": 1 - left, "c": (1 - left) * 4 / 12} for s, left in shares_of(4).items()},
)  # fmt: skip


def narrow(policy):
    """Return the layers of the narrower network, written down by hand."""
    a, b = kept_channels(policy["a"].keep, 8), kept_channels(policy["b"].keep, 4)
    return [
        Layer("a", "pointwise", 3, a, weights=3 * a, biases=a, macs=3 * a * 16),
        Layer("d", "depthwise", a, a, kernel=(3, 3), groups=a, weights=9 * a, biases=a,
              macs=9 * a * 16),
        Layer("b", "pointwise", a, b, weights=a * b, biases=b, macs=a * b * 16),
        Layer("e", "pointwise", b, b, weights=b * b, biases=b, macs=b * b * 16),
        Layer("c", "linear", 8 + b, 5, weights=5 * (8 + b), biases=5, macs=5 * (8 + b)),
    ]  # fmt: skip


def by_hand(policy):
    """Return the size of the narrower network, layer after layer."""
    return sum(size_bytes(layer, policy[layer.name].weight) for layer in narrow(policy))


def table_of(layers=LAYERS, **options):
    return widened(layers, CHOICES, (A, B), **options)


def every_policy(table):
    names = list(table.choices)
    for choice in itertools.product(*(table.choices[name] for name in names)):
        policy = dict(zip(names, choice, strict=True))
        if policy["b"].keep == policy["e"].keep:
            yield policy


def test_every_choice_costs_what_the_narrower_network_does():
    table = table_of()
    assert len(table.choices["a"]) == 8 and len(table.choices["d"]) == 2
    for policy in every_policy(table):
        assert total(table, policy, "size") == by_hand(policy)
        bops = sum(layer.macs * policy[layer.name].weight * 8 for layer in narrow(policy))
        assert total(table, policy, "bops") == bops
        assert list(narrowed_layers(LAYERS, (A, B), policy)) == narrow(policy)


def test_what_stays_float_is_counted_and_an_average_is_not():
    table = table_of(float_values=7)
    policy = {name: choices[0] for name, choices in table.choices.items()}
    assert total(table, policy, "size") == by_hand(policy) + 28
    assert set(table.units) == {"size", "bops"}


def damages(seed):
    generator = np.random.default_rng(seed)
    of_bits = {name: np.sort(generator.random(2))[::-1] for name in CHOICES}
    of_channels = {
        name: dict(zip(SHARES, [0.0, *np.sort(generator.random(3))], strict=True)) for name in "ab"
    }
    return of_bits, of_channels


@pytest.mark.parametrize("limit", [None, 120, 150, 200, 260])
@pytest.mark.parametrize("solver", [solve, solve_nearly])
def test_the_choice_is_the_best_of_all(limit, solver):
    table = table_of()
    least = min(map(by_hand, every_policy(table)))
    assert cheapest(table, "size") == least
    limit = limit or least
    of_bits, of_channels = damages(int(limit))

    def damage(policy):
        bits = sum(of_bits[name][(2, 4).index(policy[name].weight)] for name in policy)
        return bits + sum(of_channels[name][policy[name].keep] for name in "ab")

    allowed = [policy for policy in every_policy(table) if by_hand(policy) <= limit]
    chosen = solver(with_channels(table, of_bits, of_channels), table, [Budget("size", limit)])
    assert by_hand(chosen) <= limit and chosen["b"].keep == chosen["e"].keep
    assert damage(chosen) == pytest.approx(min(map(damage, allowed)))


@pytest.mark.parametrize("limit", [110, 150, 200, 260, 400])
def test_a_policy_is_lowered_until_it_keeps_its_budget(limit):
    table = table_of()
    start = most_bits(table)
    assert {bits.keep for bits in start.values()} == {1.0}
    fitted = fit(start, table, [Budget("size", limit)])
    assert by_hand(fitted) <= limit and fitted["b"].keep == fitted["e"].keep
    assert limit < 400 or fitted == start


def test_budgets_that_cannot_be_kept_are_refused():
    table = table_of()
    with pytest.raises(BudgetError, match="no policy fits size <= 10 bytes: the cheapest one"):
        fit(most_bits(table), table, [Budget("size", 10)])
    for quantity in ("avg_weight_bits", "coded_size"):
        with pytest.raises(HaqError, match=f"a budget on {quantity} does not go with channels"):
            check_budgeted(["size", quantity])
    check_budgeted(["size", "bops", "latency"])


def test_shares_are_put_in_order_and_those_that_make_no_sense_are_refused():
    assert check_shares((0.25, 0.5, 0.25)) == (1.0, 0.5, 0.25)
    for wrong in ((0.0, 1.0), (1.5,), (-0.5,), (float("nan"),)):
        with pytest.raises(HaqError, match="is above 0 and at most 1"):
            check_shares(wrong)
    with pytest.raises(HaqError, match="widths 1 leaves nothing to choose"):
        check_shares((1.0,))


def test_a_narrower_layer_has_a_share_of_everything():
    layer = Layer("x", "linear", 4, 2, weights=8, biases=2, zeros=4)
    half = narrowed(layer, 0.5)
    assert (half.c_in, half.weights, half.biases, half.zeros) == (2, 4, 2, 2)
    assert narrowed(layer) is layer


def test_choices_differ_by_their_shares():
    half = Bits(4, 8, keep=0.5)
    assert half != Bits(4, 8) and half != (4, 8) and hash(half) == hash(Bits(4, 8))
    assert len({Bits(4, 8, keep=share) for share in SHARES}) == 4
    assert half.with_act(4) == Bits(4, 4, keep=0.5) and half.with_keep(1.0) == (4, 8)
    assert half < Bits(4, 8) < Bits(5, 8, keep=0.25)


def test_files_of_policies_and_trials_hold_the_shares(tmp_path):
    policy = {"a": Bits(4, 8, keep=0.5), "b": Bits(3, 8), "c": Bits(4, 32, 64, keep=0.25)}
    write_policy(tmp_path / "p.json", policy)
    assert read_policy(tmp_path / "p.json") == policy
    trial = Trial(0, policy, {"size": 1.0}, 0.5, 0.1, -1.0, 2.0)
    assert Trial.from_line(trial.line()) == trial
    text = (tmp_path / "p.json").read_text().replace("0.25", "1.25")
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PolicyError, match='"keep" is the share of its channels that stays'):
        read_policy(tmp_path / "p.json")


@given(share=st.floats(0.01, 0.999), channels=st.integers(1, 300), multiple=st.integers(1, 64))
def test_channels_that_stay_are_the_nearest_multiple_or_all(share, channels, multiple):
    count = kept_channels(share, channels, multiple)
    assert count == channels or (count % multiple == 0 and 0 <= count < channels)
    assert count == channels or abs(count - share * channels) <= multiple / 2 + 1e-9
    assert kept_channels(1, channels, multiple) == channels
