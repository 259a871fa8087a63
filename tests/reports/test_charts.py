"""What every kind of chart owes: it is drawn of one point, of few and of many, without a NaN."""

import json
import math

import pytest

from haq.allocation.policy import Bits
from haq.allocation.sensitivities import Sensitivity
from haq.allocation.trials import Trial
from haq.reports.charts.best import best_so_far_chart
from haq.reports.charts.bits import bits_chart
from haq.reports.charts.front import front_chart
from haq.reports.charts.heat import cells, column_axis, row_axis
from haq.reports.charts.policies import policies_chart
from haq.reports.charts.progress import progress_chart
from haq.reports.charts.roofline import roofline_chart
from haq.reports.charts.sensitivity import sensitivity_chart
from haq.reports.charts.shares import shares_chart
from haq.reports.charts.trials import trials_chart
from haq.reports.page import PLOTLY, Section, plain, plotly_js, render


def layers(count):
    return [
        {"name": f"layer.{at}", "kind": "conv", "weight_bits": 2 + at % 7, "act_bits": 8,
         "cost": {"size": float(at), "latency": None if at else 1.0},
         "cost_w8a8": {"size": 9.0 + at}}
        for at in range(count)
    ]  # fmt: skip


def trials(count):
    return [
        Trial(at, {"a": Bits(8, 8)}, {"size": 10.0 + at % 5}, math.nan if at == 3 else 0.5,
              math.nan, math.nan if at == 3 else 0.1 * at, 1.0, stopped=at == 2)
        for at in range(count)
    ]  # fmt: skip


def rows(count):
    return [
        {"run": f"r{at}", "agent": "ilp" if at % 2 else "uniform", "seed": 0,
         "budget": f"size={at}", "size": float(at), "final_test_accuracy": 0.5 + 0.001 * at,
         "units": {"size": "bytes"}, "float_test_accuracy": 0.9}
        for at in range(count)
    ]  # fmt: skip


def known(count):
    weights = {f"layer.{at}": {2: 0.0 if at == 1 else 0.1, 8: 1e-9} for at in range(count)}
    return Sensitivity("kl", 4, weights, {f"layer.{at}": {} for at in range(count)})


def point(at):
    mark = {"bits": "w4a4", "intensity": 1.0 + at, "attained": 5.0, "ceiling": 20.0}
    return {"name": f"layer.{at}", "kind": "conv", "run": mark}


CHARTS = {
    "bits": lambda n: bits_chart(layers(n)),
    "shares": lambda n: shares_chart(layers(n), {"size": "bytes", "latency": "us"}),
    "sensitivity": lambda n: sensitivity_chart(layers(n), known(n)),
    "roofline": lambda n: roofline_chart([point(k) for k in range(n)], {"w4a4": (100.0, 10.0)}),
    "trials": lambda n: trials_chart(trials(n), "size", "bytes", "validation accuracy", 12.0, 0.9,
                                     finished=0.6),
    "progress": lambda n: progress_chart(trials(n), [None] * (n - 1) + [0.1], "accuracy"),
    "best": lambda n: best_so_far_chart({"one": trials(n)}),
    "front": lambda n: front_chart(rows(n), "size", "final_test_accuracy", "uniform"),
    "policies": lambda n: policies_chart(["one", "two"], [layers(n)] * 2, "weight_bits"),
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 60])
@pytest.mark.parametrize("kind", CHARTS)
def test_a_chart_is_drawn_of_any_number_of_points(kind, count):
    chart = CHARTS[kind](count)
    text = json.dumps(plain(chart.figure), allow_nan=False)  # refuses what is no number
    assert chart.figure["data"] and "NaN" not in text and "nan" not in chart.sentence
    assert all(len(row) == len(chart.columns) for row in chart.rows)
    assert f"chart-{chart.key}" in render("A", "b", [Section("a", "A", charts=[[chart]])])


@pytest.mark.parametrize("kind", ["trials", "progress", "best", "front"])
def test_a_single_point_is_visible(kind):
    """A line of one point has no length: something must be a marker."""
    modes = [trace.get("mode", "") for trace in CHARTS[kind](1).figure["data"]]
    assert any("markers" in mode for mode in modes)


def test_only_traces_that_the_small_bundle_knows():
    for chart in CHARTS.values():
        assert {trace["type"] for trace in chart(3).figure["data"]} <= {"scatter", "bar"}


def test_a_map_of_nothing_is_an_empty_trace():
    trace = cells(["a"], [[None]], [[None]], (0, 1))
    assert trace["x"] == trace["customdata"] == []
    assert cells([], [], [], (0, 1))["y"] == []
    assert column_axis("bits", [])["range"] == [0, 1] and row_axis([])["categoryarray"] == []


def test_a_map_by_hand():
    trace = cells(["a", "b"], [[1.0, None], [3.0, 4.0]], [[0.1, None], [0.3, 0.4]], (0, 1))
    assert trace["y"] == ["a", "b", "b"]
    assert trace["customdata"] == [[0, 1.0], [0, 3.0], [1, 4.0]]
    assert trace["base"] == pytest.approx([0.04, 0.04, 1.04])
    assert trace["marker"]["color"] == [0.1, 0.3, 0.4]


def test_the_star_is_the_network_handed_over():
    chart = trials_chart(trials(2), "size", "bytes", "accuracy", finished=0.75)
    assert chart.figure["data"][-1]["y"] == [0.75]
    assert "75.00% there (star)" in chart.sentence


def test_the_bundle_lies_in_the_package_with_its_licence():
    assert "Licensed under the MIT license" in plotly_js()[:300]
    assert PLOTLY.with_name("plotly-basic.LICENSE").read_text().startswith("MIT License")
    assert PLOTLY.stat().st_size < 1_250_000


def test_an_accuracy_that_never_changes_fills_the_chart_around_it():
    figure = best_so_far_chart({"one": trials(3)}).figure
    assert figure["layout"]["yaxis"]["range"] == pytest.approx([0.48, 0.52])
