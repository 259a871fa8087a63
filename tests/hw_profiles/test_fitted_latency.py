"""From nodes and whole networks to what predicts a mixed network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.policy import Bits
from haq.hw_profiles.measure.fit import Fitted, cross_validated, fit, shared_out, validate
from haq.hw_profiles.measured import (
    CLIPPED,
    FLOATS,
    INTEGERS,
    Crossings,
    Passing,
    crossings,
    kernel,
)


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=9), st.floats(0.1, 1e5))
def test_what_measuring_costs_is_taken_off_the_nodes(times, whole):
    nodes = {str(place): us for place, us in enumerate(times)}
    shares = shared_out(nodes, whole)
    assert sum(shares.values()) == pytest.approx(whole)
    assert all(us > 0 for us in shares.values())
    assert all(
        (shares[a] <= shares[b] + 1e-9 * whole)
        for a in nodes
        for b in nodes
        if nodes[a] <= nodes[b]
    )


@pytest.mark.parametrize(
    "pair, expected",
    [
        (Bits(8, 8), INTEGERS), (Bits(2, 8), INTEGERS), (Bits(8, 7), CLIPPED),
        (Bits(2, 2), CLIPPED), (Bits(32, 32), FLOATS),
    ],
)  # fmt: skip
def test_few_bits_run_in_the_kernels_of_eight(pair, expected):
    assert kernel(pair) == expected


TENSORS = [
    Passing(producer="a", consumer="b", values=100),
    Passing(producer="b", consumer="c", values=10),
    Passing(producer="a", consumer="c", values=1),
]


@pytest.mark.parametrize(
    "floats, expected",
    [("", (0, 0)), ("abc", (0, 0)), ("a", (101, 0)), ("b", (10, 100)), ("bc", (0, 101))],
)
def test_values_that_change_their_precision_are_counted(floats, expected):
    policy = {name: FLOATS if name in floats else Bits(4, 8) for name in "abc"}
    assert crossings(TENSORS, policy) == Crossings(*expected)


TRUE = Fitted(
    {
        "a": {FLOATS: 10.0, INTEGERS: 5.0, CLIPPED: 6.0},
        "b": {FLOATS: 20.0, INTEGERS: 40.0, CLIPPED: 44.0},
        "c": {FLOATS: 30.0, INTEGERS: 10.0, CLIPPED: 12.0},
    },
    to_quantized=0.05,
    to_float=0.02,
    of_tensors=((0.05, 0.02),) * 3,
)
UNIFORM = [{name: bits for name in "abc"} for bits in (FLOATS, INTEGERS, CLIPPED)]
EVERY = [
    {"a": a, "b": b, "c": c}
    for a in (FLOATS, INTEGERS, CLIPPED)
    for b in (FLOATS, INTEGERS, CLIPPED)
    for c in (FLOATS, INTEGERS, CLIPPED)
    if len({a, b, c}) > 1
]


def latencies(policies, batch=1):
    return [(policy, TRUE.latency(TENSORS, policy, batch)) for policy in policies]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_price_of_a_change_is_found_from_mixed_networks(batch):
    rows, mixed = TRUE.rows, latencies(EVERY, batch)
    fitted = fit(rows, TENSORS, latencies(UNIFORM, batch), mixed, batch)
    assert fitted.to_quantized == pytest.approx(0.05)
    assert fitted.to_float == pytest.approx(0.02)
    assert fitted.latency(TENSORS, EVERY[3], batch) == pytest.approx(mixed[3][1])


def test_rows_move_towards_the_mixed_networks_and_uniform_ones_stay():
    """The profiler gave "a" too much of the float network's time, and "c" too little."""
    wrong = {name: dict(row) for name, row in TRUE.rows.items()}
    wrong["a"][FLOATS] += 1
    wrong["c"][FLOATS] -= 1
    fitted = fit(wrong, TENSORS, latencies(UNIFORM), latencies(EVERY), 1)
    for policy, us in latencies(UNIFORM):
        assert fitted.latency(TENSORS, policy, 1) == pytest.approx(us, rel=1e-6)
    off = [abs(fitted.latency(TENSORS, p, 1) / us - 1) for p, us in latencies(EVERY)]
    assert max(off) < 0.01
    assert 10 < fitted.rows["a"][FLOATS] < 10.7
    assert 29.3 < fitted.rows["c"][FLOATS] < 30


def test_a_tensor_may_have_prices_of_its_own():
    true = TRUE._replace(of_tensors=((0.06, 0.02), (0.05, 0.02), (0.05, 0.02)))
    mixed = [(policy, true.latency(TENSORS, policy, 1)) for policy in EVERY]
    fitted = fit(TRUE.rows, TENSORS, latencies(UNIFORM), mixed, 1)
    assert fitted.of_tensors[0][0] == pytest.approx(0.06, rel=0.03)
    off = [abs(fitted.latency(TENSORS, policy, 1) / us - 1) for policy, us in mixed]
    assert max(off) < 0.005


def test_each_half_is_predicted_by_what_was_fitted_to_the_other():
    mixed = latencies(EVERY)
    mixed[0] = EVERY[0], 2 * mixed[0][1]  # whoever has not seen it is off by half
    fitted, check = cross_validated(TRUE.rows, TENSORS, latencies(UNIFORM), mixed, 1)
    assert check.policies == len(mixed) == 24
    assert check.worst_error == pytest.approx(0.5, abs=0.05)
    known = fit(TRUE.rows, TENSORS, latencies(UNIFORM), mixed, 1)
    assert fitted == known


def test_a_change_of_precision_never_pays_by_itself():
    faster = [(policy, us * 0.8) for policy, us in latencies(EVERY)]
    fitted = fit(TRUE.rows, TENSORS, latencies(UNIFORM), faster, 1)
    assert fitted.to_quantized == fitted.to_float == 0


def test_validation_by_hand():
    found = validate([11.0, 19.0, 30.0], [10.0, 20.0, 30.0])
    assert (found.policies, found.rank_correlation) == (3, 1)
    assert found.mean_error == pytest.approx(0.05)
    assert found.worst_error == pytest.approx(0.1)
