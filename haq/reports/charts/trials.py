"""All trials by one cost and their accuracy, with their Pareto front."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haq.allocation.trials import Trial, best, pareto
from haq.metrics import METRICS, Metric
from haq.reports.charts.theme import (
    Chart,
    Figure,
    amount,
    axis,
    counted,
    layout,
    line,
    note,
    spoken,
)


def trials_chart(  # noqa: PLR0913 - all of one chart
    trials: Sequence[Trial],
    quantity: str,
    unit: str,
    kind: str,
    limit: float | None = None,
    float_accuracy: float | None = None,
    chosen: Trial | None = None,
    metric: Metric = METRICS["top1"],
    finished: float | None = None,
) -> Chart:
    """Return all trials by one cost and their accuracy, with the front that none of them beats.

    Args:
        trials: At least one.
        quantity: The cost.
        unit: Of the cost.
        kind: What the values of the trials are called.
        limit: The budget on this cost, if there is one.
        float_accuracy: The value of the float network.
        chosen: What was handed over, which is none of the trials where the policy was raised or
            lowered after them; without it the best one.
        metric: Of the values.
        finished: The value of the network handed over, after its last training; without it the
            star stands where the policy was scored.
    """
    ends = {trial.episode for trial in pareto(trials, quantity)}
    top = chosen or best(trials)
    which = f"episode {top.episode}" if top in trials else "found after them"
    *trials, top = (replace(t, accuracy=metric.of_score(t.accuracy)) for t in (*trials, top))
    front = sorted((t for t in trials if t.episode in ends), key=lambda t: t.cost[quantity])
    shown = metric.format
    hover = f"episode %{{text}}<br>%{{x:,.6~g}} {unit}, %{{y:{shown}}}<extra></extra>"
    tick = {"tickformat": ".1%"} if shown == ".2%" else {}
    figure: Figure = {
        "data": _points(trials, front, top, quantity, hover),
        "layout": layout(
            420, **_limits(limit, float_accuracy),
            xaxis=axis(_named(quantity, unit), **_span([*trials, top], quantity, limit)),
            yaxis=axis(kind, **tick),
        ),
    }  # fmt: skip
    on_front = {trial.episode for trial in front}
    rows = [
        [t.episode, t.cost[quantity], t.accuracy, "yes" if t.episode in on_front else "no"]
        for t in trials
    ]
    columns = ("episode", f"{quantity} ({unit})", kind, "on the front")
    sentence = _sentence(trials, front, quantity, unit, metric)
    sentence += f" The chosen one ({which}) needs {amount(top.cost[quantity], unit)}."
    if finished is not None and math.isfinite(finished):
        figure["data"][-1] |= {"y": [finished], "name": "network handed over"}
        sentence += f" The network handed over has {metric.text(finished)} there (star)."
    return Chart("trials", "All trials", sentence, figure, columns, rows)


def _named(quantity: str, unit: str) -> str:
    return spoken(quantity) if spoken(quantity) != quantity or not unit else f"{quantity} ({unit})"


FEW = 4
"""Different costs below which an axis begins at zero: else it would magnify nothing."""


def _span(trials: Sequence[Trial], quantity: str, limit: float | None) -> dict[str, Any]:
    """Return the range of an axis of costs, where those alone would make a poor one."""
    costs = {trial.cost[quantity] for trial in trials}
    costs |= set() if limit is None else {limit}
    whole = {"tickformat": "~s"} if max(costs) >= 1e4 else {}
    return whole | (
        {"range": [0, 1.08 * max(costs)]} if len(costs) < FEW and max(costs) > 0 else {}
    )


def _points(
    trials: Sequence[Trial], front: Sequence[Trial], top: Trial, quantity: str, hover: str
) -> list[dict[str, Any]]:
    def places(some: Sequence[Trial]) -> dict[str, Any]:
        return {
            "x": [t.cost[quantity] for t in some], "y": [t.accuracy for t in some],
            "text": [str(t.episode) for t in some], "type": "scatter", "hovertemplate": hover,
        }  # fmt: skip

    return [
        {
            "mode": "markers", "name": "trials", **places(trials),
            "marker": {"color": "--before", "size": 8, "opacity": 0.8,
                       "symbol": ["x-thin-open" if t.stopped else "circle" for t in trials]},
        },
        {
            "mode": "lines+markers", "name": "Pareto front", **places(front),
            "line": {"color": "--accent", "width": 2, "shape": "hv"},
            "marker": {"color": "--accent", "size": 8, "symbol": "diamond"},
        },
        {
            "mode": "markers", "name": "chosen", **places([top]),
            "marker": {"color": "--depthwise", "size": 15, "symbol": "star",
                       "line": {"color": "--page", "width": 1}},
        },
    ]  # fmt: skip


def _limits(limit: float | None, float_accuracy: float | None) -> dict[str, list[dict[str, Any]]]:
    shapes, notes = [], []
    if limit is not None:
        shapes.append(line(x0=limit, x1=limit, yref="paper", y0=0, y1=1))
        notes.append(note("budget", x=limit, yref="paper", y=0, yanchor="bottom",
                          xanchor="right", textangle=-90))  # fmt: skip
    if float_accuracy is not None and math.isfinite(float_accuracy):
        shapes.append(line(y0=float_accuracy, y1=float_accuracy, xref="paper", x0=0, x1=1))
        notes.append(note("float network", y=float_accuracy, xref="paper", x=0,
                          xanchor="left", yanchor="bottom"))  # fmt: skip
    return {"shapes": shapes, "annotations": notes}


def _sentence(
    trials: Sequence[Trial],
    front: Sequence[Trial],
    quantity: str,
    unit: str,
    metric: Metric,
) -> str:
    ends = [f"{amount(t.cost[quantity], unit)} at {metric.text(t.accuracy)}" for t in front]
    where = ends[0] if len(ends) == 1 else f"from {ends[0]} to {ends[-1]}"
    sentence = f"{counted(len(trials), 'trial')}; the front has {len(front)} of them, {where}."
    if any(trial.stopped for trial in trials):
        sentence += " Crosses are estimates: their evaluation was stopped as hopeless."
    return sentence
