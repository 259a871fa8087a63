"""Maps of rows and columns, as bars: the small bundle of plotly.js has no heatmap of its own."""

from collections.abc import Sequence
from typing import Any

from haq.reports.charts.theme import Figure, axis

GAP = 0.04
"""Of a cell, left free on each side."""


def cells(
    rows: Sequence[str],
    grid: Sequence[Sequence[float | None]],
    colors: Sequence[Sequence[float | None]],
    ends: tuple[float, float],
    **more: Any,
) -> Figure:
    """Return a trace with a coloured cell for each value of a grid.

    Column k lies from k to k + 1 of its axis, which is ``column_axis``; its middle is k + 1/2.
    "customdata" holds the number of a cell's column and its value, for what is shown at it.

    Args:
        rows: Names of the rows, which are those of the other axis.
        grid: A value for each row and column; None for no cell.
        colors: A number for each of them, from the first to the last of ``ends``.
        ends: Numbers of the darkest and of the lightest colour.
        more: Of the trace, such as its axes; "colorbar" is the scale beside it, if any.
    """
    colorbar = more.pop("colorbar", None)
    places = [
        (name, column, value, color)
        for name, row, tints in zip(rows, grid, colors, strict=True)
        for column, (value, color) in enumerate(zip(row, tints, strict=True))
        if value is not None
    ]  # fmt: skip
    return {
        "type": "bar", "orientation": "h", "showlegend": False, "width": 1 - 2 * GAP,
        "y": [name for name, *_ in places], "x": [1 - 2 * GAP] * len(places),
        "base": [column + GAP for _, column, *_ in places],
        "customdata": [[column, value] for _, column, value, _ in places],
        "marker": {
            "color": [color for *_, color in places], "colorscale": "Cividis",
            "cmin": ends[0], "cmax": ends[1], "line": {"width": 0},
            "showscale": colorbar is not None,
            **({} if colorbar is None else {"colorbar": {"thickness": 12, "lenmode": "pixels",
                                                         "y": 1, "yanchor": "top", **colorbar}}),
        },
        **more,
    }  # fmt: skip


def column_axis(title: str, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return the axis of the columns, each named in its middle."""
    return axis(
        title, range=[0, max(len(names), 1)], tickvals=[at + 0.5 for at in range(len(names))],
        ticktext=list(names), showgrid=False, zeroline=False, **more,
    )  # fmt: skip


def row_axis(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return the axis of the rows, the first on top."""
    return axis(
        "", type="category", categoryorder="array", categoryarray=list(names),
        range=[len(names) - 0.5, -0.5], showgrid=False, **more,
    )  # fmt: skip
