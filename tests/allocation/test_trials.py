"""Trials: lines of JSON, the best one, and those that none beats."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.policy import Bits
from haq.allocation.trials import Score, Trial, best, pareto
from haq.errors import HaqError, RunError

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def trial(episode, accuracy, size=1.0, loss=math.nan):
    return Trial(episode, {"fc": Bits(8, 4)}, {"size": size}, accuracy, loss, 0.0, 1.5)


def test_a_line_by_hand():
    assert json.loads(trial(3, 0.5).line()) == {
        "episode": 3,
        "policy": {"fc": [8, 4]},
        "cost": {"size": 1.0},
        "accuracy": 0.5,
        "loss": None,
        "reward": 0.0,
        "seconds": 1.5,
        "cached": False,
        "stopped": False,
    }


def test_a_trial_that_was_stopped_early_never_wins():
    whole, early = trial(0, 0.5), replace(trial(1, 0.9), stopped=True)
    assert best([whole, early]) is whole
    assert pareto([whole, early], "size") == [whole]
    assert best([early]) is early


def test_the_best_has_the_highest_reward_and_of_equals_the_highest_accuracy():
    accurate, rewarded = trial(0, 0.9), replace(trial(1, 0.8), reward=0.1)
    assert best([accurate, rewarded]) is rewarded
    assert best([trial(2, 0.7), accurate]) is accurate


@given(
    name=st.text(), values=st.tuples(FINITE, FINITE, FINITE, FINITE, FINITE), cached=st.booleans()
)
def test_what_is_written_is_read(name, values, cached):
    size, *rest = values
    one = Trial(7, {name: Bits(2, 8)}, {"size": size}, *rest, cached)
    line = one.line()
    assert "\n" not in line
    assert Trial.from_line(line + "\n") == one


def test_a_loss_nobody_measured_stays_so():
    assert math.isnan(Trial.from_line(trial(0, 0.5).line()).loss)
    assert math.isnan(Score(0.5).loss)


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", trial(0, 0.5).line()[:-5], '{"policy": {"fc": 3}, "loss": null}']
)
def test_a_torn_line_is_refused(line):
    with pytest.raises(RunError, match="not a trial"):
        Trial.from_line(line)


def test_the_best_is_the_most_accurate():
    assert best([trial(0, 0.5), trial(1, 0.7), trial(2, 0.6)]).episode == 1


def test_of_equals_the_lower_loss_wins_then_the_earlier():
    assert best([trial(0, 0.5), trial(1, 0.5, loss=0.3), trial(2, 0.5, loss=0.3)]).episode == 1
    assert best([trial(0, 0.5), trial(1, 0.5)]).episode == 0


def test_no_trials_have_no_best():
    with pytest.raises(ValueError):
        best([])


def test_the_front_by_hand():
    trials = [
        trial(0, 0.9, size=30),
        trial(1, 0.5, size=10),
        trial(2, 0.5, size=20),  # dearer than 1 and no better
        trial(3, 0.7, size=20),
        trial(4, 0.7, size=20),  # the same as 3, later
        trial(5, 0.8, size=40),  # dearer and worse than 0
    ]
    assert [one.episode for one in pareto(trials, "size")] == [1, 3, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_the_front_holds_all_that_none_beats(points):
    trials = [trial(i, accuracy, size) for i, (accuracy, size) in enumerate(points)]
    beaten = {
        (accuracy, size)
        for accuracy, size in points
        for other, cost in points
        if other >= accuracy and cost <= size and (other, cost) != (accuracy, size)
    }
    front = {(one.accuracy, one.cost["size"]) for one in pareto(trials, "size")}
    assert front == set(points) - beaten


def test_an_unknown_cost_is_named():
    with pytest.raises(HaqError, match="unknown quantity 'latency'"):
        pareto([trial(0, 0.5)], "latency")
