"""Publishing: what is kept of a run, and that no folder of a machine is."""

import re
from pathlib import Path

import pytest

from haq.errors import HaqError
from haq.reports.reference import publish, tables
from haq.reports.reference.compression import compression_tables
from haq.reports.reference.coverage import coverage_tables
from haq.reports.reference.updates import updates_tables
from haq.runs.folder import read_json
from haq.runs.job import parse_job
from haq.runs.run import run


@pytest.mark.parametrize(
    "command, published",
    [
        ("/opt/x/bin/haq show run", "haq show run"),
        ("haq search --data cifar10:/my/data --seed 1", "haq search --data cifar10:DIR --seed 1"),
        ("haq search --weights=/home/me/w.st", "haq search --weights=w.st"),
        ("haq search --weights ../me/w.st", "haq search --weights w.st"),
        ("haq search --budget latency=50%w8a8", "haq search --budget latency=50%w8a8"),
    ],
)
def test_folders_are_left_out_of_commands(command, published):
    assert publish.without_folders(command) == published


def test_a_finished_run_gets_its_line_in_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/reference").mkdir(parents=True)
    (tmp_path / "results/mine").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text(f"# A\n{tables.BEGIN}\nold\n{tables.END}\nB\n")
    job = parse_job(model="digits_mlp", episodes=2, float_epochs=2, budgets=["avg_weight_bits=6"],
                    train_images=64, val_images=64)  # fmt: skip
    summary = run(job, tmp_path / "results/mine")
    tables.main(["publish", "abc123", "mine"])
    record = read_json(tmp_path / "results/reference/mine.json")
    assert record["commit"] == "abc123"
    assert record["final_test_accuracy"] == summary["final_test_accuracy"]
    assert len(record["trials"]) == 2
    tables.main([])
    text = (tmp_path / "docs/results.md").read_text()
    assert text.startswith("# A\n") and text.endswith("B\n") and "old" not in text
    assert f"| - | avg_weight_bits=6 | guided | {record['evaluations']} |" in text


def test_an_unfinished_run_is_not_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/half"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "summary.json").write_text('{"state": "interrupted"}')
    with pytest.raises(HaqError, match="half is interrupted; only finished runs"):
        publish.publish("half", "abc123")


def test_the_results_show_what_is_published(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    shown = (
        Path("docs/results.md")
        .read_text(encoding="utf-8")
        .partition(tables.BEGIN)[2]
        .partition(tables.END)[0]
    )
    assert shown.strip() == tables.results_table().strip()


def test_no_record_names_a_folder_of_the_machine_that_made_it():
    for path in (Path(__file__).parents[2] / publish.REFERENCE).glob("*.json"):
        for command in re.findall(r'"command": "(.*)"', path.read_text()):
            shown = command.removeprefix("python results/benchmarks/")
            assert publish.without_folders(shown) == shown, path.name


def test_the_page_of_updates_shows_what_is_published(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("docs/updates.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    record = read_json(tables.REFERENCE / "updates.json")
    assert shown.strip() == updates_tables(record)


def test_the_page_of_networks_shows_what_is_published_of_transformers(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("docs/networks.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert shown.strip() == tables.of_transformers()


def test_the_page_of_compression_shows_what_is_published(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("docs/compression.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert shown.strip() == compression_tables(tables.studies())


def test_the_page_of_coverage_shows_what_is_published(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("docs/coverage.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    records = (read_json(tables.REFERENCE / f"{n}.json") for n in ("coverage", "float_islands"))
    assert shown.strip() == coverage_tables(*records)


def test_the_page_of_the_bench_shows_what_is_published(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("docs/bench.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert shown.strip() == tables.of_bench()


def test_the_first_page_shows_what_is_published_of_other_tools(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    page = Path("README.md").read_text(encoding="utf-8")
    shown = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert shown.strip() == tables.of_rivals()


def test_the_table_of_networks_names_what_stands_out():
    stages = {name: {"cpu_s": 1.0} for name in ("calibration", "sensitivities", "export")}
    same = {"equal_answers": 1.0, "outputs_bit_equal": True}
    well = {
        "captured": True, "share_of_weights": 1.0, "stages": stages,
        "agreement": {"w7a8": same, "w4a8": same, "w4a4": same},
    }  # fmt: skip
    other = {**same, "equal_answers": 0.9, "outputs_bit_equal": False}
    rows = {
        "own:a": well,
        "own:b": {
            **well, "share_of_weights": 0.5,
            "agreement": {"w7a8": same, "w4a8": same, "w4a4": other},
        },
        "own:c": {"refused": {"at": "capture", "why": "it branches"}},
    }  # fmt: skip
    page = coverage_tables({"rows": rows, "command": "python x", "machine": {"cpu": "one"}}, None)
    assert "| own (3) | 2 | 1 | 100.0%, 2 of 2 | 100.0%, 2 of 2 | 90.0%, 1 of 2 | 3 (3) |" in page
    assert "own:b 50.0%" in page and "own:b (w4a4) 90.0%" in page
    assert "- own:c: it branches" in page
