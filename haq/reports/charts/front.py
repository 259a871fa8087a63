"""Where runs ended, by one cost and their accuracy."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from haq.reports.charts.theme import SERIES, Chart, amount, axis, layout
from haq.reports.compare import Row

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")

MEASURES = {
    "final_test_accuracy": "test accuracy",
    "episode_val_accuracy": "validation accuracy in the search",
}
"""Which accuracies a front is drawn of: column of a row to what it is called."""


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
    unit = quantities(known)[quantity]
    what = MEASURES[field]
    share = all(0 <= row[field] <= 1 for row in known)
    data: list[dict[str, Any]] = []
    agents = sorted({row["agent"] for row in known}, key=lambda agent: agent == reference)
    for at, agent in enumerate(agents):
        own = sorted((row for row in known if row["agent"] == agent), key=lambda r: r[quantity])
        is_reference = agent == reference
        color = "--soft" if is_reference else SERIES[at % len(SERIES)]
        label = f"{agent} bits, the reference" if is_reference else agent
        line = _means(own, quantity, field)
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": label, "legendgroup": agent,
                "showlegend": False, "hoverinfo": "skip",
                "x": [x for x, _ in line], "y": [y for _, y in line],
                "line": {"color": color, "width": max(4 - at, 1.5),
                         "dash": "dash" if is_reference else "solid"},
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": label, "legendgroup": agent,
                "x": [row[quantity] for row in own], "y": [row[field] for row in own],
                "text": [row["run"] for row in own],
                "marker": {
                    # Later ones are smaller, so that none hides another.
                    "color": color, "size": max(15 - 4 * at, 6),
                    "symbol": SYMBOLS[at % len(SYMBOLS)],
                },
                "hovertemplate": f"%{{text}}<br>%{{x:,.6~g}} {unit}, "
                                 f"%{{y:{'.2%' if share else '.4g'}}}<extra></extra>",
            }
        )  # fmt: skip
    tick = {"tickformat": ".1%"} if share else {}
    about = layout(460, xaxis=axis(f"{quantity} ({unit})"), yaxis=axis(what, **tick))
    shown = ".2%" if share else ".4g"
    top = max(known, key=lambda row: row[field])
    sentence = (
        f"{len(known)} runs; the highest {what} is {top[field]:{shown}}, of {top['run']} at "
        f"{amount(top[quantity], unit)}."
    )
    if reference in agents and len(agents) > 1:
        sentence += " The dashed line is the same bits everywhere, lowered until the budget holds."
    if any(row["seed"] != known[0]["seed"] for row in known):
        sentence += " Lines go through the means over the seeds."
    numbers = [[row["run"], row["agent"], row[quantity], row[field]] for row in known]
    columns = ("run", "agent", f"{quantity} ({unit})", what)
    title = f"{what.capitalize()} by {quantity}"
    key = f"front-{quantity}" + ("" if field == next(iter(MEASURES)) else "-validation")
    return Chart(key, title, sentence, {"data": data, "layout": about}, columns, numbers)


def _means(rows: Sequence[Row], quantity: str, field: str) -> list[tuple[float, float]]:
    """Return the mean cost and accuracy over the seeds of each budget, the cheapest first."""
    means = []
    by_budget = sorted(rows, key=lambda row: str(row["budget"]))
    for _, group in groupby(by_budget, key=lambda row: str(row["budget"])):
        own = list(group)
        costs, accuracies = [row[quantity] for row in own], [row[field] for row in own]
        means.append((math.fsum(costs) / len(own), math.fsum(accuracies) / len(own)))
    return sorted(means)
