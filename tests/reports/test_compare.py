"""Several runs side by side: rows, CSV and charts."""

import csv
import io
import json
import sys

import pytest
import torch

from haq.allocation.policy import Bits
from haq.allocation.trials import Trial
from haq.cli.main import main
from haq.errors import HaqError, RunError
from haq.reports.charts.best import best_so_far_chart
from haq.reports.charts.front import front_chart
from haq.reports.charts.policies import policies_chart
from haq.reports.compare import compared, comparison_csv, comparison_html
from haq.runs import folder as results
from haq.runs.job import parse_job
from haq.runs.run import run

SMALL = {"model": "digits_mlp", "agent": "ddpg", "evaluation": "finetune",
         "reward": "metric", "episodes": 2, "float_epochs": 1, "val_images": 60,
         "train_images": 64, "final_epochs": 0, "threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    asked = {
        "size": {"budgets": ["size=9kB"]},
        "edge": {"budgets": ["latency=80%w8a8"], "target": "bismo-edge", "agent": "random"},
    }
    for name, fields in asked.items():
        (place / name).mkdir()
        run(parse_job(**SMALL | fields), place / name)
    return [place / name for name in asked]


def test_a_row_says_what_the_run_says(runs):
    first, second = compared(runs)
    summary = results.read_json(runs[0] / "summary.json")
    assert (first["run"], first["agent"], first["budget"]) == ("size", "ddpg", "size=9kB")
    assert first["final_test_accuracy"] == summary["final_test_accuracy"]
    assert first["size"] == summary["cost"]["size"]
    assert "latency" not in first
    assert second["target"] == "bismo-edge" and second["latency"] > 0


def test_csv_has_one_line_a_run_and_units_in_its_heads(runs):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(compared(runs)))))
    assert [row["run"] for row in rows] == ["size", "edge"]
    assert float(rows[0]["size (bytes)"]) == compared(runs)[0]["size"]
    assert rows[0]["latency (cycles)"] == ""
    assert float(rows[1]["latency (cycles)"]) > 0


def test_the_page_has_charts_and_table(runs):
    page = comparison_html(runs)
    for part in ('id="chart-front-size"', 'id="chart-best"', 'id="chart-bits-weights"',
                 'id="run-table"'):  # fmt: skip
        assert part in page
    assert "chart-front-latency" not in page  # only one of them knows it


def test_the_same_run_twice_is_refused(runs):
    with pytest.raises(HaqError, match="given twice"):
        compared([runs[0], runs[0]])


def test_equal_names_become_paths(runs, tmp_path, monkeypatch):
    (tmp_path / "size").mkdir()
    for path in runs[0].iterdir():
        (tmp_path / "size" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = [row["run"] for row in compared([runs[0], tmp_path / "size"])]
    assert names == [f"{runs[0].parent.name}/size", f"{tmp_path.name}/size"]


def test_a_run_without_an_episode_is_refused(tmp_path):
    results.write_job(tmp_path, parse_job())
    with pytest.raises(RunError, match="no finished episode yet: haq search --resume"):
        compared([tmp_path])


def row(run, agent, seed, budget, size, accuracy):
    return {"run": run, "agent": agent, "seed": seed, "budget": budget, "size": size,
            "final_test_accuracy": accuracy, "episode_val_accuracy": 0.5,
            "units": {"size": "bytes"}}  # fmt: skip


ROWS = [
    row("a", "ddpg", 0, "size=9", 8.0, 0.8),
    row("b", "ddpg", 1, "size=9", 9.0, 0.6),
    row("c", "ddpg", 0, "size=5", 5.0, 0.5),
    row("d", "uniform", 0, "size=9", 6.0, 0.4),
]


def test_a_front_goes_through_the_means_over_the_seeds():
    chart = front_chart(ROWS, "size", "final_test_accuracy", "uniform")
    line, points, dashed, _ = chart.figure["data"]
    assert list(zip(line["x"], line["y"], strict=True)) == [(5.0, 0.5), (8.5, pytest.approx(0.7))]
    assert list(zip(points["x"], points["y"], strict=True)) == [(5, 0.5), (8, 0.8), (9, 0.6)]
    assert (line["line"]["dash"], dashed["line"]["dash"]) == ("solid", "dash")
    assert "highest test accuracy is 80.00%, of a at 8 bytes" in chart.sentence
    assert "the same bits everywhere" in chart.sentence


def test_best_so_far_by_hand():
    def trial(episode, accuracy):
        return Trial(episode, {"a": Bits(8, 8)}, {}, accuracy, 1.0, 0.0, 1.0)

    chart = best_so_far_chart({"one": [trial(0, 0.5), trial(1, 0.4), trial(2, 0.7)]})
    assert chart.figure["data"][0]["y"] == [0.5, 0.5, 0.7]
    assert chart.rows == [["one", 3, 0.7, 2]]


def test_policies_by_hand():
    layers = [[{"name": "a", "weight_bits": 2}, {"name": "b", "weight_bits": 8}]] * 2
    chart = policies_chart(["one", "two"], layers, "weight_bits")
    cells = chart.figure["data"][0]
    assert cells["y"] == ["one", "one", "two", "two"]
    assert cells["customdata"] == [[0, 2], [1, 8], [0, 2], [1, 8]]
    assert chart.sentence.startswith("Bits of the weights of 2 layers; on average")


@pytest.fixture
def haq(tmp_path, monkeypatch, capsys):
    """Return a function that runs ``haq`` in an empty folder and returns code, out and err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    yield call
    torch.set_num_threads(threads)


def test_compare_writes_page_and_table(haq, runs, tmp_path):
    assert haq("compare", *runs)[:2] == (0, "compare.html\ncompare.csv\n")
    assert "2 runs side by side" in (tmp_path / "compare.html").read_text()
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 3


def test_compare_of_nothing_known_is_one_sentence(haq, tmp_path):
    code, _, said = haq("compare", "nowhere")
    assert code == 2 and "no run at 'nowhere'" in said
    assert not list(tmp_path.iterdir())


def test_inspect_measures_and_writes_the_page(haq, runs):
    code, out, _ = haq("inspect", runs[1])
    assert (code, out) == (0, f"{runs[1] / 'report.html'}\n")
    known = json.loads((runs[1] / "sensitivity.json").read_text())
    assert set(known["weights"]["fc2"]) == {"2", "3", "4", "5", "6", "7", "8"}
    assert "fc1" not in known["activations"]  # the network's input always has 8 bits


def test_inspect_without_sensitivity_says_so(haq, runs, tmp_path):
    code, out, _ = haq("inspect", runs[0], "--no-sensitivity", "--out", tmp_path / "mine.html")
    assert (code, out) == (0, f"{tmp_path / 'mine.html'}\n")
    assert "the sensitivities were not measured" in (tmp_path / "mine.html").read_text()
    assert not (runs[0] / "sensitivity.json").exists()


def test_inspect_of_a_model_of_ones_own_goes_without(haq, runs, tmp_path):
    for path in runs[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    job = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(job | {"model": "Detector"}))
    code, _, said = haq("inspect", tmp_path)
    assert code == 0
    assert "not measured for the page: unknown model 'Detector'" in said
    assert (tmp_path / "report.html").exists()
