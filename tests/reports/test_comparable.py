"""Which runs are compared, and with what."""

import math
import sys

import pytest

from haq.reports.comparable import against_uniform, by_test_set, shared_quantities, treatment
from haq.reports.compare import compared, comparison_csv, comparison_html
from haq.runs.job import parse_job
from haq.runs.run import run

DIGITS = {"data": "digits", "shape": [1, 8, 8], "classes": ["0", "1"]}


def test_equal_images_are_one_test_set():
    other = DIGITS | {"data": "cifar10"}
    resized = DIGITS | {"shape": [1, 16, 16]}
    summaries = [{"images": images} for images in (DIGITS, other, dict(DIGITS), resized, other)]
    assert by_test_set(summaries) == [1, 2, 1, 3, 2]


def test_other_splits_of_the_same_folder_are_other_test_sets():
    first, second = ({"images": 9, "sha256": digest} for digest in ("a", "b"))
    summaries = [{"images": DIGITS, "test_set": one} for one in (first, second, dict(first))]
    assert by_test_set(summaries) == [1, 2, 1]


def row(agent, seed, budget, accuracy, treated="as all"):
    return {
        "run": f"{agent}{seed}", "agent": agent, "seed": seed, "budget": budget, "model": "net",
        "final_test_accuracy": accuracy, "treatment": f"{treated} {budget} {seed}",
    }  # fmt: skip


def test_differences_by_hand():
    rows = [
        row("uniform", 0, "size=9", 0.80), row("uniform", 1, "size=9", 0.82),
        row("guided", 0, "size=9", 0.84), row("guided", 1, "size=9", 0.83),
        row("ddpg", 1, "size=9", 0.80),
    ]  # fmt: skip
    guided, ddpg = against_uniform(rows)
    assert (guided.budget, guided.agent, guided.seeds) == ("size=9", "guided", 2)
    assert guided.accuracy == pytest.approx(0.835) and guided.uniform == pytest.approx(0.81)
    assert guided.points == pytest.approx(2.5)  # the mean of 4 and 1
    assert guided.error == pytest.approx(3 / math.sqrt(2) / math.sqrt(2))
    assert (ddpg.points, ddpg.error) == (pytest.approx(-2.0), None)


def test_uniform_bits_that_were_treated_otherwise_are_no_reference():
    rows = [row("uniform", 0, "size=9", 0.2, "without fine-tuning"), row("ilp", 0, "size=9", 0.9)]
    assert against_uniform(rows) == []


def test_what_was_not_tested_is_not_compared():
    assert against_uniform([row("uniform", 0, "b", None), row("ilp", 0, "b", 0.9)]) == []


@pytest.mark.parametrize(
    "changes, alike",
    [
        ({"agent": "random", "episodes": 3, "threads": 2}, True),
        ({"final_epochs": 2}, False),
        ({"lr": 0.5}, False),
        ({"val_images": 7}, False),
        ({"budgets": ["size=8kB"]}, False),
        ({"seed": 1}, False),
        ({"clipping": "max"}, False),
    ],
)
def test_treatment_is_all_but_the_agent(changes, alike):
    fields = {"agent": "ddpg", "budgets": ["size=9kB"]}
    one, two = (parse_job(**fields | more).model_dump(mode="json") for more in ({}, changes))
    assert (treatment(one) == treatment(two)) == alike


def test_costs_of_two_targets_are_not_put_on_one_axis():
    rows = [
        {"target": "bismo-edge", "size": 8.0, "latency": 5.0},
        {"target": "bitfusion-eyeriss", "size": 9.0, "latency": 6.0},
    ]
    units = {"size": "bytes", "latency": "cycles"}
    assert shared_quantities(rows, units) == ["size"]
    assert shared_quantities([rows[0], rows[0]], units) == ["size", "latency"]
    assert shared_quantities(rows[:1], units) == []


OWN = """
import torch
def splits():
    images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 10
    return (images, labels), (images, labels), (images, labels)
"""


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    (place / "noise_images.py").write_text(OWN)
    small = {"model": "digits_mlp", "episodes": 1, "float_epochs": 1, "val_images": 60,
             "train_images": 64, "final_epochs": 0, "threads": 1, "budgets": ["size=9kB"],
             "agent": "random", "evaluation": "finetune", "reward": "metric"}  # fmt: skip
    sys.path.insert(0, str(place))
    for name, data in {
        "digits": "digits",
        "noise": "noise_images:splits",
        "more": "digits",
    }.items():
        (place / name).mkdir()
        run(parse_job(**small, data=data, seed=len(name)), place / name)
    sys.path.remove(str(place))
    return [place / name for name in ("digits", "noise", "more")]


def test_runs_of_other_images_have_tables_of_their_own_and_no_winner_over_all(two_sets):
    assert [one["test_set"] for one in compared(two_sets)] == [1, 2, 1]
    page = comparison_html(two_sets)
    assert "tested on 2 different sets of images (1: digits, 2: noise_images:splits)" in page
    for part in ('id="run-table-1"', 'id="run-table-2"', 'id="chart-front-size-1"',
                 'id="chart-bits-weights-2"'):  # fmt: skip
        assert part in page
    assert 'id="run-table"' not in page and 'id="chart-front-size"' not in page
    assert "3 runs; the highest" not in page and "2 runs; the highest" in page


def test_the_table_says_which_images_they_were(two_sets):
    head, *lines = comparison_csv(compared(two_sets)).splitlines()
    at = head.split(",").index("test_set")
    assert [line.split(",")[at] for line in lines] == ["1", "2", "1"]
    assert "treatment" not in head


def test_runs_of_the_same_images_are_shown_together(two_sets):
    page = comparison_html([two_sets[0], two_sets[2]])
    assert 'id="run-table"' in page and "different sets" not in page
