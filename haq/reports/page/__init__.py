"""One self-contained HTML page of charts and tables: script, style and plotly.js lie inside it.

Of plotly.js it is the bundle called basic, unchanged (npm: plotly.js-basic-dist-min): scatter and
bar charts, which is all that ours are made of.

The page asks nobody for anything, and its content security policy keeps it so.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from haq.reports.charts.theme import THEMES, Chart
from haq.reports.names import scrubbed

PLOTLY = Path(__file__).with_name("plotly-basic.min.js")
"""What draws the charts, on a page as in pictures."""

FEW_COLUMNS = 24
"""Whose names a phone has room for."""


class Cell(NamedTuple):
    """What a cell of a table says, and the number that it is sorted by where it is one."""

    text: str
    value: float | None = None


class Card(NamedTuple):
    """One figure that counts.

    Attributes:
        label: What it is.
        value: The figure, with its unit.
        note: What to compare it with.
        share: Of a limit, in [0, 1], shown as a bar.
    """

    label: str
    value: str
    note: str = ""
    share: float | None = None


class Table(NamedTuple):
    """Rows under named columns, which can be sorted by any of them.

    On a phone a row of one that is ``stacked`` is a list of its columns, one below the other.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    key: str = ""
    sortable: bool = True
    stacked: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        key: Its anchor.
        title: Its heading.
        lead: A sentence or two below it.
        cards: Figures side by side.
        tables: One below the other.
        charts: Each a choice of charts, of which the first is shown at first.
        notes: What is missing here and why.
    """

    key: str
    title: str
    lead: str = ""
    cards: Sequence[Card] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Sequence[Chart]] = ()
    notes: Sequence[str] = ()


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    reload_s: int = 0,
    names: Mapping[str, str] | None = None,
) -> str:
    """Return the page.

    Args:
        title: Its heading.
        subtitle: A line below it.
        sections: Its parts.
        reload_s: After so many seconds the page loads itself again; 0 for never.
        names: What stands in place of paths of this machine, see ``haq.reports.names``.
    """
    names = names or {}
    title, subtitle = scrubbed(title, names), scrubbed(subtitle, names)
    sections = [_named(section, names) for section in sections]
    charts = {chart.key: chart for s in sections for choice in s.charts for chart in choice}
    figures = {key: plain(chart.figure) for key, chart in charts.items()}
    numbers = {key: _numbers(chart) for key, chart in charts.items()}
    return _templates().get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, reload_s=reload_s, themes=THEMES,
        content={"figures": figures, "numbers": numbers, "themes": THEMES, "reload_s": reload_s},
        plotly=plotly_js() if figures else "", least_width=_least_width,
    )  # fmt: skip


def _named(section: Section, names: Mapping[str, str]) -> Section:
    """Return a section without paths of this machine."""
    tables = [
        table._replace(
            caption=scrubbed(table.caption, names),
            rows=[[cell._replace(text=scrubbed(cell.text, names)) for cell in row]
                  for row in table.rows],
        )
        for table in section.tables
    ]  # fmt: skip
    return replace(
        section,
        title=scrubbed(section.title, names), lead=scrubbed(section.lead, names), tables=tables,
        notes=scrubbed(section.notes, names),
        cards=[Card(*scrubbed(card, names)) for card in section.cards],
        charts=[[Chart(*scrubbed(chart, names)) for chart in choice] for choice in section.charts],
    )  # fmt: skip


@cache
def plotly_js() -> str:
    """Return the script that draws the charts."""
    return PLOTLY.read_text(encoding="utf-8")


def number(value: float | None, text: str | None = None) -> Cell:
    """Return the cell of a number; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("–")  # noqa: RUF001 - a dash
    return Cell(f"{value:,.4g}" if text is None else text, value)


def plain(value: Any) -> Any:
    """Return a figure as JSON has it: what is no finite number becomes null.

    Numbers have seven digits, which is more than any chart shows.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _numbers(chart: Chart) -> dict[str, Any]:
    caption = f"{chart.title}: the numbers"
    return {"caption": caption, "columns": list(chart.columns), "rows": plain(chart.rows)}


def _least_width(chart: Chart) -> int:
    """Return the pixels that a chart of many columns needs for their names; 0 for any width."""
    below = chart.figure["layout"].get("xaxis", {})
    columns = len(below.get("categoryarray") or below.get("ticktext") or ())
    return 60 + 13 * columns if columns > FEW_COLUMNS else 0


def _script_json(value: Any) -> str:
    # So that no text of a run can end the script it stands in.
    return json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("haq.reports.page", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["script_json"] = _script_json
    return environment
