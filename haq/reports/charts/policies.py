"""The bits of each layer in each run, as a map."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.heat import cells, column_axis, row_axis
from haq.reports.charts.theme import Chart, Figure, layout


def policies_chart(
    runs: Sequence[str], layers: Sequence[Sequence[Mapping[str, Any]]], field: str
) -> Chart:
    """Return the bits of each layer in each run, as a map.

    Args:
        runs: Their names.
        layers: The layers of each, the same ones in the same order.
        field: "weight_bits" or "act_bits".
    """
    what = "weights" if field == "weight_bits" else "activations"
    names = [layer["name"] for layer in layers[0]]
    bits = [[layer[field] for layer in own] for own in layers]
    figure = {
        "data": [_map(names, runs, bits)],
        "layout": layout(
            max(280, 200 + 26 * len(runs)),
            barmode="overlay",
            yaxis=row_axis(runs),
            xaxis=column_axis("", names, tickangle=-90, tickfont={"size": 10}),
        ),
    }
    means = dict(zip(runs, (math.fsum(row) / len(row) for row in bits), strict=True))
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    sentence = (
        f"Bits of the {what} of {len(names)} layers; on average over the layers from "
        f"{means[low]:.2g} ({low}) to {means[high]:.2g} ({high})"
    )
    rows = [[run, *row] for run, row in zip(runs, bits, strict=True)]
    return Chart(
        f"bits-{what}", f"Bits of the {what}", sentence + ".", figure, ("run", *names), rows
    )


def _map(names: Sequence[str], runs: Sequence[str], bits: Sequence[Sequence[int]]) -> Figure:
    trace = cells(
        runs, bits, bits, (1, 8), name="bits", insidetextanchor="middle", textangle=0,
        textposition="inside" if len(names) <= 32 else "none",
        hovertemplate="%{hovertext}<extra></extra>",
        colorbar={"title": {"text": "bits", "side": "right"}, "len": 160},
    )  # fmt: skip
    trace["text"] = [str(value) for _, value in trace["customdata"]]
    trace["hovertext"] = [
        f"{run}, {names[column]}: {value} bits"
        for run, (column, value) in zip(trace["y"], trace["customdata"], strict=True)
    ]
    return trace
