"""Which of several runs is the most accurate, and beyond which doubt."""

import csv
import io
import shutil

import pytest
import torch

from haq.reports.charts.front import front_chart
from haq.reports.compare import compared, comparison_csv, comparison_html
from haq.reports.leaders import leaders_section
from haq.runs import folder as results
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.runs.tested import write_tested

SMALL = {"model": "digits_mlp", "float_epochs": 1, "val_images": 60, "train_images": 64,
         "final_epochs": 0, "threads": 1, "rounding_steps": 0, "agent": "ilp"}  # fmt: skip


def row(name, value, **changes):
    low, high = value - 0.02, value + 0.03
    known = {"run": name, "model": "net", "data": "digits", "budget": "size=9", "agent": "ilp",
             "seed": 0, "metric": "top1", "final_test_accuracy": value,
             "final_test_low_accuracy": low, "final_test_high_accuracy": high}  # fmt: skip
    return known | changes


@pytest.fixture
def folders(tmp_path):
    """Four runs: the second and last are surely worse than the first, the third may be as good."""
    right = {"a": torch.arange(1000) < 900, "b": torch.arange(1000) < 800,
             "c": torch.arange(1000) < 899, "d": torch.arange(1000) < 700}  # fmt: skip
    for name, truth in right.items():
        (tmp_path / name).mkdir()
        write_tested(tmp_path / name, {"final": truth})
    return [tmp_path / name for name in right]


def texts(section):
    return [[cell.text for cell in line] for line in section.tables[0].rows]


def test_what_is_below_beyond_chance_by_hand(folders):
    rows = [row("a", 0.9), row("b", 0.8), row("c", 0.899), row("d", 0.7)]
    (section,) = leaders_section(folders, rows)
    assert section.lead == (
        "a has the highest test accuracy, 90.00%. Of the 3 others 2 are below it beyond chance, "
        "compared image by image."
    )
    first, third, second, last = texts(section)
    assert [line[0] for line in (first, third, second, last)] == ["a", "c", "b", "d"]
    assert first[-2:] == ["", ""] and second[-2] == "-10.00 points"
    low, high = (float(end) for end in second[-1].split(" to "))
    assert -12.5 < low < -10 < high < -8  # Tango's interval of 100 lost and none gained in 1000
    assert third[-1].split(" to ")[1].startswith("+")


def test_without_answers_it_is_not_known_what_is_chance(tmp_path):
    rows = [row("a", 0.9), row("b", 0.8, budget="size=5")]
    (section,) = leaders_section([tmp_path / "a", tmp_path / "b"], rows)
    assert "Of 1 it is not known whether the difference is chance." in section.lead
    assert "Their budgets differ" in section.lead


def test_one_run_alone_is_not_crowned(tmp_path):
    assert leaders_section([tmp_path], [row("a", 0.9)]) == []
    assert (
        leaders_section([tmp_path] * 2, [row("a", 0.9), row("b", 0.8, final_test_accuracy=None)])
        == []
    )


def test_of_lower_is_better_the_lowest_comes_first(tmp_path):
    rows = [row(name, value, metric="perplexity", final_test_low_accuracy=None)
            for name, value in (("a", 9.0), ("b", 7.0))]  # fmt: skip
    (section,) = leaders_section([tmp_path / "a", tmp_path / "b"], rows)
    assert section.lead.startswith("b has the lowest test perplexity")


def test_a_front_has_the_float_network_and_intervals():
    rows = [
        row(name, value, size=size, units={"size": "bytes"}, float_test_accuracy=0.95)
        for name, value, size in (("a", 0.9, 8.0), ("b", 0.8, 5.0))
    ]
    figure = front_chart(rows, "size", "final_test_accuracy").figure
    marks = figure["data"][1]
    assert marks["error_y"]["array"] == pytest.approx([0.03, 0.03])
    assert marks["error_y"]["arrayminus"] == pytest.approx([0.02, 0.02])
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [0.95]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("leaders")
    for name, model in (("mlp", "digits_mlp"), ("cnn", "digits_cnn")):
        (place / name).mkdir()
        run(parse_job(**SMALL | {"model": model}, budgets=["avg_weight_bits=4"]), place / name)
    return [place / "mlp", place / "cnn"]


def test_model_and_data_are_columns_and_no_path_is_named(runs):
    page = comparison_html(runs)
    for part in (">digits_mlp<", ">digits_cnn<", ">digits<", 'id="leaders-table"'):
        assert part in page
    assert str(runs[0].parent) not in page


def test_equal_names_get_their_folders_names_and_no_more(runs, tmp_path):
    other = tmp_path / "other" / "mlp"
    shutil.copytree(runs[0], other)
    names = [one["run"] for one in compared([runs[0], other])]
    assert names == [f"{runs[0].parent.name}/mlp", "other/mlp"]


def test_the_table_has_the_ends_of_the_interval(runs):
    (first, _) = csv.DictReader(io.StringIO(comparison_csv(compared(runs))))
    low, high = results.read_json(runs[0] / "summary.json")["final_test_interval"]
    assert float(first["final_test_low_accuracy"]) == low
    assert float(first["final_test_high_accuracy"]) == high
