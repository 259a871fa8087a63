"""What a report says first, its layer table, and that it names no path of a machine."""

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from haq.allocation.budgets import Budget
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import Sensitivity
from haq.network.layers import Layer
from haq.reports.headline import cards, headline, history_of_float
from haq.reports.names import names_of_paths, scrubbed, without_folder
from haq.reports.page import Section, render
from haq.reports.record import read_run
from haq.reports.report import report_fragments, report_html
from haq.reports.side_by_side import side_by_side
from haq.reports.steps import Step, steps
from haq.reports.summary import summary_section
from haq.runs import folder as results
from haq.runs.figures import write_figures
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.runs.tested import packed_bits, read_tested, unpacked_bits

SMALL = {"model": "digits_mlp", "float_epochs": 1, "val_images": 60, "train_images": 64,
         "final_epochs": 0, "threads": 1, "rounding_steps": 0}  # fmt: skip

LARGEST = 1_500_000
"""Bytes of a page."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headline") / "mine"
    folder.mkdir()
    run(parse_job(**SMALL, agent="ilp", budgets=["avg_weight_bits=4"]), folder)
    write_figures(folder, lambda _: None)
    return folder


class Cards(HTMLParser):
    """The cards of a page: label to value and note."""

    def __init__(self, text):
        super().__init__()
        self.cards, self._label, self._open = {}, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        kind = dict(attrs).get("class", "")
        if tag in ("dt", "dd"):
            self._open = "label" if tag == "dt" else kind
            self._label = "" if tag == "dt" else self._label

    def handle_data(self, data):
        if self._open == "label":
            self._label += data
        elif self._open in ("value", "note") and self._label:
            parts = self.cards.setdefault(self._label, {"value": "", "note": ""})
            parts[self._open] += data

    def handle_endtag(self, tag):
        if tag in ("dt", "dd"):
            self._open = ""


def test_the_cards_say_what_the_run_says(folder):
    summary, shown = results.read_json(folder / "summary.json"), Cards(report_html(folder)).cards
    drop = 100 * summary["test_drop"]["drop"]
    change = shown["Test accuracy against float"]
    assert float(change["value"].split()[0]) == pytest.approx(-drop, abs=0.006)
    low, high = (-100 * end for end in reversed(summary["test_drop"]["interval"]))
    assert f"95 % interval {low:+.2f} to {high:+.2f}" in change["note"]
    assert f"{summary['test_set']['images']} test inputs" in change["note"]
    budget = summary["budgets"][0]
    assert shown["Budget on average bits"]["value"].strip() == f"{budget['achieved']:.4g} bits"
    assert "Against best uniform bits" in shown and "Size" in shown
    assert shown["Checked in"]["value"].strip() == "PyTorch"


def test_the_first_sentences_hold_the_answer(folder):
    record = read_run(folder)
    text = headline(record, side_by_side(record))
    summary = record.summary
    assert text.startswith("The best policy of digits_mlp has ")
    assert f"It has {summary['final_test_accuracy']:.2%} test accuracy" in text
    assert "times smaller than float" in text and "uniform bits" in text


def test_sentences_and_cards_by_hand(folder):
    record = read_run(folder)
    uniform = {
        "weight_bits": 3, "act_bits": 8, "lowered": 0, "cost": {"size": 5000.0}, "same": False,
        "images": 400, "apart": True, "tuned": True, "own": 0.8, "uniform": 0.77,
        "interval": [0.01, 0.05],
    }  # fmt: skip
    budget = {"quantity": "size", "unit": "bytes", "limit": 8000.0, "achieved": 6000.0}
    known = {
        "final_test_accuracy": 0.9, "float_test_accuracy": 0.95, "uniform_reference": uniform,
        "budgets": [budget],
    }  # fmt: skip
    of_hand = replace(record, summary={**record.summary, **known})
    costs = {"size": (32_000.0, 8000.0, 4000.0)}
    text = headline(of_hand, costs)
    assert "90.00% test accuracy, 5.00 points below float (95.00%)" in text
    higher = replace(of_hand, summary={**of_hand.summary, "final_test_accuracy": 0.97})
    assert "97.00% test accuracy, 2.00 points above float (95.00%)" in headline(higher, costs)
    assert "8.0 times smaller than float" in text
    assert "better than the best uniform bits within the budgets: +3.00 points (+1.00 to" in text
    shown = {card.label: card for card in cards(of_hand, costs)}
    against = shown["Against best uniform bits"]
    assert against.value == "+3.00 points"
    assert against.note.startswith("95 % interval +1.00 to +5.00; 80.00% against 77.00% of 3-bit")
    assert shown["Budget on size"].note == "75.0% of the limit, 8 kB"
    assert shown["Budget on size"].share == 0.75
    assert shown["Size"].note == "8.0 times smaller than float (32 kB)"
    rows = summary_section(of_hand).tables[0].rows
    compared = next(row for row in rows if row[0].text == "fine-tuned, as compared")
    assert [cell.text for cell in compared[3:]] == ["77.00%", "80.00%"]
    sizes = next(row for row in rows if row[0].text == "size")
    assert sizes[3].text == "5 kB"  # of the uniform bits
    tests = next(row for row in rows if row[0].text == "test accuracy")
    assert (tests[1].text, tests[3].text, tests[4].text) == ("95.00%", "–", "90.00%")  # noqa: RUF001


def test_the_interval_of_the_drop_is_of_pairs(folder):
    summary, right = results.read_json(folder / "summary.json"), read_tested(folder)
    assert set(right) == {"float", "final"}
    for of, name in (("float", "float"), ("final", "final")):
        share = float(right[name].double().mean())
        assert share == pytest.approx(summary[f"{of}_test_accuracy"])
    lost = int((right["float"] & ~right["final"]).sum())
    assert summary["test_drop"]["lost"] == lost


def test_float_has_all_its_channels_where_the_run_has_fewer(tmp_path):
    asked = {"model": "digits_cnn", "widths": [1.0, 0.5], "budgets": ["size=2.2kB"]}
    run(parse_job(**SMALL | asked, agent="ilp", episodes=1), tmp_path)
    record = read_run(tmp_path)
    assert record.planned is not None and min(bits.keep for bits in record.policy.values()) < 1
    costs = side_by_side(record)
    assert costs["size"][0] == 4 * sum(
        layer.weights + layer.biases for layer in record.planned.table.layers)  # fmt: skip
    assert costs["bops"][0] == 16 * costs["bops"][1]  # 32 * 32 against 8 * 8
    elsewhere = replace(record, planned=None)  # where the model cannot be made again
    assert side_by_side(elsewhere)["size"][0] is None
    assert "smaller than float" not in headline(elsewhere, side_by_side(elsewhere))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_truth_values_come_back_from_json(count):
    right = torch.arange(count) % 3 == 0
    assert torch.equal(unpacked_bits(json.loads(json.dumps(packed_bits(right)))), right)


def test_an_older_run_is_compared_with_uniform_bits_when_it_is_inspected(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    summary = results.read_json(folder / "summary.json")
    older = {name: value for name, value in summary.items() if name != "uniform_reference"}
    results.write_json(tmp_path / "summary.json", older)
    assert Cards(report_html(tmp_path)).cards["Against best uniform bits"]["note"] == (
        "not evaluated in this run"
    )
    write_figures(tmp_path, lambda _: None)
    again = results.read_json(tmp_path / "summary.json")["uniform_reference"]
    assert again == summary["uniform_reference"]


def test_a_float_network_that_has_seen_the_validation_images_is_named(folder):
    record = read_run(folder)
    seen = {"float_val_accuracy": 0.968, "float_test_accuracy": 0.882,
            "test_set": {"images": 10_000}}  # fmt: skip
    changed = type(record)(**{**vars(record), "summary": {**record.summary, **seen}})
    # 60 images: 3 sqrt(.882 x .118 (1/60 + 1/10000)) = 12.5 points, above the 8.6 between both.
    few = record.job.model_copy(update={"val_images": 60})
    assert history_of_float(type(record)(**{**vars(changed), "job": few})) == ""
    many = record.job.model_copy(update={"val_images": 2500})
    text = history_of_float(type(record)(**{**vars(changed), "job": many}))
    assert "more apart than chance explains" in text


LAYERS = (Layer("a", "conv", 1, 1, weights=1), Layer("b", "linear", 1, 1, weights=1))


def table(choices):
    """Return a table in which a layer costs as many bytes as its weights have bits."""
    rows = {name: np.array([float(b.weight) for b in pairs]) for name, pairs in choices.items()}
    return CostTable(LAYERS, choices, {"size": rows}, {"size": "bytes"})


CHOICES = {"a": (Bits(2, 8), Bits(4, 8), Bits(8, 8)), "b": (Bits(8, 8),)}


def test_steps_by_hand():
    every = table({name: tuple(Bits(w, 8) for w in (2, 4, 8)) for name in "ab"})
    known = Sensitivity("kl", 4, {"a": {2: 0.3, 4: 0.1}, "b": {}}, {})
    policy = {"a": Bits(4, 8), "b": Bits(8, 8)}
    found = steps(table(CHOICES), every, policy, [Budget("size", 15.0)], known)
    assert found["a"] == Step("weights", 2, pytest.approx(2 / 12), pytest.approx(3), "budget")
    assert found["b"] == Step("weights", 4, pytest.approx(4 / 12), None, "pinned")


@pytest.mark.parametrize(
    "bits, limit, reason",
    [(2, 99.0, "fewest bits"), (8, 99.0, "most bits"), (4, 99.0, ""), (4, 13.0, "budget")],
)
def test_what_holds_a_layer(bits, limit, reason):
    policy = {"a": Bits(bits, 8), "b": Bits(8, 8)}
    found = steps(table(CHOICES), table(CHOICES), policy, [Budget("size", limit)])
    assert found["a"].reason == reason


@pytest.mark.parametrize(
    "spec, name",
    [
        ("resnet20", "resnet20"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("hf:/home/me/nets/MiniLM", "hf:MiniLM"),
        ("onnx:nets/net.onnx", "onnx:net.onnx"),
        ("folder:C:\\data\\photos", "folder:photos"),
        ("cifar10:/data/cifar10", "cifar10"),
        ("table:/boards/mine.csv", "table:mine.csv"),
        ("my.module:Net", "my.module:Net"),
        ("", ""),
    ],
)
def test_names_without_folders(spec, name):
    assert without_folder(spec) == name


def test_paths_become_names_the_longest_first(tmp_path):
    names = names_of_paths([{"data": f"folder:{tmp_path}/photos"}], [tmp_path / "runs" / "one"])
    texts = [f"cannot read {tmp_path}/photos/a.png", f"see {tmp_path}/runs/one/job.json", "w4/a8"]
    assert scrubbed(texts, names) == ["cannot read photos/a.png", "see one/job.json", "w4/a8"]
    assert scrubbed(f"{os.path.expanduser('~')}/x", names) in ("~/x", "./x")


def test_pages_are_made_for_a_user_without_a_home(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "~" not in names_of_paths([], [])


def test_no_page_names_a_path_of_the_machine(folder):
    record = read_run(folder)
    weights = str(folder.parent / "nets" / "net.safetensors")
    job = record.job.model_copy(update={"weights": weights, "float_epochs": None})
    results.write_job(folder, job)
    summary = results.read_json(folder / "summary.json")
    noted = summary | {"notes": [f"read from {weights} and {folder}/clips.safetensors"]}
    results.write_json(folder / "summary.json", noted)
    pages = [report_html(folder), json.dumps(report_fragments(folder))]
    results.write_json(folder / "summary.json", summary)
    results.write_job(folder, record.job)
    assert "read from net.safetensors and mine/clips.safetensors" in pages[0]
    for page in pages:
        assert str(folder.parent) not in page and os.getcwd() not in page
        assert os.path.expanduser("~") + os.sep not in page


def test_a_page_is_small_even_after_a_long_search(folder, tmp_path):
    assert len(report_html(folder).encode()) < LARGEST
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    line = json.loads((folder / "trials.jsonl").read_text().splitlines()[0])
    many = [json.dumps(line | {"episode": at}) for at in range(600)]
    (tmp_path / "trials.jsonl").write_text("\n".join(many) + "\n")
    assert len(report_html(tmp_path).encode()) < LARGEST


def test_what_there_is_nothing_of_has_no_section(folder):
    page = report_html(folder)
    shown = re.findall(r'<section id="([^"]+)"', page)
    assert shown == ["summary", "bits", "trials", "shares", "sensitivity", "layers", "provenance"]
    assert "Left out: there is no roofline" in page


def test_a_page_without_charts_has_no_script_that_draws():
    assert len(render("A", "b", [Section("a", "A")])) < 30_000


@pytest.mark.parametrize("field", ["final_test_accuracy", "float_test_accuracy"])
def test_a_test_value_that_is_no_number_is_not_said(folder, field):
    record = read_run(folder)
    odd = replace(record, summary={**record.summary, field: math.nan})
    shown = cards(odd, side_by_side(odd))
    assert shown[0].label == "Validation accuracy"
    assert "nan" not in headline(odd, side_by_side(odd)) + str(shown)


def test_unfinished_runs_have_no_checked_card(folder):
    record = read_run(folder)
    running = {**record.summary, "state": "running"}
    for key in ("final_test_accuracy", "float_test_accuracy", "final_val_accuracy"):
        running.pop(key)
    changed = type(record)(**{**vars(record), "summary": running})
    labels = [card.label for card in cards(changed, side_by_side(changed))]
    assert labels[0].startswith("Best validation accuracy") and "Checked in" not in labels
