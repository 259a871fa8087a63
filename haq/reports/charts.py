"""Charts of a run: from its summary and trials to plotly figures, each with words beside it.

A figure is the plain dictionary that plotly reads, in Python as in the browser. Its colours are the
names of ``THEMES``, such as "--ink": who draws it puts in those of the light or the dark theme.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from haq.allocation.trials import Trial, best, pareto
from haq.quantization.sensitivity import Sensitivity

Figure = dict[str, Any]
Row = Mapping[str, Any]

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "--page": "#ffffff", "--panel": "#f6f7f9", "--ink": "#1b1f24", "--soft": "#59636e",
        "--line": "#d6dbe1", "--accent": "#0b62c1", "--good": "#1a7f37", "--bad": "#b3261e",
        "--conv": "#0b62c1", "--depthwise": "#b04d08", "--grouped": "#a3307c",
        "--pointwise": "#0d7d62", "--linear": "#6b4fbb", "--before": "#a4adb8",
    },
    "dark": {
        "--page": "#12161c", "--panel": "#1b2129", "--ink": "#e8ebef", "--soft": "#a3adb8",
        "--line": "#333c47", "--accent": "#6cb0ff", "--good": "#57c77a", "--bad": "#ff8f85",
        "--conv": "#6cb0ff", "--depthwise": "#f5a35c", "--grouped": "#ea8fc8",
        "--pointwise": "#4fcfad", "--linear": "#b6a1f5", "--before": "#6b7683",
    },
}  # fmt: skip
"""Colours by name: text on the page has a contrast of at least 4.5 to 1 in both."""

KINDS: Mapping[str, tuple[str, str]] = {
    "conv": ("", "circle"),
    "depthwise": ("/", "diamond"),
    "grouped": ("x", "cross"),
    "pointwise": (".", "square"),
    "linear": ("-", "triangle-up"),
}
"""Kind of layer to the pattern of its bars and the sign of its points; its colour is its name."""

SERIES = ("--accent", "--depthwise", "--pointwise", "--linear", "--grouped", "--soft")
"""Colours of the runs, agents or bit-widths of one chart, in this order."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


class Chart(NamedTuple):
    """A figure and what stands for it where it cannot be seen.

    Attributes:
        key: Short name, for files and anchors.
        title: Heading.
        sentence: What the figure shows, in words.
        figure: For plotly.
        columns: Names of the columns of its numbers.
        rows: The numbers.
    """

    key: str
    title: str
    sentence: str
    figure: Figure
    columns: tuple[str, ...]
    rows: list[list[Any]]


def colored(value: Any, theme: Mapping[str, str]) -> Any:
    """Return a figure with the names of colours replaced by those of a theme."""
    if isinstance(value, dict):
        return {key: colored(item, theme) for key, item in value.items()}
    if isinstance(value, list):
        return [colored(item, theme) for item in value]
    return theme.get(value, value) if isinstance(value, str) else value


def amount(value: float | None, unit: str = "") -> str:
    """Return a number for people, with its unit.

    >>> amount(4767.6, "cycles"), amount(2.91097), amount(None)
    ('4,768 cycles', '2.911', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title, its lines in the colours of the theme."""
    return {
        "title": {"text": title}, "gridcolor": "--line", "linecolor": "--line",
        "zerolinecolor": "--line", "automargin": True, **more,
    }  # fmt: skip


def layout(height: int, **more: Any) -> dict[str, Any]:
    """Return what all figures have in common."""
    return {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": "--ink"},
        "paper_bgcolor": "--page",
        "plot_bgcolor": "--page",
        "margin": {"l": 56, "r": 16, "t": 56, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30},
        "hoverlabel": {"bgcolor": "--panel", "font": {"color": "--ink"}, "bordercolor": "--line"},
        **more,
    }


def _layer_axis(layers: Sequence[Row], **more: Any) -> dict[str, Any]:
    names = [layer["name"] for layer in layers]
    size = 12 if len(names) <= 24 else 10
    # Names such as "0" would else be read as numbers.
    return axis(
        "", type="category", categoryorder="array", categoryarray=names, showgrid=False,
        tickfont={"size": size}, tickangle=-90 if len(names) > 8 else 0, **more,
    )  # fmt: skip


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
            xaxis=_layer_axis(layers, anchor="y2"),
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


def shares_chart(layers: Sequence[Row], units: Mapping[str, str]) -> Chart:
    """Return each layer's share of latency, energy, operations and size, at 8 bits and now."""
    shown = ("latency", "energy", "size") if "latency" in units else ("bops", "energy", "size")
    quantities = [quantity for quantity in shown if quantity in units]
    columns: dict[str, list[float | None]] = {}
    data, axes = [], {}
    names = [layer["name"] for layer in layers]
    for number, quantity in enumerate(quantities):
        before = _shares([layer["cost_w8a8"].get(quantity) for layer in layers])
        after = _shares([layer["cost"].get(quantity) for layer in layers])
        columns |= {f"{quantity}, w8a8": before, f"{quantity}, now": after}
        place = "" if number == 0 else str(number + 1)
        low, high = _domain(number, len(quantities))
        axes["yaxis" + place] = axis(
            quantity, domain=[low, high], tickformat=".0%", rangemode="tozero", fixedrange=True
        )
        for label, values, color, pattern in (
            ("8 bits everywhere", before, "--before", "/"),
            ("this run", after, "--accent", ""),
        ):
            data.append(
                {
                    "type": "bar", "name": label, "legendgroup": label, "showlegend": number == 0,
                    "x": names, "y": values, "xaxis": "x", "yaxis": "y" + place,
                    "marker": {"color": color, "pattern": {"shape": pattern, "size": 6,
                               "solidity": 0.3, "fgcolor": "--page", "bgcolor": color}},
                    "hovertemplate": f"%{{x}}: %{{y:.1%}} of {quantity}, {label}<extra></extra>",
                }
            )  # fmt: skip
    last = "y" if len(quantities) == 1 else f"y{len(quantities)}"
    figure = {
        "data": data,
        "layout": layout(
            130 + 150 * len(quantities), barmode="group", bargap=0.2, bargroupgap=0.05,
            xaxis=_layer_axis(layers, anchor=last), **axes,
        ),
    }  # fmt: skip
    rows = [[name, *(values[at] for values in columns.values())] for at, name in enumerate(names)]
    return Chart(
        "shares", "Where the costs are", _shares_sentence(names, columns, quantities), figure,
        ("layer", *(f"{name} (share)" for name in columns)), rows,
    )  # fmt: skip


def _domain(number: int, count: int) -> tuple[float, float]:
    gap = 0.08 if count > 1 else 0
    height = (1 - gap * (count - 1)) / count
    top = 1 - number * (height + gap)
    return max(0.0, top - height), top


def _shares(values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in values if value is not None]
    total = math.fsum(known)
    if len(known) < len(values) or not total:
        return [None] * len(values)
    return [value / total for value in known]


def _shares_sentence(
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


def sensitivity_chart(layers: Sequence[Row], known: Sensitivity) -> Chart:
    """Return what each bit-width of each layer alone does to the network, the chosen one marked.

    Args:
        layers: Of the summary.
        known: Sensitivities of at least one of the layers.
    """
    names = [layer["name"] for layer in layers]
    parts = [
        (part, field, values)
        for part, field, values in (
            ("weights", "weight_bits", known.weights),
            ("activations", "act_bits", known.activations),
        )
        if any(values.values())
    ]
    decades = _decades([v for *_, values in parts for row in values.values() for v in row.values()])
    data: list[dict[str, Any]] = []
    rows: list[list[Any]] = [[name] for name in names]
    columns, axes = ["layer"], {}
    for at, (part, field, values) in enumerate(parts):
        widths = sorted({bits for row in values.values() for bits in row})
        columns += [f"{part}, {bits} bits" for bits in widths]
        grid = [[values.get(name, {}).get(bits) for bits in widths] for name in names]
        for row, numbers in zip(rows, grid, strict=True):
            row.extend(numbers)
        place = "" if at == 0 else "2"
        data.append(_heat(names, widths, grid, part, place, decades))
        chosen = [layer for layer in layers if layer[field] in values.get(layer["name"], {})]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "chosen", "showlegend": at == 0,
                "legendgroup": "chosen",
                "x": [str(layer[field]) for layer in chosen],
                "y": [layer["name"] for layer in chosen],
                "xaxis": "x" + place, "yaxis": "y", "hoverinfo": "skip",
                "marker": {"symbol": "circle", "size": 11, "color": "#ffffff",
                           "line": {"color": "#000000", "width": 2.5}},
            }
        )  # fmt: skip
        axes["xaxis" + place] = axis(
            f"{part.removesuffix('s')} bits", type="category", showgrid=False, fixedrange=True,
            domain=[at / len(parts) + 0.02 * at, (at + 1) / len(parts) - 0.02 * (1 - at)],
        )  # fmt: skip
    figure = {
        "data": data,
        "layout": layout(
            max(260, 120 + 20 * len(names)), **axes,
            yaxis=axis("", type="category", range=[len(names) - 0.5, -0.5], showgrid=False,
                       tickfont={"size": 12 if len(names) <= 24 else 10}),
        ),
    }  # fmt: skip
    return Chart(
        "sensitivity", "Sensitivity of each layer", _sensitivity_sentence(known), figure,
        tuple(columns), rows,
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
) -> dict[str, Any]:
    # Colours go by the logarithm; what is not positive gets the lowest one.
    logs = [
        [None if value is None else math.log10(value) if value > 0 else decades[0] for value in row]
        for row in grid
    ]
    return {
        "type": "heatmap", "x": [str(bits) for bits in widths], "y": list(names), "z": logs,
        "customdata": [list(row) for row in grid], "zmin": decades[0], "zmax": decades[-1],
        "colorscale": "Cividis", "xaxis": "x" + place, "yaxis": "y", "xgap": 1, "ygap": 1,
        "showscale": place == "",
        "colorbar": {
            "title": {"text": "divergence", "side": "right"}, "thickness": 12,
            "lenmode": "pixels", "len": min(220, 20 * max(len(names), 7)), "y": 1,
            "yanchor": "top", "tickvals": list(decades), "ticktext": [f"1e{d}" for d in decades],
        },
        "hovertemplate": f"%{{y}}, {part} at %{{x}} bits: %{{customdata:.3g}}<extra></extra>",
    }  # fmt: skip


def measure_name(known: Sensitivity) -> str:
    """Return what the numbers of a sensitivity are, for people."""
    return "KL divergence" if known.measure == "kl" else known.measure


def _sensitivity_sentence(known: Sensitivity) -> str:
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


def roofline_chart(points: Sequence[Row], roofs: Mapping[str, tuple[float, float]]) -> Chart:
    """Return what each layer attains on the target against what its ceilings allow.

    Args:
        points: For each layer its "name" and "kind", and for the run and for "w8a8" (where the
            target runs that) "bits", "intensity" (MACs a byte), "attained" (MACs a second) and
            "ceiling" (the same, of its own roof).
        roofs: Bits such as "w8a8" to MACs a second and bytes a second.
    """
    marks = [point[state] for point in points for state in ("w8a8", "run") if point.get(state)]
    low = min(mark["intensity"] for mark in marks) / 2
    high = max(mark["intensity"] for mark in marks) * 2
    data: list[dict[str, Any]] = []
    for number, (bits, (macs, bandwidth)) in enumerate(roofs.items()):
        knee = min(max(macs / bandwidth, low), high)
        xs = sorted({low, knee, high})
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": f"roof, {bits}", "x": xs,
                "y": [min(macs, x * bandwidth) for x in xs],
                "line": {"color": SERIES[number % len(SERIES)], "width": 1.5,
                         "dash": ("solid", "dash", "dot", "dashdot")[number % 4]},
                "hovertemplate": f"roof at {bits}: %{{y:.3s}} MAC/s<extra></extra>",
            }
        )  # fmt: skip
    heights = [mark["attained"] for mark in marks] + [y for trace in data for y in trace["y"]]
    moves = [point for point in points if point.get("w8a8")]
    data.append(
        {
            "type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip",
            "x": [x for p in moves for x in (p["w8a8"]["intensity"], p["run"]["intensity"], None)],
            "y": [y for p in moves for y in (p["w8a8"]["attained"], p["run"]["attained"], None)],
            "line": {"color": "--soft", "width": 1},
        }
    )  # fmt: skip
    for state in ("w8a8", "run"):
        for kind in KINDS:
            own = [p for p in points if p["kind"] == kind and p.get(state)]
            if own:
                data.append(_roofline_points(own, kind, state))
    figure = {
        "data": data,
        "layout": layout(
            480,
            xaxis=_log_axis("MACs per byte read", [low, high]),
            yaxis=_log_axis("MACs per second", heights),
        ),
    }
    rows = [
        [p["name"], p["kind"], p["run"]["bits"], p["run"]["intensity"], p["run"]["attained"],
         p["run"]["attained"] / p["run"]["ceiling"]]
        for p in points
    ]  # fmt: skip
    nearest, farthest = max(rows, key=lambda row: row[5]), min(rows, key=lambda row: row[5])
    sentence = (
        f"Nearest to its own ceiling is {nearest[0]} ({nearest[5]:.0%} of it at {nearest[2]}), "
        f"farthest {farthest[0]} ({farthest[5]:.0%} at {farthest[2]}). A line leads from each "
        "layer at 8 bits (hollow) to the same layer now (filled)."
    )
    columns = ("layer", "kind", "bits", "MAC per byte", "MAC per second", "share of its ceiling")
    title = "Where the layers stand on the target"
    return Chart("roofline", title, sentence, figure, columns, rows)


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


def _roofline_points(own: Sequence[Row], kind: str, state: str) -> dict[str, Any]:
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


def progress_chart(trials: Sequence[Trial], noise: Sequence[float | None], kind: str) -> Chart:
    """Return the reward of each episode, the best so far and how much the agent explored.

    Args:
        trials: All so far, at least one.
        noise: For each episode the sigma of the agent's noise, None where it chose uniformly or
            where the agent has none.
        kind: What the trials' accuracy is called.
    """
    episodes = [trial.episode for trial in trials]
    # Of equal accuracy the one of lower loss counts, so the best one is not always the first.
    tops = [best(trials[: at + 1]) for at in range(len(trials))]
    share = _is_share(trials)
    shown = ":.2%" if share else ":.4g"
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "name": "reward of the episode", "x": episodes,
            "y": [t.reward for t in trials], "customdata": [[t.accuracy] for t in trials],
            "marker": {
                "color": "--accent", "size": 7,
                "symbol": ["circle-open" if t.cached else "circle" for t in trials],
            },
            "hovertemplate": f"episode %{{x}}: reward %{{y:.4g}}, {kind} "
                             f"%{{customdata[0]{shown}}}<extra></extra>",
        },
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "x": episodes,
            "y": [t.reward for t in tops], "customdata": [[t.accuracy] for t in tops],
            "line": {"color": "--depthwise", "width": 2, "shape": "hv"},
            "hovertemplate": f"best up to episode %{{x}}: {kind} "
                             f"%{{customdata[0]{shown}}}<extra></extra>",
        },
    ]  # fmt: skip
    about = layout(330, xaxis=axis("episode"), yaxis=axis("reward"))
    if any(sigma is not None for sigma in noise):
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "exploration noise (sigma)",
                "x": episodes, "y": list(noise), "yaxis": "y2",
                "line": {"color": "--linear", "width": 2, "dash": "dot"},
                "hovertemplate": "episode %{x}: sigma %{y:.3f}<extra></extra>",
            }
        )  # fmt: skip
        about |= {
            "height": 440,
            "xaxis": axis("episode", anchor="y2"),
            "yaxis": axis("reward", domain=[0.38, 1]),
            "yaxis2": axis("sigma", domain=[0, 0.28], rangemode="tozero"),
        }
    figure = {"data": data, "layout": about}
    top = tops[-1]
    accuracy = format(top.accuracy, ".2%" if share else ".4g")
    sentence = (
        f"{len(trials)} episodes, {sum(not t.cached for t in trials)} of them with a policy not "
        f"met before (filled); the best one, episode {top.episode}, has a reward of "
        f"{top.reward:.4g} ({kind} {accuracy})."
    )
    rows = [
        [t.episode, t.reward, t.accuracy, best_.accuracy, sigma]
        for t, best_, sigma in zip(trials, tops, noise, strict=True)
    ]
    columns = ("episode", "reward", kind, "best so far", "noise (sigma)")
    return Chart("progress", "The search", sentence, figure, columns, rows)


def _is_share(trials: Sequence[Trial]) -> bool:
    return all(0 <= trial.accuracy <= 1 for trial in trials)


def trials_chart(
    trials: Sequence[Trial],
    quantity: str,
    unit: str,
    kind: str,
    limit: float | None = None,
    float_accuracy: float | None = None,
    chosen: int | None = None,
) -> Chart:
    """Return all trials by one cost and their accuracy, with the front that none of them beats.

    Args:
        trials: At least one.
        quantity: The cost.
        unit: Of the cost.
        kind: What the trials' accuracy is called.
        limit: The budget on this cost, if there is one.
        float_accuracy: Of the float network.
        chosen: Episode whose policy was chosen; the best one's where it is not given.
    """
    front = pareto(trials, quantity)
    top = best(trials) if chosen is None else trials[chosen]
    shown = ".2%" if _is_share(trials) else ".4g"
    places = {"x": [t.cost[quantity] for t in trials], "y": [t.accuracy for t in trials]}
    hover = f"episode %{{text}}<br>%{{x:,.6~g}} {unit}, %{{y:{shown}}}<extra></extra>"
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "name": "trials", **places,
            "text": [str(t.episode) for t in trials], "hovertemplate": hover,
            "marker": {"color": "--before", "size": 8, "opacity": 0.8,
                       "symbol": ["x-thin-open" if t.stopped else "circle" for t in trials]},
        },
        {
            "type": "scatter", "mode": "lines+markers", "name": "Pareto front",
            "x": [t.cost[quantity] for t in front], "y": [t.accuracy for t in front],
            "text": [str(t.episode) for t in front], "hovertemplate": hover,
            "line": {"color": "--accent", "width": 2, "shape": "hv"},
            "marker": {"color": "--accent", "size": 8, "symbol": "diamond"},
        },
        {
            "type": "scatter", "mode": "markers", "name": "chosen", "x": [top.cost[quantity]],
            "y": [top.accuracy], "text": [str(top.episode)], "hovertemplate": hover,
            "marker": {"color": "--depthwise", "size": 15, "symbol": "star",
                       "line": {"color": "--page", "width": 1}},
        },
    ]  # fmt: skip
    shapes, notes = [], []
    if limit is not None:
        shapes.append(_line(x0=limit, x1=limit, yref="paper", y0=0, y1=1))
        notes.append(_note("budget", x=limit, yref="paper", y=0, yanchor="bottom",
                           xanchor="right", textangle=-90))  # fmt: skip
    if float_accuracy is not None and math.isfinite(float_accuracy):
        shapes.append(_line(y0=float_accuracy, y1=float_accuracy, xref="paper", x0=0, x1=1))
        notes.append(_note("float network", y=float_accuracy, xref="paper", x=0,
                           xanchor="left", yanchor="bottom"))  # fmt: skip
    tick = {"tickformat": ".1%"} if shown == ".2%" else {}
    figure = {
        "data": data,
        "layout": layout(
            420, shapes=shapes, annotations=notes,
            xaxis=axis(f"{quantity} ({unit})"), yaxis=axis(kind, **tick),
        ),
    }  # fmt: skip
    ends = [f"{amount(t.cost[quantity], unit)} at {t.accuracy:{shown}}" for t in front]
    where = ends[0] if len(ends) == 1 else f"from {ends[0]} to {ends[-1]}"
    sentence = (
        f"{len(trials)} trials; the front has {len(front)} of them, {where}. The chosen one "
        f"(episode {top.episode}) needs {amount(top.cost[quantity], unit)}."
    )
    if any(trial.stopped for trial in trials):
        sentence += " Crosses are estimates: their evaluation was stopped as hopeless."
    on_front = {trial.episode for trial in front}
    rows = [
        [t.episode, t.cost[quantity], t.accuracy, "yes" if t.episode in on_front else "no"]
        for t in trials
    ]
    columns = ("episode", f"{quantity} ({unit})", kind, "on the front")
    return Chart("trials", "All trials", sentence, figure, columns, rows)


def _line(**place: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": "--soft", "width": 1, "dash": "dash"}, **place}


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"color": "--soft", "size": 11}, **place}
