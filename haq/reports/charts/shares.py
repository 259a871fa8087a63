"""What each layer costs, at 8 bits and now, and its share of the whole network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import Chart, Row, amount, axis, layer_axis, layout, spoken


def shares_chart(layers: Sequence[Row], units: Mapping[str, str]) -> Chart:
    """Return latency, energy, operations and size of each layer, at 8 bits and now."""
    shown = ("latency", "energy", "size") if "latency" in units else ("bops", "energy", "size")
    quantities = [quantity for quantity in shown if quantity in units]
    columns: dict[str, list[float | None]] = {}
    data: list[dict[str, Any]] = []
    axes = {}
    names = [layer["name"] for layer in layers]
    for number, quantity in enumerate(quantities):
        costs = {field: [layer[field].get(quantity) for layer in layers]
                 for field in ("cost_w8a8", "cost")}  # fmt: skip
        before, after = _shares(costs["cost_w8a8"]), _shares(costs["cost"])
        columns |= {f"{quantity}, w8a8": before, f"{quantity}, now": after}
        unit = units[quantity]
        place = "" if number == 0 else str(number + 1)
        axes["yaxis" + place] = axis(
            f"{spoken(quantity)} ({unit})" if spoken(quantity) == quantity else spoken(quantity),
            domain=_domain(number, len(quantities)), tickformat="~s", nticks=5,
            rangemode="tozero", fixedrange=True,
        )  # fmt: skip
        data += [
            _bars(names, place, label, costs[field], [
                f"{name}, {label}: {amount(cost, unit)}" + ("" if share is None else
                f", {share:.1%} of the {spoken(quantity)}")
                for name, cost, share in zip(names, costs[field], shares, strict=True)
            ])
            for label, field, shares in (("8 bits everywhere", "cost_w8a8", before),
                                         ("this run", "cost", after))
        ]  # fmt: skip
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
    names: Sequence[str],
    place: str,
    label: str,
    values: Sequence[float | None],
    texts: Sequence[str],
) -> dict[str, Any]:
    color, pattern = _STYLES[label]
    return {
        "type": "bar", "name": label, "legendgroup": label, "showlegend": place == "",
        "x": list(names), "y": list(values), "xaxis": "x", "yaxis": "y" + place,
        "marker": {"color": color, "pattern": {"shape": pattern, "size": 6, "solidity": 0.3,
                                               "fgcolor": "--page", "bgcolor": color}},
        "hovertext": list(texts), "hovertemplate": "%{hovertext}<extra></extra>",
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
            parts.append(f"{names[top]} has {after[top]:.0%} of the {spoken(quantity)}{was}")
    return "The largest shares now: " + "; ".join(parts) + "."
