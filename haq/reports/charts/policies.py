"""The bits of each layer in each run, as a map."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import Chart, Figure, axis, layout


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
            xaxis=axis("", type="category", categoryarray=names, tickangle=-90, showgrid=False),
            yaxis=axis("", type="category", range=[len(runs) - 0.5, -0.5], showgrid=False),
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
    return {
        "type": "heatmap", "x": list(names), "y": list(runs), "z": [list(row) for row in bits],
        "zmin": 1, "zmax": 8, "colorscale": "Cividis", "xgap": 1, "ygap": 1,
        "text": [[str(b) for b in row] for row in bits],
        "texttemplate": "%{text}" if len(names) <= 32 else "",
        "colorbar": {"title": {"text": "bits", "side": "right"}, "thickness": 12,
                     "lenmode": "pixels", "len": 160, "y": 1, "yanchor": "top"},
        "hovertemplate": "%{y}, %{x}: %{z} bits<extra></extra>",
    }  # fmt: skip
