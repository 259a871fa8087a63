"""The report of a run, without a browser: its charts, sentences, and the page's text."""

import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import haq
from haq.allocation.budgets import Budget
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import Sensitivity
from haq.allocation.trials import Trial
from haq.errors import HaqError, RunError
from haq.network.layers import Layer
from haq.reports.charts.bits import bits_chart
from haq.reports.charts.progress import progress_chart
from haq.reports.charts.roofline import roofline_chart
from haq.reports.charts.sensitivity import sensitivity_chart
from haq.reports.charts.shares import shares_chart
from haq.reports.charts.theme import KINDS, THEMES, Chart, colored
from haq.reports.charts.trials import trials_chart
from haq.reports.page import Section, plain, render
from haq.reports.pictures import draw
from haq.reports.reasons import reasons, why
from haq.reports.record import read_run
from haq.reports.report import report_fragments, report_html
from haq.reports.run_charts import all_charts, moved_bytes, noise
from haq.reports.side_by_side import side_by_side
from haq.runs import folder as results
from haq.runs.figures import write_figures
from haq.runs.job import parse_job
from haq.runs.run import run

SMALL = {"model": "digits_mlp", "agent": "ddpg", "evaluation": "finetune",
         "reward": "metric", "episodes": 3, "float_epochs": 1, "val_images": 60,
         "train_images": 64, "final_epochs": 1, "threads": 1}  # fmt: skip


def silent(_):
    pass


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    folder.mkdir()
    run(parse_job(**SMALL, budgets=["avg_weight_bits=6"]), folder)
    return folder


@pytest.fixture(scope="module")
def target_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target") / "run"
    folder.mkdir()
    asked = {"model": "digits_cnn", "target": "bismo-edge", "budgets": ["latency=60%w8a8"]}
    run(parse_job(**SMALL | asked), folder)
    write_figures(folder, silent)
    return folder


class Outline(HTMLParser):
    """What a page refers to and how it is built."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.headings, self.plots = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.headings += [tag] if tag in ("h1", "h2", "h3") else []
        self.plots += (
            [attributes["aria-label"]] if "plot" in attributes.get("class", "").split() else []
        )


def test_a_page_has_all_that_the_run_found(target_run):
    outline = Outline(report_html(target_run))
    charts = {f"chart-{key}" for key in ("bits", "shares", "sensitivity", "roofline", "trials",
                                         "progress")}  # fmt: skip
    assert charts <= set(outline.ids)
    assert {"summary", "comparison", "layer-table", "provenance"} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))


def test_a_page_refers_to_nothing_outside(target_run):
    links = Outline(report_html(target_run)).links
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_every_chart_has_a_text_in_its_place(target_run):
    page, charts = report_html(target_run), all_charts(read_run(target_run))
    labels = Outline(page).plots
    assert len(labels) == len(charts)
    for chart in charts:
        assert any(label.startswith(chart.title) and chart.sentence in label for label in labels)
        assert chart.rows and all(len(row) == len(chart.columns) for row in chart.rows)


def test_the_bits_are_those_of_the_policy(target_run):
    figure = bits_chart(results.read_json(target_run / "summary.json")["layers"]).figure
    policy = haq_policy(target_run)
    for axis, at in (("y", 0), ("y2", 1)):
        drawn = {
            name: bits
            for trace in figure["data"] if trace["yaxis"] == axis
            for name, bits in zip(trace["x"], trace["y"], strict=True)
        }  # fmt: skip
        assert drawn == {name: bits[at] for name, bits in policy.items()}


def haq_policy(folder):
    content = json.loads((folder / "policy.json").read_text())["layers"]
    return {name: (item["weight"], item["activation"]) for name, item in content.items()}


def test_kinds_differ_in_color_pattern_and_sign():
    layers = [row(name=kind, kind=kind) for kind in KINDS]
    traces = [trace for trace in bits_chart(layers).figure["data"] if trace["yaxis"] == "y"]
    assert len({trace["marker"]["color"] for trace in traces}) == len(KINDS)
    assert len({trace["marker"]["pattern"]["shape"] for trace in traces}) == len(KINDS)
    assert len({symbol for _, symbol in KINDS.values()}) == len(KINDS)


def row(name="a", kind="conv", weight=4, act=8, cost=None, eight=None):
    return {"name": name, "kind": kind, "weight_bits": weight, "act_bits": act, "params": 10,
            "macs": 100, "cost": cost or {}, "cost_w8a8": eight or {}}  # fmt: skip


def test_shares_by_hand():
    layers = [row("a", cost={"size": 1.0}, eight={"size": 6.0}),
              row("b", cost={"size": 3.0}, eight={"size": 2.0})]  # fmt: skip
    chart = shares_chart(layers, {"size": "bytes"})
    assert chart.rows == [["a", 0.75, 0.25], ["b", 0.25, 0.75]]
    assert chart.sentence == "The largest shares now: b has 75% of the size (25% at 8 bits)."


def test_a_share_that_the_target_cannot_tell_is_left_out():
    layers = [row("a", cost={"latency": 1.0}, eight={"latency": None})]
    chart = shares_chart(layers, {"latency": "us"})
    assert chart.rows == [["a", None, 1.0]]


SENSITIVITY = Sensitivity(
    "kl", 4, {"a": {2: 0.1, 4: 0.01}, "b": {2: 0.001, 4: 0.0}}, {"a": {}, "b": {4: 0.5}}
)


def test_the_chosen_cells_are_marked():
    layers = [row("a", weight=2, act=8), row("b", weight=4, act=4)]
    weights, chosen, acts, chosen_acts = sensitivity_chart(layers, SENSITIVITY).figure["data"]
    assert weights["customdata"] == [[0, 0.1], [1, 0.01], [0, 0.001], [1, 0.0]]
    assert weights["y"] == ["a", "a", "b", "b"]
    assert weights["marker"]["color"] == [-1, -2, -3, weights["marker"]["cmin"]]
    assert (chosen["x"], chosen["y"]) == ([0.5, 1.5], ["a", "b"])
    assert (acts["customdata"], acts["y"]) == ([[0, 0.5]], ["b"])
    assert (chosen_acts["x"], chosen_acts["y"]) == ([0.5], ["b"])


def test_only_what_was_measured_is_drawn():
    known = Sensitivity("kl", 4, {"a": {2: 0.1}}, {"a": {}})
    figure = sensitivity_chart([row("a")], known).figure
    assert [trace["type"] for trace in figure["data"]] == ["bar", "scatter"]


def test_a_roofline_by_hand():
    point = {"name": "a", "kind": "conv",
             "run": {"bits": "w4a8", "intensity": 2.0, "attained": 5.0,
                     "ceiling": 20.0}}  # fmt: skip
    chart = roofline_chart([point], {"w4a8": (100.0, 10.0)})
    roof = chart.figure["data"][0]
    assert dict(zip(roof["x"], roof["y"], strict=True)) == {1.0: 10.0, 4.0: 40.0}
    assert chart.rows == [["a", "conv", "w4a8", 2.0, 5.0, 0.25]]


def test_bytes_moved_by_hand():
    layer = Layer("a", "conv", c_in=3, c_out=8, in_size=(4, 4), weights=216)
    assert moved_bytes(layer, Bits(2, 4), batch=2) == 216 * 2 / 8 + 2 * 3 * 16 * 4 / 8


def test_no_layer_is_above_its_roof(target_run):
    (chart,) = (c for c in all_charts(read_run(target_run)) if c.key == "roofline")
    assert all(0 < share <= 1 for *_, share in chart.rows)
    assert [name for name, *_ in chart.rows] == list(haq_policy(target_run))


def trial(episode, accuracy, size, reward=0.0):
    return Trial(episode, {"a": Bits(8, 8)}, {"size": size}, accuracy, math.nan, reward, 1.0)


def test_progress_by_hand():
    trials = [trial(0, 0.5, 1.0, -2.0), trial(1, 0.4, 1.0, -3.0), trial(2, 0.9, 1.0, 2.0)]
    chart = progress_chart(trials, [None, None, 0.5], "validation accuracy")
    reward, top, sigma = chart.figure["data"]
    assert (reward["y"], top["y"], sigma["y"]) == ([-2, -3, 2], [-2, -2, 2], [None, None, 0.5])
    assert chart.rows[1] == [1, -3.0, 0.4, 0.5, None]


def test_the_front_by_hand():
    trials = [trial(0, 0.9, 10.0), trial(1, 0.8, 5.0), trial(2, 0.7, 7.0)]
    chart = trials_chart(trials, "size", "bytes", "validation accuracy", limit=12.0)
    cloud, front, chosen = chart.figure["data"]
    assert (cloud["x"], cloud["y"]) == ([10, 5, 7], [0.9, 0.8, 0.7])
    assert (front["x"], front["y"]) == ([5, 10], [0.8, 0.9])
    assert (chosen["x"], chosen["text"]) == ([10], ["0"])
    assert [shape["x0"] for shape in chart.figure["layout"]["shapes"]] == [12.0]


def test_trials_that_were_stopped_are_told_apart():
    stopped = dataclasses.replace(trial(1, 0.95, 5.0), stopped=True)
    chart = trials_chart([trial(0, 0.9, 10.0), stopped], "size", "bytes", "score")
    cloud, front, chosen = chart.figure["data"]
    assert cloud["marker"]["symbol"] == ["circle", "x-thin-open"]
    assert (front["x"], chosen["x"]) == ([10], [10])
    assert "Crosses are estimates" in chart.sentence


def test_the_finalist_chosen_is_marked_though_another_was_better():
    trials = [trial(0, 0.9, 10.0), trial(1, 0.8, 5.0)]
    *_, chosen = trials_chart(trials, "size", "bytes", "score", chosen=trials[1]).figure["data"]
    assert chosen["text"] == ["1"]


def test_a_policy_that_none_of_the_trials_had_is_marked_where_it_stands():
    trials = [trial(0, 0.9, 10.0), trial(1, 0.8, 5.0)]
    raised = trial(2, 0.95, 13.0)
    chart = trials_chart(trials, "size", "bytes", "score", chosen=raised)
    cloud, front, chosen = chart.figure["data"]
    assert (chosen["x"], chosen["y"]) == ([13], [0.95])
    assert cloud["x"] == [10, 5] and 13 not in front["x"]
    assert "The chosen one (found after them) needs 13 bytes." in chart.sentence


def test_a_cheap_search_with_finalists_has_a_page(tmp_path):
    asked = {"agent": "ilp", "evaluation": "cheap", "finalists": 2}
    summary = run(parse_job(**SMALL | asked, budgets=["avg_weight_bits=6"]), tmp_path)
    page = report_html(tmp_path)
    assert 'id="finalists"' in page and 'id="chart-sensitivity"' in page
    found = read_run(tmp_path)
    assert found.policy == {row["name"]: (row["weight_bits"], row["act_bits"])
                            for row in summary["layers"]}  # fmt: skip


def test_the_noise_is_that_of_the_schedule(plain_run):
    found = read_run(plain_run)
    assert noise(found) == [None] * 3  # uniform actions in the first 20 episodes
    job = found.job.model_copy(update={"episodes": 40})
    longer = [trial(episode, 0.5, 1.0) for episode in range(40)]
    sigmas = noise(type(found)(found.folder, job, {}, longer, {}))
    assert sigmas[:20] == [None] * 20
    assert sigmas[20] == 0.5
    assert sigmas[39] == pytest.approx(0.05)
    guided = job.model_copy(update={"agent": "guided"})
    sigmas = noise(type(found)(found.folder, guided, {}, longer, {}))
    assert (sigmas[0], sigmas[39]) == (0.12, pytest.approx(0.05))


CHOICES = {"a": (Bits(2, 8), Bits(4, 8), Bits(8, 8)), "b": (Bits(8, 8),)}
LAYERS = (Layer("a", "conv", 1, 1, weights=1), Layer("b", "linear", 1, 1, weights=1))


def table(choices):
    """Return a table in which a layer costs as many bytes as its weights have bits."""
    rows = {name: np.array([float(b.weight) for b in pairs]) for name, pairs in choices.items()}
    return CostTable(LAYERS, choices, {"size": rows}, {"size": "bytes"})


def test_reasons_by_hand():
    every = table({name: tuple(Bits(w, 8) for w in (2, 4, 8)) for name in "ab"})
    policy = {"a": Bits(4, 8), "b": Bits(8, 8)}
    known = Sensitivity("kl", 4, {"a": {2: 0.3, 4: 0.1}, "b": {}}, {})
    found = reasons(table(CHOICES), every, policy, [Budget("size", 15.0)], known)
    assert found == {
        "a": "Weights at 4 bits: 2 would save 2 bytes (16.7% of the size) and raise the KL "
        "divergence 3 times, to 0.3, and 8 would not fit the budget.",
        "b": "Fixed by the job at w8a8; weights at 8 bits: 4 would save 4 bytes (33.3% of the "
        "size).",
    }


def test_the_lowest_bits_say_what_more_would_cost():
    policy = {"a": Bits(2, 8), "b": Bits(8, 8)}
    found = reasons(table(CHOICES), table(CHOICES), policy, [Budget("size", 99.0)])
    assert found["a"] == (
        "Weights at 2 bits: there are no fewer to choose, and 4 would cost 2 bytes "
        "(20.0% of the size)."
    )
    assert found["b"] == "Fixed by the job at w8a8."


def test_layers_that_share_a_tensor_move_together():
    layers = tuple(Layer(name, "conv", 1, 1, reads="a") for name in "ab")
    choices = {name: (Bits(8, 4), Bits(8, 8)) for name in "ab"}
    rows = {"size": {name: np.array([1.0, 2.0]) for name in "ab"}}
    shared = CostTable(layers, choices, rows, {"size": "bytes"})
    policy = dict.fromkeys("ab", Bits(8, 8))
    found = reasons(shared, shared, policy, [Budget("size", 4.0)])
    assert found["b"] == (
        "Activations (shared by a and b) at 8 bits: 4 would save 2 bytes (50.0% of the size)."
    )


def test_a_float_layer_says_what_integers_would_change():
    choices = {"a": (Bits(8, 8), Bits(32, 32)), "b": (Bits(8, 8),)}
    policy = {"a": Bits(32, 32), "b": Bits(8, 8)}
    found = reasons(table(choices), table(choices), policy, [Budget("size", 99.0)])
    assert found["a"] == "Float: w8a8 would save 24 bytes (60.0% of the size)."


def test_every_layer_has_a_reason(target_run):
    sentences = report_fragments(target_run)["reasons"]
    assert list(sentences) == list(haq_policy(target_run))
    assert all("KL divergence" in sentence for sentence in sentences.values())


def test_side_by_side_by_hand(plain_run):
    costs = side_by_side(read_run(plain_run))
    weights, biases, outputs = 64 * 64 + 64 * 48 + 48 * 32 + 32 * 10, 154, 154
    assert costs["avg_weight_bits"][:2] == (32, 8)
    assert costs["size"][0] == 4 * (weights + biases)
    assert costs["size"][1] == weights + 4 * outputs + 4 * biases


def test_the_network_at_8_bits_is_measured_as_the_run_measures(target_run):
    found = results.read_json(target_run / "uniform.json")
    summary = results.read_json(target_run / "summary.json")
    for name in ("val_accuracy", "test_accuracy"):
        assert found[name] == pytest.approx(summary[f"float_{name}"], abs=0.05)


def test_measuring_twice_changes_nothing(target_run):
    names = ("sensitivity.json", "uniform.json")
    before = [(target_run / name).stat().st_mtime_ns for name in names]
    write_figures(target_run, silent)
    assert [(target_run / name).stat().st_mtime_ns for name in names] == before


def test_a_run_without_a_target_says_why_it_has_no_roofline(plain_run):
    page = report_html(plain_run)
    assert "chart-roofline" not in Outline(page).ids
    assert "There is no roofline: the run has no target." in page
    assert "haq inspect measures them" in page


def test_an_unfinished_run_has_a_page(plain_run, tmp_path):
    for name in ("job.json", "trials.jsonl", "policy.json"):
        (tmp_path / name).write_bytes((plain_run / name).read_bytes())
    lines = (plain_run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(lines[0] + lines[1][:30])
    assert "No episode has been finished yet." in report_html(tmp_path)
    summary = results.read_json(plain_run / "summary.json")
    unknown = ("final_val_accuracy", "final_test_accuracy", "float_test_accuracy")
    running = {k: v for k, v in summary.items() if k not in unknown} | {
        "state": "running",
        "best_episode": 0,
    }
    results.write_json(tmp_path / "summary.json", running)
    page = report_html(tmp_path, live=True)
    assert "1 of 3 episodes · running" in page
    assert '"reload_s":10' in page
    assert '"reload_s":0' in report_html(plain_run, live=True)


def test_a_model_of_ones_own_has_a_page_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    haq.search(model, torch.randn(32, 8), evaluate=lambda network: 12.5, out=tmp_path / "own",
               episodes=2, budgets=["size=280B"], pins={"0": 8, "4": 8})  # fmt: skip
    page = report_html(tmp_path / "own")
    assert "unknown model &#39;Sequential&#39;" in page
    assert ">validation score<" in page
    assert 'categoryarray":["0","2","4"]' in page
    found = why(read_run(tmp_path / "own", model))
    assert found["0"].startswith(
        "Fixed by the job at w8a8; weights at 8 bits: 7 would save 8 bytes"
    )
    assert ">pinned<" in report_html(tmp_path / "own", model=model)


def test_a_damaged_file_is_named(plain_run, tmp_path):
    for path in plain_run.iterdir():
        if path.suffix in (".json", ".jsonl"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sensitivity.json").write_text("{")
    with pytest.raises(RunError, match="sensitivity.json"):
        report_html(tmp_path)


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script>"
    chart = bits_chart([row(name=evil)])
    page = render(evil, evil, [Section("a", evil, charts=[[chart]])])
    assert evil not in page
    content = re.search(r'id="content">(.*?)</script>', page)[1]
    assert json.loads(content)["figures"]["bits"]["data"][0]["x"] == [evil]


def test_what_is_no_number_becomes_null():
    chart = Chart("a", "A", "s", {"data": [{"y": (math.nan, 1.0)}], "layout": {}}, ("x",), [[1]])
    assert plain(chart.figure)["data"][0]["y"] == [None, 1.0]


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ground", ["--page", "--panel"])
def test_text_is_readable_on_every_ground(theme, ground):
    colors = THEMES[theme]
    for name in ("--ink", "--soft", "--accent", *(f"--{kind}" for kind in KINDS)):
        light, dark = sorted((luminance(colors[name]), luminance(colors[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def strings(value):
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("theme", THEMES)
def test_every_color_has_a_value_in_both_themes(target_run, theme):
    for chart in all_charts(read_run(target_run)):
        drawn = strings(colored(chart.figure, THEMES[theme]))
        assert not [text for text in drawn if text.startswith("--")]


def test_fragments_are_json(target_run):
    found = report_fragments(target_run)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["state"] == "finished"
    assert set(found["charts"]["bits"]) == {"title", "sentence", "figure", "columns", "rows"}
    assert found["missing"] == {}


def test_what_was_measured_in_onnx_runtime_is_told(plain_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(plain_run, folder)
    times = {"this": {"value": 30.0}, "fp32": {"value": 60.0}, "quantize_static": {"value": 25.0}}
    onnx = {
        "test_images": 100, "onnxruntime_test_accuracy": 0.75, "torch_test_accuracy": 0.76,
        "compared_images": 100, "top1_agreement": 0.99, "latency": {"unit": "us", **times},
    }  # fmt: skip
    results.write_json(folder / "onnx.json", onnx)
    summary = results.read_json(folder / "summary.json")
    clock = {"unit": "us", "value": 8.0, "low": 7.5, "high": 8.5, "predicted": 9.0, "budget": 10.0}
    results.write_json(folder / "summary.json", summary | {"measured_latency": clock})
    text = report_html(folder)
    assert "99.00% of 100 answers are PyTorch&#39;s" in text
    assert "test accuracy 75.00% there, 76.00% here" in text
    assert "predicted 9 µs, budget 10 µs" in text
    assert "Latency, measured" in text
    results.write_json(folder / "summary.json", summary)
    text = report_html(folder)
    assert "0.50 of float, 1.20 of quantize_static at 8 bits; one thread" in text
    assert "Latency in ONNX Runtime, measured" in text


def test_pictures_without_a_browser_are_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(HaqError, match="--png draws with Chromium or Chrome, and there is none"):
        draw([bits_chart([row()])], tmp_path / "png")
    assert not (tmp_path / "png").exists()
