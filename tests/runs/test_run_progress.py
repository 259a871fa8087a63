"""How much of a run is behind it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import haq
from haq.runs.job import parse_job
from haq.runs.pace import stage_weights
from haq.runs.progress import Progress, with_share


def test_the_share_by_hand():
    seen = []
    say = with_share(seen.append, {"calibrate": 1.0, "search": 3.0})
    for stage, done in (("plan", 1), ("calibrate", 1), ("calibrate", 2), ("search", 1)):
        say(Progress(stage, done, 2))
    assert [now.share for now in seen] == [0.0, 0.125, 0.25, 0.625]


@given(st.lists(st.tuples(st.sampled_from("abcx"), st.integers(0, 9), st.integers(0, 5))))
def test_the_share_never_falls_and_stays_a_share(events):
    shares = []
    say = with_share(lambda now: shares.append(now.share), {"a": 2.0, "b": 0.5, "c": 7.0})
    for stage, done, total in events:
        say(Progress(stage, done, total))
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_what_a_job_does_not_do_takes_no_time():
    ilp = stage_weights(parse_job(agent="ilp"), trained=True)
    assert {"train", "fine-tune", "test episode"}.isdisjoint(ilp)
    paper = stage_weights(parse_job(paper=True), trained=False)
    assert {"sensitivity", "round"}.isdisjoint(paper) and "train" in paper


def of_a_finalist(**more):
    """What a finalist adds to a search of 10 cheap episodes."""
    job = {"agent": "guided", "episodes": 10, "evaluation": "cheap", "finalists": 2} | more
    return (stage_weights(parse_job(**job), trained=True)["search"] - 60.0) / 2


@pytest.mark.parametrize(
    "images, seconds",
    [
        (5000, 51.0),  # 600 steps of 32 images, and no epoch
        (1000, 10.625),  # 125 steps: each image is seen four times at most
        (19_999, 51.0),
        (20_000, 51.0 + 60.0),
        (45_000, 51.0 + 135.0),
    ],
)
def test_a_finalist_takes_what_is_really_done_with_it(images, seconds):
    assert of_a_finalist(train_images=images) == pytest.approx(seconds)


def test_finalists_without_learned_rounding_take_an_epoch():
    assert of_a_finalist(rounding_steps=0, train_images=5000) == pytest.approx(15.0)


def test_only_a_policy_that_was_not_fine_tuned_learns_its_rounding_at_the_end():
    assert "round" in stage_weights(parse_job(agent="guided", finalists=0), trained=True)
    assert "round" not in stage_weights(parse_job(agent="guided", finalists=3), trained=True)


def test_a_run_ends_with_all_of_it_behind(tmp_path):
    seen = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    haq.search(model, torch.randn(80, 8), agent="ilp", budgets=["avg_weight_bits=6"], pins={},
               rounding_steps=3, threads=1, out=tmp_path / "run",
               on_progress=seen.append)  # fmt: skip
    shares = [now.share for now in seen]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.2 and shares[-1] > 0.8
