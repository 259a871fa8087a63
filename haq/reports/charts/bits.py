"""The bits of each layer, as bars."""

from collections.abc import Sequence

from haq.reports.charts.theme import KINDS, Chart, Row, axis, layer_axis, layout


def bits_chart(layers: Sequence[Row]) -> Chart:
    """Return the bits of weights and activations as bars over one axis of layers."""
    data = []
    kinds = [kind for kind in KINDS if any(layer["kind"] == kind for layer in layers)]
    deep = any(layer["weight_bits"] > 8 or layer["act_bits"] > 8 for layer in layers)
    for field, row in (("weight_bits", ""), ("act_bits", "2")):
        for kind in kinds:
            own = [layer for layer in layers if layer["kind"] == kind]
            data.append(
                {
                    "type": "bar", "name": kind, "legendgroup": kind, "showlegend": row == "",
                    "x": [layer["name"] for layer in own], "y": [layer[field] for layer in own],
                    "text": [str(layer[field]) for layer in own],
                    "textposition": "inside" if deep else "outside",
                    "insidetextanchor": "start", "textangle": 0, "cliponaxis": False,
                    "textfont": {"color": "--page" if deep else "--ink"},
                    "xaxis": "x", "yaxis": "y" + row,
                    "marker": {
                        "color": f"--{kind}",
                        "pattern": {"shape": KINDS[kind][0], "size": 8, "solidity": 0.15,
                                    "fgcolor": "--page", "bgcolor": f"--{kind}"},
                    },
                    "hovertemplate": f"%{{x}} ({kind}): %{{y}} bits<extra></extra>",
                }
            )  # fmt: skip
    ticks = {"range": [0, 9.6], "tickvals": [0, 2, 4, 6, 8], "fixedrange": True}
    figure = {
        "data": data,
        "layout": layout(
            440, barmode="overlay", bargap=0.15,
            xaxis=layer_axis(layers, anchor="y2"),
            yaxis=axis("weight bits", domain=[0.54, 1], **ticks),
            yaxis2=axis("activation bits", domain=[0, 0.46], **ticks),
        ),
    }  # fmt: skip
    rows = [[la["name"], la["kind"], la["weight_bits"], la["act_bits"]] for la in layers]
    return Chart(
        "bits", "Bits of each layer", _bits_sentence(layers), figure,
        ("layer", "kind", "weight bits", "activation bits"), rows,
    )  # fmt: skip


def _bits_sentence(layers: Sequence[Row]) -> str:
    parts = []
    for field, what in (("weight_bits", "Weights"), ("act_bits", "activations")):
        low = min(layers, key=lambda layer: layer[field])
        high = max(layers, key=lambda layer: layer[field])
        if low[field] == high[field]:
            parts.append(f"{what} have {low[field]} bits everywhere")
        else:
            parts.append(
                f"{what} have from {low[field]} bits ({low['name']}) "
                f"to {high[field]} ({high['name']})"
            )
    return "; ".join(parts) + f", over {len(layers)} layers in order of execution."
