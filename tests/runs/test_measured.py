"""Latency: what is measured, and what becomes of a winner over its budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_parts import measured_profile

from haq.allocation.budgets import Budget
from haq.allocation.costs import CostTable, Edge, total
from haq.allocation.policy import Bits, check_policy
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.errors import BudgetError, TargetError
from haq.hw_profiles import build, load
from haq.network.layers import Layer
from haq.runs.candidates import Measurement, setup_of
from haq.runs.winner import confirm, summary_fields, tightened, within

FLOATS = Bits(32, 32)
LAYERS = (Layer("a", "conv", 1, 1), Layer("b", "conv", 1, 1), Layer("c", "conv", 1, 1, reads="b"))
CHOICES = (Bits(2, 8), Bits(4, 8), Bits(8, 8), FLOATS)
ROW = np.array([3.0, 3.0, 3.0, 10.0])
CROSSING = np.where(
    np.array([bits == FLOATS for bits in CHOICES])[:, None]
    != np.array([bits == FLOATS for bits in CHOICES])[None, :],
    1.0,
    0.0,
)
TABLE = CostTable(
    LAYERS,
    {layer.name: CHOICES for layer in LAYERS},
    {"latency": {layer.name: ROW for layer in LAYERS}},
    {"latency": "us"},
    (Edge("a", "b", {"latency": CROSSING}),),
)


def policy(a, b):
    return {"a": a, "b": b, "c": b}


SLOW, MIXED, FAST = policy(FLOATS, FLOATS), policy(Bits(8, 8), FLOATS), policy(*[Bits(8, 8)] * 2)
BUDGET = Budget("latency", 25)


def clock(times):
    """Return a clock by which policies take ``times`` of what the table says."""
    asked = []

    def measure(policies):
        asked.extend(policies)
        return [
            Measurement(p, total(TABLE, p, "latency"), us, us - 1, us + 1, 40, 0.0, 1.0)
            for p in policies
            for us in [times(p) * total(TABLE, p, "latency")]
        ]

    measure.asked = asked
    return measure


def never(_):
    raise AssertionError("a policy that was tried is not evaluated again")


def test_the_best_trial_wins_if_it_measures_within_the_budget():
    measure = clock(lambda _: 1.0)
    confirmed = confirm([MIXED, FAST], TABLE, [BUDGET], measure, never)
    assert (confirmed.policy, confirmed.how, confirmed.score) == (MIXED, "best", None)
    assert confirmed.measurement.us == 3 + 1 + 20


def test_the_next_best_wins_where_the_best_measures_over_the_budget():
    measure = clock(lambda p: 1.1 if p == MIXED else 1.0)  # 26.4 us
    confirmed = confirm([MIXED, FAST], TABLE, [BUDGET], measure, never)
    assert (confirmed.policy, confirmed.how, confirmed.score) == (FAST, "next best", None)
    assert [one.policy for one in confirmed.measured] == [MIXED, FAST]


def test_where_all_measure_over_the_budget_the_best_is_lowered_and_evaluated():
    measure = clock(lambda p: 1.1)
    confirmed = confirm([MIXED], TABLE, [BUDGET], measure, lambda _: Score(0.7))
    assert confirmed.how == "lowered"
    assert confirmed.score == Score(0.7)
    assert confirmed.policy == policy(*[Bits(8, 8)] * 2)  # the most bits that are fast enough
    assert confirmed.measurement.us == pytest.approx(9.9)


def test_a_lowered_policy_keeps_the_other_budgets():
    rows = {**TABLE.rows, "size": {n.name: np.array([2.0, 4, 8, 32]) for n in LAYERS}}
    units = {"latency": "us", "size": "bytes"}
    table = CostTable(LAYERS, TABLE.choices, rows, units, TABLE.edges)
    budgets = [BUDGET, Budget("size", 10)]
    confirmed = confirm([MIXED], table, budgets, clock(lambda p: 1.1), lambda _: Score(0.7))
    assert total(table, confirmed.policy, "size") <= 10


def test_what_no_clock_allows_is_an_error():
    with pytest.raises(BudgetError, match="no policy was found that measures within latency <= 25"):
        confirm([MIXED, FAST], TABLE, [BUDGET], clock(lambda _: 9.0), never)


def test_equal_trials_are_measured_once():
    measure = clock(lambda p: 1.1 if p == MIXED else 1.0)
    confirm([MIXED, dict(MIXED), FAST], TABLE, [BUDGET], measure, never)
    assert measure.asked == [MIXED, FAST]


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1.0001, 10))
def test_a_tightened_limit_is_below_limit_and_prediction(limit, predicted, excess):
    over = Measurement({}, predicted, limit * excess, 0, 0, 1, 0, 1)
    tight = tightened(limit, over)
    assert tight < predicted
    # The clock keeps the limit where its excess over the table is what it was.
    assert tight * over.us / predicted < limit


def test_the_first_within_the_limit_is_the_best():
    slow, fast = (Measurement({}, 1, us, us, us, 1, 0, 1) for us in (5, 3))
    assert within([slow, fast], 4) is fast
    assert within([slow, fast], 2) is None
    assert within([fast], 3) is fast  # at the limit


def test_what_a_summary_says_of_the_clock():
    confirmed = confirm([MIXED], TABLE, [BUDGET], clock(lambda _: 1.0), never)
    assert summary_fields(confirmed, 25) == {
        "unit": "us", "value": 24.0, "low": 23.0, "high": 25.0, "predicted": 24.0, "budget": 25,
        "how": "best", "candidates": 1, "samples": 40, "contended": 0.0, "drift": 1.0,
    }  # fmt: skip


# --- profiles ----------------------------------------------------------------------------------


def test_a_profile_of_another_machine_checks_nothing():
    with pytest.raises(TargetError, match="mine was measured with cpu 'Z80', here it is"):
        setup_of(measured_profile(provider="CPUExecutionProvider", cpu="Z80", threads=1))


def test_a_profile_that_nobody_measured_checks_nothing():
    with pytest.raises(TargetError, match="bismo-edge was not measured in ONNX Runtime"):
        setup_of(load("bismo-edge").profile)


# --- the environment ---------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_the_environment_makes_layers_float_as_a_whole(shares):
    """Weights of 32 bits go with activations of 32 bits, for all who read the tensor."""
    target = build(measured_profile())
    layers = (
        Layer("a", "conv", 1, 1, macs=1, weights=9, reads_input=True),
        Layer("b", "conv", 1, 1, macs=1, weights=9),
        Layer("c", "conv", 1, 1, macs=1, weights=9, reads="b"),
    )
    pairs = (*(Bits(w, a) for w in (2, 8) for a in (4, 8)), FLOATS)
    choices = {"a": (Bits(8, 8), FLOATS), "b": pairs, "c": pairs}
    rows = {"latency": {name: np.ones(len(some)) for name, some in choices.items()}}
    table = CostTable(layers, choices, rows, {"latency": "us"}, target.edges(layers, choices))
    env = QuantizationEnv(table, lambda _: Score(0.5))
    env.reset()
    for share in shares[: env.n_steps]:
        *_, done, _, info = env.step(np.array([share], np.float32))
    assert done
    check_policy(info["policy"], layers)
    assert all((bits.weight == 32) == (bits.act == 32) for bits in info["policy"].values())
    crossing = info["policy"]["a"] != FLOATS and info["policy"]["b"] == FLOATS
    back = info["policy"]["a"] == FLOATS and info["policy"]["b"] != FLOATS
    # 10 values of 2 images: 0.25 us each to float, 0.5 us each from it.
    assert info["cost"]["latency"] == 3 + 5 * crossing + 10 * back
