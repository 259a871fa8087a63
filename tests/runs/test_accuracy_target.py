"""Searches for the least cost at an accuracy: what is met is verified, and what is not is said."""

import html

import pytest
import torch

import haq
from haq.datasets import load
from haq.errors import HaqError
from haq.models import build
from haq.reports.accuracy_target import accuracy_target_sentence
from haq.reports.record import read_run
from haq.reports.report import report_html
from haq.reports.run_charts import all_charts
from haq.runs.accuracy_target import RISKS
from haq.runs.folder import read_trials
from haq.runs.job import JobError, parse_job
from haq.runs.run import run
from haq.service.pages.fields import fields_of
from haq.training.paired import Paired, largest_drop

TARGET = {"model": "digits_mlp", "float_epochs": 4, "val_images": 300, "rounding_steps": 4,
          "max_drop": 3.0, "episodes": 5}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    return folder, run(parse_job(**TARGET), folder)


def test_a_target_that_is_met_is_verified_on_all_validation_images(finished):
    _, summary = finished
    target = summary["accuracy_target"]
    assert target["met"] and target["bound"] <= 0.03 == target["max_drop"]
    assert target["images"] == len(load("digits").val)
    row = target["verifications"][-1]
    pairs = Paired(target["images"], 1.0, row["lost"], row["gained"])
    assert row["bound"] == largest_drop(pairs, row["risk"]) >= row["drop"] == pairs.drop
    assert 1 <= len(target["verifications"]) <= 3
    assert summary["final_val_accuracy"] == pytest.approx(
        summary["float_val_accuracy"] - target["drop"]
    )
    assert "met: a drop of" in accuracy_target_sentence(target)


def test_the_page_of_the_run_says_what_was_verified(finished):
    folder, summary = finished
    page = report_html(folder)
    assert accuracy_target_sentence(summary["accuracy_target"])[1:] in html.unescape(page)


def test_the_star_of_its_charts_is_the_policy_handed_over(finished):
    folder, summary = finished
    charts = [chart for chart in all_charts(read_run(folder)) if chart.key.startswith("trials")]
    assert charts[0].title == "All trials, by size"
    *_, star = charts[0].figure["data"]
    assert (star["x"], star["y"]) == ([summary["cost"]["size"]], [summary["episode_val_accuracy"]])
    assert "training accuracy" in charts[0].columns


def test_it_costs_less_than_8_bits(finished):
    _, summary = finished
    assert summary["cost"]["size"] < 0.9 * summary["budgets"][0]["limit"]
    assert summary["budgets"][0]["asked"] == "size=100%w8a8"


def test_a_run_that_goes_on_tries_the_same_policies(finished, tmp_path):
    folder, summary = finished
    for name in ("job.json", "float.safetensors", "clips.safetensors", "sensitivity.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(lines[:2]))
    again = run(parse_job(**TARGET), tmp_path)
    assert [t.policy for t in read_trials(tmp_path)] == [t.policy for t in read_trials(folder)]
    assert again["accuracy_target"] == summary["accuracy_target"]


def test_a_target_that_is_not_met_is_reported_as_such(tmp_path):
    job = parse_job(**TARGET | {"budgets": ["avg_weight_bits=2.2"], "pins": {}, "max_drop": 1.5})
    summary = run(job, tmp_path)
    target = summary["accuracy_target"]
    assert not target["met"] and target["bound"] > 0.015
    assert summary["budgets"][0]["achieved"] <= 2.2
    assert "NOT met" in accuracy_target_sentence(target)


def test_too_few_validation_images_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(HaqError, match=r"--max-drop 0.5: 359 validation images show a drop of"):
        run(parse_job(model="digits_mlp", max_drop=0.5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_from_python_and_only_with_labels(tmp_path):
    data = load("digits")
    splits = [split.batch(torch.arange(300)) for split in (data.train, data.val, data.test)]
    model = build("digits_mlp")
    inputs = splits[0][0]
    for arguments in ((model, inputs), (model, splits, lambda network: 1.0)):
        own = {} if len(arguments) == 2 else {"evaluate": arguments[2]}
        with pytest.raises(HaqError, match="max_drop=5 counts labelled images"):
            haq.search(*arguments[:2], max_drop=5, **own, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_is_to_cost_the_least_follows_the_target():
    assert parse_job(max_drop=1).minimise == "size"
    job = parse_job(max_drop=1, target="bismo-edge")
    assert (job.minimise, job.budgets, job.agent) == ("latency", ("latency=100%w8a8",), "ilp")
    assert job.fixed_act_bits is None
    assert parse_job(max_drop=1, minimise="bops", budgets=["size=9kB"]).budgets == ("size=9kB",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_drop": 0}, "--max-drop 0: the accuracy may drop by"),
        ({"max_drop": 101}, "--max-drop 101"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"max_drop": 1, "agent": "ddpg"}, "is solved by ilp, not ddpg"),
        ({"max_drop": 1, "evaluation": "finetune"}, "without fine-tuning"),
        ({"max_drop": 1, "workers": 2}, "one policy after the other"),
        ({"minimise": "size"}, "--minimise size is for --max-drop"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(JobError, match=message):
        parse_job(**fields)


def test_an_unknown_quantity_is_refused(tmp_path):
    job = parse_job(model="digits_mlp", max_drop=2, minimise="speed", budgets=["size=9kB"])
    with pytest.raises(HaqError, match="unknown quantity 'speed'"):
        run(job, tmp_path / "run")


def test_the_form_asks_for_it_without_agent_and_budget():
    form = {"model": "digits_cnn", "agent": "guided", "episodes": "60", "max_drop": "1.5"}
    assert fields_of(form) == {"model": "digits_cnn", "max_drop": "1.5"}
    assert len(RISKS) == 3 and sum(RISKS) == pytest.approx(0.05)
