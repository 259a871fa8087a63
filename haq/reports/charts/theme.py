"""What all charts share: colours, axes, how numbers are written.

A figure is the plain dictionary that plotly reads, in Python as in the browser. Its colours are the
names of ``THEMES``, such as "--ink": who draws it puts in those of the light or the dark theme.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


_SCALES: Mapping[str, tuple[str, float]] = {
    "bytes": ("B", 1.0), "MACs": ("MAC", 1.0),
    "s": ("s", 1.0), "ms": ("s", 1e-3), "us": ("s", 1e-6), "ns": ("s", 1e-9),
    "J": ("J", 1.0), "mJ": ("J", 1e-3), "uJ": ("J", 1e-6), "nJ": ("J", 1e-9), "pJ": ("J", 1e-12),
}  # fmt: skip
"""Units that are written with prefixes: each as so many of its base."""

_PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}


def amount(value: float | None, unit: str = "") -> str:
    """Return a number for people, with its unit: four digits, and a prefix where units have one.

    >>> amount(4767.6, "cycles"), amount(2.91097), amount(None), amount(123863040, "bytes")
    ('4,768 cycles', '2.911', '-', '123.9 MB')
    >>> amount(219.6, "us"), amount(4116, "bytes"), amount(560, "bytes"), amount(2.5e6, "nJ")
    ('219.6 µs', '4.116 kB', '560 bytes', '2.5 mJ')
    """
    if value is None or not math.isfinite(value):
        return "-"
    base, factor = _SCALES.get(unit, (unit, 1.0))
    if unit in _SCALES and value:
        if unit == "bytes" and abs(value) < 1000:
            return f"{value:.4g} bytes"
        size = next((s for s in _PREFIXES if abs(value) * factor >= s * 0.99995), 1e-9)
        return f"{_plain(value * factor / size)} {_PREFIXES[size]}{base}"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix} {base}".rstrip()
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {base}".strip()


def _plain(value: float) -> str:
    """Return four digits without an exponent.

    >>> _plain(999.96), _plain(0.5)
    ('1000', '0.5')
    """
    return f"{value:.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def spoken(quantity: str) -> str:
    """Return what a quantity is called in a sentence.

    >>> spoken("avg_weight_bits"), spoken("latency")
    ('average bits', 'latency')
    """
    return {"avg_weight_bits": "average bits", "bops": "bit operations"}.get(quantity, quantity)


def points(value: float) -> str:
    """Return a difference of accuracies in points, with its sign.

    >>> points(2.654), points(-0.001)
    ('+2.65', '0.00')
    """
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def counted(number: int, thing: str) -> str:
    """Return a number of things.

    >>> counted(1, "episode"), counted(2, "episode")
    ('1 episode', '2 episodes')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


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


def layer_axis(layers: Sequence[Row], **more: Any) -> dict[str, Any]:
    """Return the axis of layers in order of execution."""
    names = [layer["name"] for layer in layers]
    size = 12 if len(names) <= 24 else 10
    # Names such as "0" would else be read as numbers.
    return axis(
        "", type="category", categoryorder="array", categoryarray=names, showgrid=False,
        tickfont={"size": size}, tickangle=-90 if len(names) > 8 else 0, **more,
    )  # fmt: skip


def line(**place: Any) -> dict[str, Any]:
    """Return a dashed line across a figure."""
    return {"type": "line", "line": {"color": "--soft", "width": 1, "dash": "dash"}, **place}


def note(text: str, **place: Any) -> dict[str, Any]:
    """Return a word beside a line of a figure."""
    return {"text": text, "showarrow": False, "font": {"color": "--soft", "size": 11}, **place}
