"""Finalists are judged on other images; accuracy decides only where it differs beyond its error."""

from dataclasses import replace

import pytest
import torch

from haq.datasets import load
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.job import parse_job
from haq.runs.judge import BEYOND, Judge, Judged, winner
from haq.runs.run import run


def right(count, of=1000):
    return torch.arange(of) < count


def test_a_lead_inside_the_error_is_left_to_the_divergence():
    # 15 images gained, none lost: sqrt(15 - 15**2 / 1000) = 3.8 images is the error, 7.5 are asked.
    assert 15 > BEYOND * (15 - 15**2 / 1000) ** 0.5
    near, far = Judged(right(800), 0.1), Judged(right(815), 0.2)
    assert winner([near, far]) == winner([far, near][::-1]) == 1
    # 3 gained, none lost: 1.73 is the error, 3.4 are asked.
    assert winner([Judged(right(800), 0.1), Judged(right(803), 0.2)]) == 0
    # As far ahead as above, but by 40 gained and 25 lost: the error is 8.06, 15.8 are asked.
    mixed = right(800) & (torch.arange(1000) >= 25) | (torch.arange(1000) >= 960)
    assert int(mixed.sum()) == 815
    assert winner([Judged(right(800), 0.1), Judged(mixed, 0.2)]) == 0


def test_of_equals_the_first():
    assert winner([Judged(right(5), 0.1)] * 3) == 0


@pytest.fixture(scope="module")
def made():
    data = load("digits")
    model = build("digits_mlp").eval()
    graph = trace(model, data.train.batch(torch.arange(1))[0])
    return graph, calibrate(graph, [data.train.batch(torch.arange(64))[0]], "max"), data


def test_the_images_of_the_judge_are_none_of_those_that_score(made):
    graph, clips, data = made
    evaluator = Evaluator(graph, clips, data, Recipe(train_images=2, val_images=100), 0)
    seen = evaluator.validation.batch(torch.arange(100))[0].flatten(1)
    assert evaluator.unseen is None  # 100 more at most, which are too few
    some = Evaluator(graph, clips, _twice(data), Recipe(train_images=2, val_images=300), 0)
    assert some.unseen is not None and len(some.unseen) == 300
    chosen = {int(i) for i in some.unseen.chosen}
    assert len(chosen) == 300 and len(seen) == 100
    assert Judge(evaluator).apart is False and Judge(some).apart is True


def _twice(data):
    return replace(data, val=data.train)


def test_the_float_network_diverges_by_nothing_and_two_bits_by_more_than_four(made):
    graph, clips, data = made
    judge = Judge(Evaluator(graph, clips, data, Recipe(train_images=2, val_images=359), 0))
    floats = judge.judged(graph.traced)
    two, four = (judge.judged(quantize(graph, uniform(graph, b, 8), clips)) for b in (2, 4))
    assert floats.divergence == pytest.approx(0, abs=1e-6)
    assert two.divergence > four.divergence > floats.divergence
    assert 0 <= two.accuracy <= 1


def test_a_search_says_what_its_finalists_were_judged_by(tmp_path):
    job = parse_job(model="digits_mlp", agent="guided", episodes=4, float_epochs=2,
                    train_images=64, val_images=100, final_epochs=0, threads=1,
                    budgets=["avg_weight_bits=6"])  # fmt: skip
    summary = run(job, tmp_path)
    rows = summary["finalists"]
    assert rows
    assert all(row["judged_divergence"] >= 0 and row["judged_apart"] is False for row in rows)
    handed = [row for row in rows if row["episode"] == summary["best_episode"]]
    assert len(handed) <= 1
