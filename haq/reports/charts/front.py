"""Where runs ended, by one cost and their accuracy."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from haq.metrics import metric_of
from haq.reports.charts.theme import SERIES, Chart, Figure, Row, amount, axis, layout, line, note

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")

MEASURES = {
    "final_test_accuracy": "test {}",
    "episode_val_accuracy": "validation {} in the search",
}
"""Which values a front is drawn of: column of a row to what it is called, with the metric."""


def quantities(rows: Sequence[Row]) -> dict[str, str]:
    """Return the quantities that any of the runs knows, with their units."""
    return {quantity: unit for row in rows for quantity, unit in row["units"].items()}


def front_chart(
    rows: Sequence[Row], quantity: str, field: str, reference: str | None = None
) -> Chart:
    """Return where the runs ended, by one cost and their accuracy, a line for each agent.

    Args:
        rows: As ``compared`` gives them; those without the quantity are left out.
        quantity: The cost.
        field: Which accuracy, one of ``MEASURES`` that all rows have.
        reference: The agent drawn as the dashed line to beat.
    """
    known = [row for row in rows if row.get(quantity) is not None]
    metric = metric_of(known[0])
    unit, what = quantities(known)[quantity], MEASURES[field].format(metric.said)
    shown = metric.format
    hover = f"%{{text}}<br>%{{x:,.6~g}} {unit}, %{{y:{shown}}}<extra></extra>"
    data: list[Figure] = []
    agents = sorted({row["agent"] for row in known}, key=lambda agent: agent == reference)
    for at, agent in enumerate(agents):
        own = sorted((row for row in known if row["agent"] == agent), key=lambda r: r[quantity])
        style = _style(at, agent, is_reference=agent == reference)
        data += [_line(own, quantity, field, style), _ends(own, quantity, field, style, hover)]
    tick = {"tickformat": ".1%"} if shown == ".2%" else {}
    whole = {"tickformat": "~s"} if max(row[quantity] for row in known) >= 1e4 else {}
    about = layout(
        460, xaxis=axis(f"{quantity} ({unit})", **whole), yaxis=axis(what, **tick),
        **_floats(known, field),
    )  # fmt: skip
    top = max(known, key=lambda row: metric.score(row[field]))
    sentence = (
        f"{len(known)} runs; the {'highest' if metric.higher else 'lowest'} {what} is "
        f"{metric.text(top[field])}, of {top['run']} at "
        f"{amount(top[quantity], unit)}."
    )
    if any(_reach(row, field) for row in known):
        sentence += " Bars are 95 % confidence intervals."
    if reference in agents and len(agents) > 1:
        sentence += (
            " The dashed line is the best of the same bits everywhere, lowered in some layers "
            "where they are over the budget."
        )
    if any(row["seed"] != known[0]["seed"] for row in known):
        sentence += " Lines go through the means over the seeds."
    numbers = [[row["run"], row["agent"], row[quantity], row[field]] for row in known]
    columns = ("run", "agent", f"{quantity} ({unit})", what)
    title = f"{what.capitalize()} by {quantity}"
    key = f"front-{quantity}" + ("" if field == next(iter(MEASURES)) else "-validation")
    return Chart(key, title, sentence, {"data": data, "layout": about}, columns, numbers)


class _Style(NamedTuple):
    """How the runs of one agent look: later ones are thinner, so that none hides another."""

    agent: str
    name: str
    color: str
    symbol: str
    dash: str
    width: float
    size: float


def _style(at: int, agent: str, is_reference: bool) -> _Style:
    return _Style(
        agent, f"{agent} bits, the reference" if is_reference else agent,
        "--soft" if is_reference else SERIES[at % len(SERIES)], SYMBOLS[at % len(SYMBOLS)],
        "dash" if is_reference else "solid", max(4 - at, 1.5), max(15 - 4 * at, 6),
    )  # fmt: skip


def _line(own: Sequence[Row], quantity: str, field: str, style: _Style) -> Figure:
    means = _means(own, quantity, field)
    return {
        "type": "scatter", "mode": "lines", "name": style.name, "legendgroup": style.agent,
        "showlegend": False, "hoverinfo": "skip",
        "x": [x for x, _ in means], "y": [y for _, y in means],
        "line": {"color": style.color, "width": style.width, "dash": style.dash},
    }  # fmt: skip


def _ends(own: Sequence[Row], quantity: str, field: str, style: _Style, hover: str) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "name": style.name, "legendgroup": style.agent,
        "x": [row[quantity] for row in own], "y": [row[field] for row in own],
        "text": [row["run"] for row in own], "hovertemplate": hover,
        "marker": {"color": style.color, "size": style.size, "symbol": style.symbol},
        **_bars(own, field, style.color),
    }  # fmt: skip


FLOATS = {
    "final_test_accuracy": "float_test_accuracy",
    "episode_val_accuracy": "float_val_accuracy",
}
"""Column of a row to that of the float network."""


def _floats(rows: Sequence[Row], field: str) -> dict[str, list[Figure]]:
    """Return a line at the value of each float network that the runs began with."""
    values = {row.get(FLOATS[field]) for row in rows}
    shapes, notes = [], []
    for value in sorted(v for v in values if v is not None and math.isfinite(v)):
        shapes.append(line(y0=value, y1=value, xref="paper", x0=0, x1=1))
        notes.append(note("float network", y=value, xref="paper", x=0, xanchor="left",
                          yanchor="bottom"))  # fmt: skip
    return {"shapes": shapes, "annotations": notes[:1]}


def _reach(row: Row, field: str) -> tuple[float, float] | None:
    """Return how far the confidence interval of a test value goes up and down from it."""
    low, high = (row.get(f"final_test_{end}_accuracy") for end in ("low", "high"))
    if field != "final_test_accuracy" or low is None or high is None:
        return None
    return high - row[field], row[field] - low


def _bars(own: Sequence[Row], field: str, color: str) -> Figure:
    reach = [_reach(row, field) for row in own]
    if not any(reach):
        return {}
    ends = [(0.0, 0.0) if one is None else one for one in reach]
    return {
        "error_y": {
            "type": "data", "symmetric": False, "array": [up for up, _ in ends],
            "arrayminus": [down for _, down in ends], "color": color, "thickness": 1, "width": 3,
        }
    }  # fmt: skip


def _means(rows: Sequence[Row], quantity: str, field: str) -> list[tuple[float, float]]:
    """Return the mean cost and accuracy over the seeds of each budget, the cheapest first."""
    means = []
    by_budget = sorted(rows, key=lambda row: str(row["budget"]))
    for _, group in groupby(by_budget, key=lambda row: str(row["budget"])):
        own = list(group)
        costs, accuracies = [row[quantity] for row in own], [row[field] for row in own]
        means.append((math.fsum(costs) / len(own), math.fsum(accuracies) / len(own)))
    return sorted(means)
