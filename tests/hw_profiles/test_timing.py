"""Timings: candidates interleaved, percentiles with their intervals, and the drift of a machine."""

import itertools
from functools import partial

import pytest

from haq.hw_profiles.measure import timing
from haq.hw_profiles.measure.timing import Sample

FEWEST = timing.FEWEST_ROUNDS


def ticking():
    """Return a clock on which every call takes a microsecond."""
    return partial(next, itertools.count(0, 1000))


def test_a_call_that_says_itself_how_long_it_took_is_believed():
    own = iter([0.0, 7.0, 0.0, 7.0, 0.0, 7.0])
    timings = timing.sampled({"a": lambda: next(own)}, ticking(), rounds=3, enough=1.0, seed=0)
    assert timings["a"].us == 7


def test_drift_is_of_the_last_quarter_against_the_first():
    samples = [timing.Sample(us, False) for us in [10.0] * 10 + [11.0] * 20 + [12.0] * 10]
    assert timing.timing_of(samples, 0).drift == pytest.approx(0.2)


def test_candidates_are_interleaved_and_each_is_warm():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    timing.sampled(calls, ticking(), rounds=4, enough=1.0, seed=0)
    rounds = [called[start : start + 6] for start in range(0, 24, 6)]
    assert len(called) == 24
    for one in rounds:
        assert one[::2] == one[1::2]  # one call to warm up, then the one that counts
        assert sorted(one[::2]) == ["a", "b", "c"]
    assert len({tuple(one) for one in rounds}) > 1
    again, called = called, []
    timing.sampled(calls, ticking(), rounds=4, enough=1.0, seed=0)
    assert called == again


@pytest.mark.parametrize(
    "enough, seconds, rounds, expected",
    [
        (float("inf"), 1e9, 100, FEWEST),  # narrow enough as soon as it is believed
        (0.0, 1e9, 33, 33),  # never narrow enough
        (0.0, 0.0, 33, FEWEST),  # too late as soon as it is believed
        (0.0, 0.0, 3, 3),
    ],
)
def test_measuring_stops_when_it_knows_enough_or_has_no_time(enough, seconds, rounds, expected):
    seen = []
    calls = {"a": lambda: None}
    timing.sampled(calls, ticking(), rounds, enough, 0, lambda *at: seen.append(at), seconds)
    assert seen == [(done, rounds) for done in range(1, expected + 1)]


def test_the_clock_is_read_around_the_call_that_counts():
    now = iter([0, 3_000, 10_000, 15_000, 20_000, 24_000])  # ns: 3, 5 and 4 us
    timings = timing.sampled({"a": lambda: None}, lambda: next(now), 3, 1.0, seed=0)
    assert timings["a"].p50 == 4


def test_the_tenth_percentile_by_hand():
    one = timing.percentile([float(us) for us in range(100, 111)])
    assert (one.us, one.p50, one.p90, one.samples) == (101, 105, 109, 11)
    assert 100 <= one.low <= 101 <= one.high
    assert one.half_width == (one.high - one.low) / 2 / 101


@pytest.mark.parametrize(
    "quiet, expected, used",
    [(FEWEST, 5.0, FEWEST), (FEWEST - 1, 1.0, 100)],  # the others have a faster one among them
)
def test_interrupted_samples_count_only_where_there_are_too_few_others(quiet, expected, used):
    others = [Sample(1.0, True)] * (100 - quiet)
    one = timing.timing_of([Sample(5.0, False)] * quiet + others, seed=0)
    assert (one.us, one.samples) == (expected, used)
    assert one.contended == pytest.approx(1 - quiet / 100)


def test_equal_samples_have_no_interval():
    one = timing.percentile([7.0] * 20)
    assert (one.low, one.us, one.high, one.half_width) == (7, 7, 7, 0)


def test_drift_is_the_mean_of_what_was_measured_twice():
    then = {"fp32": 10, "w8a8": 40}
    assert timing.drift(then, {"fp32": 20, "w8a8": 20, "0": 7}) == 1.0  # 1/2 and 2
    assert timing.drift(then, {"fp32": 5}) == pytest.approx(2.0)
    assert timing.drift(then, {"0": 7}) == timing.drift({}, then) == 1.0


def test_a_timing_on_a_machine_half_as_fast():
    one = timing.Timing(10, 8, 12, 11, 20, 40, 0.25)
    assert one.times(2) == (20, 16, 24, 22, 40, 40, 0.25, 0)
    assert one.times(2).half_width == one.half_width == 0.2
