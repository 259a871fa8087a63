"""What each layer attains on a target, against what the target's ceilings allow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import KINDS, SERIES, Chart, Row, axis, layout


def roofline_chart(points: Sequence[Row], roofs: Mapping[str, tuple[float, float]]) -> Chart:
    """Return what each layer attains on the target against what its ceilings allow.

    Args:
        points: For each layer its "name" and "kind", and for the run and for "w8a8" (where the
            target runs that) "bits", "intensity" (MACs a byte), "attained" (MACs a second) and
            "ceiling" (the same, of its own roof).
        roofs: Bits such as "w8a8" to MACs a second and bytes a second.
    """
    marks = [point[state] for point in points for state in ("w8a8", "run") if point.get(state)]
    span = [min(m["intensity"] for m in marks) / 2, max(m["intensity"] for m in marks) * 2]
    data = [_roof(number, bits, *roofs[bits], span) for number, bits in enumerate(roofs)]
    heights = [mark["attained"] for mark in marks] + [y for trace in data for y in trace["y"]]
    data.append(_moves([point for point in points if point.get("w8a8")]))
    for state in ("w8a8", "run"):
        for kind in KINDS:
            own = [p for p in points if p["kind"] == kind and p.get(state)]
            data += [_marks(own, kind, state)] if own else []
    figure = {
        "data": data,
        "layout": layout(
            480,
            xaxis=_log_axis("MACs per byte read", span),
            yaxis=_log_axis("MACs per second", heights),
        ),
    }
    rows = [
        [p["name"], p["kind"], p["run"]["bits"], p["run"]["intensity"], p["run"]["attained"],
         p["run"]["attained"] / p["run"]["ceiling"]]
        for p in points
    ]  # fmt: skip
    columns = ("layer", "kind", "bits", "MAC per byte", "MAC per second", "share of its ceiling")
    title = "Where the layers stand on the target"
    return Chart("roofline", title, _sentence(rows), figure, columns, rows)


def _roof(
    number: int, bits: str, macs: float, bandwidth: float, span: Sequence[float]
) -> dict[str, Any]:
    """Return the line of one pair of bits: what memory allows up to its knee, then arithmetic."""
    low, high = span
    xs = sorted({low, min(max(macs / bandwidth, low), high), high})
    return {
        "type": "scatter", "mode": "lines", "name": f"roof, {bits}", "x": xs,
        "y": [min(macs, x * bandwidth) for x in xs],
        "line": {"color": SERIES[number % len(SERIES)], "width": 1.5,
                 "dash": ("solid", "dash", "dot", "dashdot")[number % 4]},
        "hovertemplate": f"roof at {bits}: %{{y:.3s}} MAC/s<extra></extra>",
    }  # fmt: skip


def _moves(points: Sequence[Row]) -> dict[str, Any]:
    """Return the lines from each layer at 8 bits to the same layer now."""
    return {
        "type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip",
        "x": [x for p in points for x in (p["w8a8"]["intensity"], p["run"]["intensity"], None)],
        "y": [y for p in points for y in (p["w8a8"]["attained"], p["run"]["attained"], None)],
        "line": {"color": "--soft", "width": 1},
    }  # fmt: skip


def _sentence(rows: Sequence[Sequence[Any]]) -> str:
    nearest, farthest = max(rows, key=lambda row: row[5]), min(rows, key=lambda row: row[5])
    return (
        f"Nearest to its own ceiling is {nearest[0]} ({nearest[5]:.0%} of it at {nearest[2]}), "
        f"farthest {farthest[0]} ({farthest[5]:.0%} at {farthest[2]}). A line leads from each "
        "layer at 8 bits (hollow) to the same layer now (filled)."
    )


def _log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis that names 1, 2 and 5 of each decade, as far as there is room."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [step * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return axis(title, type="log", tickvals=ticks, ticktext=[_si(tick) for tick in ticks])


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g} {prefix}"
    return f"{value:g}"


def _marks(own: Sequence[Row], kind: str, state: str) -> dict[str, Any]:
    symbol = KINDS[kind][1]
    return {
        "type": "scatter", "mode": "markers", "name": kind, "legendgroup": kind,
        "showlegend": state == "run",
        "x": [p[state]["intensity"] for p in own], "y": [p[state]["attained"] for p in own],
        "text": [f"{p['name']}, {p[state]['bits']}" for p in own],
        "customdata": [p[state]["attained"] / p[state]["ceiling"] for p in own],
        "marker": {"symbol": symbol + ("-open" if state == "w8a8" else ""), "size": 10,
                   "color": f"--{kind}"},
        "hovertemplate": "%{text}<br>%{x:.3g} MAC per byte, %{y:.3s} MAC/s, "
                         "%{customdata:.0%} of its ceiling<extra></extra>",
    }  # fmt: skip
