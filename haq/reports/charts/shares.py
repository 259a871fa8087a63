"""What each layer takes of the network's costs, at 8 bits and now."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import Chart, Row, axis, layer_axis, layout


def shares_chart(layers: Sequence[Row], units: Mapping[str, str]) -> Chart:
    """Return each layer's share of latency, energy, operations and size, at 8 bits and now."""
    shown = ("latency", "energy", "size") if "latency" in units else ("bops", "energy", "size")
    quantities = [quantity for quantity in shown if quantity in units]
    columns: dict[str, list[float | None]] = {}
    data: list[dict[str, Any]] = []
    axes = {}
    names = [layer["name"] for layer in layers]
    for number, quantity in enumerate(quantities):
        before = _shares([layer["cost_w8a8"].get(quantity) for layer in layers])
        after = _shares([layer["cost"].get(quantity) for layer in layers])
        columns |= {f"{quantity}, w8a8": before, f"{quantity}, now": after}
        place = "" if number == 0 else str(number + 1)
        axes["yaxis" + place] = axis(
            quantity, domain=_domain(number, len(quantities)), tickformat=".0%",
            rangemode="tozero", fixedrange=True,
        )  # fmt: skip
        data += [
            _bars(names, quantity, place, name, values)
            for name, values in (("8 bits everywhere", before), ("this run", after))
        ]
    last = "y" if len(quantities) == 1 else f"y{len(quantities)}"
    figure = {
        "data": data,
        "layout": layout(
            130 + 150 * len(quantities), barmode="group", bargap=0.2, bargroupgap=0.05,
            xaxis=layer_axis(layers, anchor=last), **axes,
        ),
    }  # fmt: skip
    rows = [[name, *(values[at] for values in columns.values())] for at, name in enumerate(names)]
    return Chart(
        "shares", "Where the costs are", _sentence(names, columns, quantities), figure,
        ("layer", *(f"{name} (share)" for name in columns)), rows,
    )  # fmt: skip


_STYLES = {"8 bits everywhere": ("--before", "/"), "this run": ("--accent", "")}


def _bars(
    names: Sequence[str], quantity: str, place: str, label: str, values: Sequence[float | None]
) -> dict[str, Any]:
    color, pattern = _STYLES[label]
    return {
        "type": "bar", "name": label, "legendgroup": label, "showlegend": place == "",
        "x": list(names), "y": list(values), "xaxis": "x", "yaxis": "y" + place,
        "marker": {"color": color, "pattern": {"shape": pattern, "size": 6, "solidity": 0.3,
                                               "fgcolor": "--page", "bgcolor": color}},
        "hovertemplate": f"%{{x}}: %{{y:.1%}} of {quantity}, {label}<extra></extra>",
    }  # fmt: skip


def _domain(number: int, count: int) -> list[float]:
    gap = 0.08 if count > 1 else 0
    height = (1 - gap * (count - 1)) / count
    top = 1 - number * (height + gap)
    return [max(0.0, top - height), top]


def _shares(values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in values if value is not None]
    total = math.fsum(known)
    if len(known) < len(values) or not total:
        return [None] * len(values)
    return [value / total for value in known]


def _sentence(
    names: Sequence[str], columns: Mapping[str, Sequence[float | None]], quantities: Sequence[str]
) -> str:
    parts = []
    for quantity in quantities:
        after, before = columns[f"{quantity}, now"], columns[f"{quantity}, w8a8"]
        top = max(range(len(names)), key=lambda at: after[at] or 0.0)
        if after[top] is not None:
            was = "" if before[top] is None else f" ({before[top]:.0%} at 8 bits)"
            parts.append(f"{names[top]} has {after[top]:.0%} of the {quantity}{was}")
    return "The largest shares now: " + "; ".join(parts) + "."
