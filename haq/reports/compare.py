"""Several runs side by side: one page and one table."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haq.allocation.costs import UNITS
from haq.errors import HaqError, RunError
from haq.reports.charts.best import best_so_far_chart
from haq.reports.charts.front import MEASURES, front_chart, quantities
from haq.reports.charts.policies import policies_chart
from haq.reports.charts.theme import Chart, Row, amount
from haq.reports.page import Cell, Section, Table, number, render
from haq.runs.folder import read_job, read_json, read_trials


def compared(folders: Sequence[Path]) -> list[Row]:
    """Return a row for each run: what was asked for and what came of it.

    Quantities are columns of their names, with their units in ``units``; what a run does not know
    is None.

    Raises:
        RunError: A run has no finished episode, or is damaged.
    """
    rows: list[Row] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        if not (folder / "summary.json").exists():
            raise RunError(
                f"run {folder} has no finished episode yet: haq search --resume {folder}"
            )
        job, summary = read_job(folder), read_json(folder / "summary.json")
        rows.append(
            {
                "run": name, "state": summary["state"], "model": job.model,
                "data": job.data.partition(":")[0], "target": job.target or "",
                "agent": job.agent + (" (paper)" if job.paper else ""), "seed": job.seed,
                "budget": " ".join(job.budgets),
                "episodes": summary["episodes"], "evaluations": summary["evaluations"],
                "evaluation_seconds": summary["evaluation_seconds"],
                **{name: summary.get(name) for name in _ACCURACIES},
                **summary["cost"], "units": summary["units"],
            }
        )  # fmt: skip
    return rows


_ACCURACIES = (
    "float_val_accuracy", "episode_val_accuracy", "final_val_accuracy", "float_test_accuracy",
    "episode_test_accuracy", "final_test_accuracy",
)  # fmt: skip


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or their paths where two have the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise HaqError("the same run was given twice; compare runs with others")
    return [os.path.relpath(folder) for folder in folders]


def comparison_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; the names of quantities carry their units."""
    units = quantities(rows)
    columns = [name for name in rows[0] if name not in units and name != "units"]
    columns += list(units)
    heads = [f"{name} ({units[name]})" if name in units else name for name in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_written(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def _written(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def comparison_html(folders: Sequence[Path]) -> str:
    """Return the page that compares the runs.

    Raises:
        RunError: As ``compared``.
    """
    rows = compared(folders)
    names = [row["run"] for row in rows]
    title = f"{len(rows)} runs side by side" if len(rows) > 1 else f"Run {names[0]}"
    return render(title, _common(rows), comparison_sections(folders, rows))


def _common(rows: Sequence[Row]) -> str:
    fields = ("model", "data", "target", "agent")
    found = {field: sorted({row[field] for row in rows} - {""}) for field in fields}
    return " · ".join(", ".join(values) for values in found.values() if values)


def comparison_sections(
    folders: Sequence[Path], rows: Sequence[Row], reference: str | None = None
) -> list[Section]:
    """Return the sections of the page.

    Args:
        folders: The runs.
        rows: Their ``compared``.
        reference: An agent whose runs are drawn as the line to beat, if there is one.
    """
    fronts = _fronts(rows, reference)
    sections = []
    if fronts:
        sections.append(
            Section("front", "Accuracy and cost", "Where each run ended.", charts=[fronts])
        )
    sections.append(Section("runs", "Runs", tables=[_table(rows)]))
    trials = {row["run"]: read_trials(folder) for folder, row in zip(folders, rows, strict=True)}
    sections.append(Section("progress", "The searches", charts=[[best_so_far_chart(trials)]]))
    layers = [read_json(folder / "summary.json")["layers"] for folder in folders]
    names = [[layer["name"] for layer in each] for each in layers]
    if all(each == names[0] for each in names):
        runs = [row["run"] for row in rows]
        charts = [
            policies_chart(runs, layers, "weight_bits"), policies_chart(runs, layers, "act_bits")
        ]  # fmt: skip
        sections.append(Section("policies", "Bits of each layer", charts=[charts]))
    else:
        note = "The runs have different layers, so their bits cannot be shown side by side."
        sections.append(Section("policies", "Bits of each layer", notes=[note]))
    return sections


def _fronts(rows: Sequence[Row], reference: str | None) -> list[Chart]:
    """Return a chart for each quantity that several runs know, the budgeted ones first."""
    shared = [q for q in quantities(rows) if sum(row.get(q) is not None for row in rows) > 1]
    budgeted = {text.partition("=")[0] for row in rows for text in row["budget"].split()}
    shared.sort(key=lambda quantity: quantity not in budgeted)
    # All by the same measure: a test accuracy beside a validation accuracy would mislead.
    fields = [name for name in MEASURES if all(row[name] is not None for row in rows)]
    return [front_chart(rows, q, field, reference) for q in shared for field in fields]


def _table(rows: Sequence[Row]) -> Table:
    units = {**UNITS, **quantities(rows)}
    costs = list(quantities(rows))
    columns = ["run", "budget", "agent", "seed", "final test", "final validation",
               "best episode, validation", "float test"]  # fmt: skip
    columns += [f"{quantity} ({units[quantity]})" for quantity in costs]
    columns += ["evaluations", "seconds", "state"]
    cells = []
    for row in rows:
        line = [Cell(row["run"]), Cell(row["budget"]), Cell(row["agent"]), number(row["seed"])]
        line += [
            number(row[field], None if row[field] is None else f"{row[field]:.2%}")
            for field in ("final_test_accuracy", "final_val_accuracy", "episode_val_accuracy",
                          "float_test_accuracy")
        ]  # fmt: skip
        line += [number(row.get(q), amount(row.get(q))) for q in costs]
        line += [number(row["evaluations"]), number(row["evaluation_seconds"]), Cell(row["state"])]
        cells.append(line)
    return Table("All runs", columns, cells, "run-table")
