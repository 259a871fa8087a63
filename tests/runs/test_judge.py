"""Finalists are judged on other images; accuracy decides only where it differs beyond its error."""

from dataclasses import replace

import pytest
import torch

from haq.datasets import load
from haq.distillation.kd import divergence
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.job import parse_job
from haq.runs.judge import (
    BEYOND,
    Judge,
    Judged,
    best_tuned,
    better,
    kept_if_better,
    winner,
)
from haq.runs.run import run


def right(count, of=1000):
    return torch.arange(of) < count


def judged(right, divergence):
    return Judged(right, torch.full((len(right),), divergence))


def test_a_lead_inside_the_error_is_left_to_the_divergence():
    # 15 images gained, none lost: sqrt(15 - 15**2 / 1000) = 3.8 images is the error, 7.5 are asked.
    assert 15 > BEYOND * (15 - 15**2 / 1000) ** 0.5
    near, far = judged(right(800), 0.1), judged(right(815), 0.2)
    assert winner([near, far]) == winner([far, near][::-1]) == 1
    # 3 gained, none lost: 1.73 is the error, 3.4 are asked.
    assert winner([judged(right(800), 0.1), judged(right(803), 0.2)]) == 0
    # As far ahead as above, but by 40 gained and 25 lost: the error is 8.06, 15.8 are asked.
    mixed = right(800) & (torch.arange(1000) >= 25) | (torch.arange(1000) >= 960)
    assert int(mixed.sum()) == 815
    assert winner([judged(right(800), 0.1), judged(mixed, 0.2)]) == 0


def test_of_equals_the_first():
    assert winner([judged(right(5), 0.1)] * 3) == 0


@pytest.mark.parametrize(
    "count, divergence, expected",
    [
        (900, 0.1, True),  # nearer, and as accurate
        (899, 0.1, False),  # nearer, and one image worse: that is what training for nearness does
        (900, 0.2, False),  # no difference
        (915, 0.3, True),  # farther, and more accurate beyond the error of 3.8 images, times 1.96
        (903, 0.3, False),  # farther, and more accurate inside the error of 1.7 images, times 1.96
        (885, 0.1, False),
    ],
)
def test_training_is_kept_where_it_did_good(count, divergence, expected):
    assert better(judged(right(count), divergence), judged(right(900), 0.2)) is expected


def test_a_divergence_inside_its_error_keeps_what_was_there():
    # Differences of .1 in 60 images and -.1 in 40: mean .02, error .0098, so 2.03 errors are asked.
    even = torch.where(torch.arange(100) < 60, 0.1, 0.3)
    before = judged(right(90, 100), 0.2)
    assert better(Judged(right(90, 100), even), before)
    even[59] = 0.3  # .018 and .0099: 1.82 errors
    assert not better(Judged(right(90, 100), even), before)


@pytest.mark.parametrize(
    "tuned, expected",
    [
        ([], 0),  # no fine-tuning came to an end
        ([(900, 0.1)], 1),
        ([(900, 0.1), (900, 0.05)], 2),
        ([(900, 0.05), (900, 0.1)], 1),
        ([(915, 0.3), (900, 0.3)], 1),  # of equally near ones the first, as accurate beyond chance
        ([(900, 0.15), (950, 0.18)], 2),  # so much more accurate that it need not be the nearest
        ([(900, 0.2)], 0),  # as it was before
        ([(890, 0.1), (890, 0.05)], 0),  # nearer, but less accurate than without fine-tuning
        ([(900, 0.3), (850, 0.4)], 0),
    ],
)
def test_the_best_fine_tuned_network_is_handed_over_where_that_did_it_good(tuned, expected):
    entrants = [judged(right(900), 0.2), *(judged(right(count), away) for count, away in tuned)]
    assert best_tuned(entrants) == expected


@pytest.mark.parametrize("to, kept", [(900, True), (804, False), (700, False)])
def test_training_that_did_no_good_is_taken_back(to, kept):
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(801)
    row = kept_if_better(
        lambda model: judged(right(int(model.weight)), 0.1), model,
        lambda: model.weight.data.fill_(to),
    )  # fmt: skip
    assert int(model.weight) == (to if kept else 801)
    assert row == {"kept": kept, "accuracy": pytest.approx([0.801, to / 1000]),
                   "divergence": pytest.approx([0.1, 0.1])}  # fmt: skip


def test_the_divergence_of_each_image_is_a_term_of_the_mean(made):
    graph, clips, data = made
    judge = Judge(Evaluator(graph, clips, data, Recipe(train_images=2, val_images=40), 0))
    images, _ = judge.images.batch(torch.arange(40))
    network = quantize(graph, uniform(graph, 2, 8), clips)
    away = judge.judged(network).away
    mean = divergence(network(images).double(), graph.traced(images).double())
    assert len(away) == 40 and float(away.mean()) == pytest.approx(float(mean.detach()), rel=0.05)


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


def test_a_run_says_which_training_was_taken_back(tmp_path):
    # At such a rate the last epoch cannot do good.
    job = parse_job(model="digits_mlp", agent="uniform", evaluation="cheap", episodes=1, lr=3.0,
                    float_epochs=4, train_images=64, val_images=100, final_epochs=1, threads=1,
                    rounding_steps=0, budgets=["avg_weight_bits=6"])  # fmt: skip
    summary = run(job, tmp_path)
    last = summary["last_epochs"]
    assert last["kept"] is False and last["accuracy"][1] < last["accuracy"][0]
    assert summary["final_val_accuracy"] == pytest.approx(last["accuracy"][0], abs=0.01)
    assert any("the last epochs did the network no good" in note for note in summary["notes"])


def test_the_paper_takes_no_training_back(tmp_path):
    job = parse_job(model="digits_mlp", paper=True, episodes=1, lr=3.0, float_epochs=4,
                    train_images=64, val_images=100, final_epochs=1, threads=1,
                    budgets=["avg_weight_bits=6"])  # fmt: skip
    summary = run(job, tmp_path)
    assert "last_epochs" not in summary
    assert not any("did the network no good" in note for note in summary["notes"])
