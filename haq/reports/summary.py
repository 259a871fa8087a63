"""The first section of a report: the figures that count."""

from collections.abc import Mapping
from typing import Any

from haq.metrics import metric_of
from haq.reports.accuracy_target import accuracy_target_sentence
from haq.reports.charts.theme import amount, counted, spoken
from haq.reports.headline import cards, headline, history_of_float, value
from haq.reports.page import Cell, Section, Table, number
from haq.reports.record import RunRecord
from haq.reports.side_by_side import Three, side_by_side
from haq.reports.uniform import uniform_sentence, versus_uniform


def summary_section(record: RunRecord) -> Section:
    """Return the first section: what came of the run, beside uniform bits, 8 bits and float."""
    costs = side_by_side(record)
    return Section(
        "summary", "Summary", headline(record, costs), cards(record, costs),
        [_comparison(record, costs)], notes=_notes(record),
    )  # fmt: skip


def _notes(record: RunRecord) -> list[str]:
    summary = record.summary
    notes = [history_of_float(record), *summary.get("notes", [])]
    if summary["state"] != "finished":
        notes.append(
            f"The run is {summary['state']}: these are the figures of the best policy so far; the "
            "test images are looked at when it is finished."
        )
    if versus_uniform(summary) is None:
        notes.append(uniform_sentence(summary))
    if target := summary.get("accuracy_target"):
        text = accuracy_target_sentence(target)
        notes.append(f"{text[:1].upper()}{text[1:]}.")
    if record.uniform:
        notes.append("8 bits everywhere: calibrated as this run, not fine-tuned.")
    notes.append(_search_sentence(record))
    return [note for note in notes if note]


def _search_sentence(record: RunRecord) -> str:
    summary = record.summary
    episode, episodes = summary["best_episode"], summary["episodes"]
    source = (
        f"The policy was found in episode {episode} of {episodes}"
        if episode < episodes
        else "The policy was raised after the episodes to be verified"
    )
    return (
        f"{source}, after {counted(summary['evaluations'], 'evaluation')} of "
        f"{summary['seconds_per_evaluation']:.2g} s."
    )


def _comparison(record: RunRecord, costs: Mapping[str, Three]) -> Table:
    """Return what the run is worth and costs, before and after, with what it must beat."""
    summary, metric = record.summary, metric_of(record.summary)
    uniform = (summary.get("uniform_reference") or {}).get("cost", {})
    rows: list[list[Cell]] = []
    for label, part in (("validation", "val"), ("test", "test")):
        now = summary.get(metric.key(f"final_{part}"))
        if label == "validation" and now is None:
            now = summary[metric.key("episode_val")]
        values = [
            summary.get(metric.key(f"float_{part}")), record.uniform.get(metric.key(part)), now
        ]  # fmt: skip
        if any(one is not None for one in values):
            cells = [number(one, value(one, metric)) for one in values]
            between = [number(None)] if uniform else []
            rows.append([Cell(f"{label} {metric.said}"), *cells[:2], *between, cells[2]])
    rows += _compared(summary)
    for quantity, (full, eight, now) in costs.items():
        # Where the name says the unit, it is not said again.
        unit = "" if spoken(quantity) != quantity else summary["units"][quantity]
        costs_of = [full, eight, *([uniform.get(quantity)] if uniform else []), now]
        cells = [number(one, amount(one, unit)) for one in costs_of]
        rows.append([Cell(spoken(quantity)), *cells])
    if "macs" in (summary["layers"] or [{}])[0]:
        rows.append(_macs(record, bool(uniform)))
    columns = ["", "float", "8 bits", *["uniform bits"] * bool(uniform), "this run"]
    return Table("Before and after", columns, rows, "comparison", sortable=False)


def _compared(summary: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the row of both values that the run and uniform bits are compared by."""
    reference, metric = summary.get("uniform_reference"), metric_of(summary)
    if not reference:
        return []
    stage = "fine-tuned" if reference["tuned"] else "in its episode"
    cells = [number(reference[of], value(reference[of], metric)) for of in ("uniform", "own")]
    return [[Cell(f"{stage}, as compared"), number(None), number(None), *cells]]


def _macs(record: RunRecord, with_uniform: bool) -> list[Cell]:
    """Return the row of multiply-accumulates, which fewer channels alone make fewer."""
    layers = record.summary["layers"]
    now = sum(layer["macs"] for layer in layers)
    whole = now if record.planned is None else sum(
        layer.macs for layer in record.planned.table.layers)  # fmt: skip
    cells = [number(one, amount(one, "MACs")) for one in [whole] * (2 + with_uniform)]
    return [Cell("multiply-accumulates"), *cells, number(now, amount(now, "MACs"))]
