"""What each bit-width of each layer alone does to the network."""

import math
from collections.abc import Sequence
from typing import Any

from haq.allocation.sensitivities import Sensitivity
from haq.reports.charts.heat import cells, column_axis, row_axis
from haq.reports.charts.theme import Chart, Figure, Row, layout


def sensitivity_chart(layers: Sequence[Row], known: Sensitivity) -> Chart:
    """Return what each bit-width of each layer alone does to the network, the chosen one marked.

    Args:
        layers: Of the summary.
        known: Sensitivities of at least one of the layers.
    """
    names = [layer["name"] for layer in layers]
    both = (
        ("weights", "weight_bits", known.weights),
        ("activations", "act_bits", known.activations),
    )
    parts = [part for part in both if any(part[2].values())]
    decades = _decades([v for *_, values in parts for row in values.values() for v in row.values()])
    data: list[dict[str, Any]] = []
    rows: list[list[Any]] = [[name] for name in names]
    columns, axes = ["layer"], {}
    for at, (part, field, values) in enumerate(parts):
        place = "" if at == 0 else "2"
        widths = sorted({bits for row in values.values() for bits in row})
        columns += [f"{part}, {bits} bits" for bits in widths]
        grid = [[values.get(name, {}).get(bits) for bits in widths] for name in names]
        for row, numbers in zip(rows, grid, strict=True):
            row.extend(numbers)
        data.append(_heat(names, widths, grid, part, place, decades))
        chosen = [layer for layer in layers if layer[field] in values.get(layer["name"], {})]
        data.append(_dots(chosen, field, widths, place))
        axes["xaxis" + place] = column_axis(
            f"{part.removesuffix('s')} bits", [str(bits) for bits in widths], fixedrange=True,
            domain=[at / len(parts) + 0.02 * at, (at + 1) / len(parts) - 0.02 * (1 - at)],
        )  # fmt: skip
    figure = {"data": data, "layout": _layout(names, axes)}
    title = "Sensitivity of each layer"
    return Chart("sensitivity", title, _sentence(known), figure, tuple(columns), rows)


def _dots(chosen: Sequence[Row], field: str, widths: Sequence[int], place: str) -> Figure:
    """Return the marks of the bits that were chosen."""
    return {
        "type": "scatter", "mode": "markers", "name": "chosen", "showlegend": place == "",
        "legendgroup": "chosen", "xaxis": "x" + place, "yaxis": "y", "hoverinfo": "skip",
        "x": [widths.index(layer[field]) + 0.5 for layer in chosen],
        "y": [layer["name"] for layer in chosen],
        "marker": {"symbol": "circle", "size": 11, "color": "#ffffff",
                   "line": {"color": "#000000", "width": 2.5}},
    }  # fmt: skip


def _layout(names: Sequence[str], axes: dict[str, Any]) -> dict[str, Any]:
    font = {"size": 12 if len(names) <= 24 else 10}
    return layout(
        max(260, 120 + 20 * len(names)), barmode="overlay", **axes,
        yaxis=row_axis(names, tickfont=font),
    )  # fmt: skip


def _decades(values: Sequence[float]) -> list[int]:
    """Return the powers of ten from below the least positive value to above the greatest."""
    logs = [math.log10(value) for value in values if value > 0]
    low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-3, 0)
    return list(range(low, max(high, low + 1) + 1))


def _heat(
    names: Sequence[str],
    widths: Sequence[int],
    grid: Sequence[Sequence[float | None]],
    part: str,
    place: str,
    decades: Sequence[int],
) -> Figure:
    # Colours go by the logarithm; what is not positive gets the lowest one.
    logs = [
        [None if value is None else math.log10(value) if value > 0 else decades[0] for value in row]
        for row in grid
    ]
    colorbar = {
        "title": {"text": "divergence", "side": "right"}, "len": min(220, 20 * max(len(names), 7)),
        "tickvals": list(decades), "ticktext": [f"1e{d}" for d in decades],
    }  # fmt: skip
    trace = cells(
        names, grid, logs, (decades[0], decades[-1]), xaxis="x" + place, yaxis="y", name=part,
        hovertemplate="%{text}<extra></extra>",
        **({"colorbar": colorbar} if place == "" else {}),
    )  # fmt: skip
    trace["text"] = [
        f"{name}, {part} at {widths[column]} bits: {value:.3g}"
        for name, (column, value) in zip(trace["y"], trace["customdata"], strict=True)
    ]
    return trace | {"textposition": "none"}


_NAMES = {"kl": "KL divergence", "kl, second order": "KL divergence to second order"}


def measure_name(known: Sensitivity) -> str:
    """Return what the numbers of a sensitivity are, for people."""
    return _NAMES.get(known.measure, known.measure)


def _sentence(known: Sensitivity) -> str:
    text = (
        f"{measure_name(known)} between the outputs of the float network and of one in which one "
        f"layer alone is rounded to so many bits, over {known.images} images"
    )
    highest = {name: max(row.values()) for name, row in known.weights.items() if row}
    if highest:
        most, least = max(highest, key=highest.__getitem__), min(highest, key=highest.__getitem__)
        text += (
            f"; the weights of {most} are the most sensitive (up to {highest[most]:.2g}), "
            f"those of {least} the least (up to {highest[least]:.2g})"
        )
    return text + ". Dots mark what was chosen."
