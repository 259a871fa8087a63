"""Several runs side by side: one page and one table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from haq.allocation.costs import WITHOUT_TARGET
from haq.errors import HaqError, RunError
from haq.metrics import METRICS, Metric, metric_of
from haq.metrics.metric import Share
from haq.reports.charts.best import best_so_far_chart
from haq.reports.charts.front import MEASURES, front_chart, quantities
from haq.reports.charts.policies import policies_chart
from haq.reports.charts.theme import Row, amount, points, spoken
from haq.reports.comparable import (
    UNIFORM,
    against_uniform,
    by_test_set,
    shared_quantities,
    treatment,
)
from haq.reports.leaders import interval_cell, leaders_section
from haq.reports.names import data_name, model_name, names_of_paths, target_name
from haq.reports.page import Cell, Section, Table, number, render
from haq.runs.folder import read_job, read_json, read_trials
from haq.runs.job import Job


def compared(folders: Sequence[Path]) -> list[Row]:
    """Return a row for each run: what was asked for and what came of it.

    Quantities are columns of their names, with their units in ``units``; what a run does not know
    is None. Runs of equal ``test_set`` were tested on the same images; runs of equal ``treatment``
    differ in nothing but their agents.

    Raises:
        RunError: A run has no finished episode, or is damaged.
    """
    for folder in folders:
        if not (folder / "summary.json").exists():
            raise RunError(
                f"run {folder} has no finished episode yet: haq search --resume {folder}"
            )
    summaries = [read_json(folder / "summary.json") for folder in folders]
    return [
        _row(name, read_job(folder), summary) | {"test_set": images}
        for folder, name, summary, images in zip(
            folders, _names(folders), summaries, by_test_set(summaries), strict=True
        )
    ]


def _row(name: str, job: Job, summary: Mapping[str, Any]) -> dict[str, Any]:
    metric = metric_of(summary)
    return {
        "run": name, "state": summary["state"], "model": model_name(job),
        "data": data_name(job), "test_set": 1, "target": target_name(job),
        "agent": job.agent + (" (paper)" if job.paper else ""), "seed": job.seed,
        "budget": " ".join(job.budgets),
        "episodes": summary["episodes"], "evaluations": summary["evaluations"],
        "evaluation_seconds": summary["evaluation_seconds"],
        **{f"{stage}_accuracy": summary.get(metric.key(stage)) for stage in _STAGES},
        **_ends(summary, metric), "metric": metric.name,
        "target_id": _identity(job, summary),
        **summary["cost"], "units": summary["units"],
        "treatment": treatment(job.model_dump(mode="json")),
    }  # fmt: skip


def _ends(summary: Mapping[str, Any], metric: Metric) -> dict[str, float | None]:
    """Return the ends of the test value's confidence interval, and of its drop from float."""
    interval = summary.get("final_test_interval", (None, None))
    drop = summary.get("test_drop", {}).get("interval", (None, None))
    names = (f"{word}_accuracy" for word in ("final_test_low", "final_test_high"))
    return {**dict(zip(names, interval, strict=True)), "test_drop_low": drop[0],
            "test_drop_high": drop[1]}  # fmt: skip


def _identity(job: Job, summary: Mapping[str, Any]) -> str:
    """Return what two targets must have in common for their costs to be compared."""
    return f"{job.target}, {(summary.get('cost_origin') or {}).get('version', '')}"


_STAGES = (
    "float_val", "episode_val", "final_val", "float_test", "episode_test", "final_test",
)  # fmt: skip
"""Of values of the metric; in rows they are called as accuracies are, whatever the metric."""


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with as many above them as it takes to tell them apart."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise HaqError("the same run was given twice; compare runs with others")
    parts = [folder.resolve().parts for folder in folders]
    count = next(n for n in range(2, 99) if len({own[-n:] for own in parts}) == len(parts))
    return ["/".join(own[-count:]) for own in parts]


def comparison_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; the names of quantities carry their units."""
    units = quantities(rows)
    metrics = {metric_of(row) for row in rows}
    hidden = (
        "units",
        "treatment",
        "target_id",
        *(() if metrics != {METRICS["top1"]} else ("metric",)),
    )
    columns = [name for name in rows[0] if name not in (*units, *hidden)]
    columns += list(units)
    word = "_value" if len(metrics) > 1 else f"_{next(iter(metrics)).word}"
    heads = [
        f"{name} ({units[name]})" if name in units else name.replace("_accuracy", word)
        for name in columns
    ]
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
    return render(title, _common(rows), comparison_sections(folders, rows), 0, names_in(folders))


def names_in(folders: Sequence[Path]) -> Mapping[str, str]:
    """Return what stands on the pages of runs in place of paths of this machine."""
    return names_of_paths([read_job(folder).model_dump(mode="json") for folder in folders], folders)


def _common(rows: Sequence[Row]) -> str:
    fields = ("model", "data", "target", "agent")
    values_of = {field: sorted({row[field] for row in rows} - {""}) for field in fields}
    return " · ".join(", ".join(values) for values in values_of.values() if values)


def comparison_sections(folders: Sequence[Path], rows: Sequence[Row]) -> list[Section]:
    """Return the sections of the page; runs tested on other images have sections of their own.

    Args:
        folders: The runs.
        rows: Their ``compared``.
    """
    sets = {row["test_set"]: str(row["data"]) for row in rows}
    if len(sets) == 1:
        return _sections(folders, rows)
    names = ", ".join(f"{at}: {data}" for at, data in sorted(sets.items()))
    lead = (
        f"These runs were tested on {len(sets)} different sets of images ({names}). Accuracies "
        "on different images do not compare, so each set has charts and tables of its own."
    )
    sections = [Section("sets", "Different test sets", lead)]
    for images in sorted(sets):
        own = [at for at, row in enumerate(rows) if row["test_set"] == images]
        some = _sections([folders[at] for at in own], [rows[at] for at in own])
        sections += [_of_set(section, images) for section in some]
    return sections


def _of_set(section: Section, images: int) -> Section:
    """Return a section whose title and keys name its test set."""
    return replace(
        section,
        key=f"{section.key}-{images}",
        title=f"Test set {images}: {section.title[0].lower()}{section.title[1:]}",
        tables=[table._replace(key=table.key and f"{table.key}-{images}")
                for table in section.tables],
        charts=[[chart._replace(key=f"{chart.key}-{images}") for chart in choice]
                for choice in section.charts],
    )  # fmt: skip


def _sections(folders: Sequence[Path], rows: Sequence[Row]) -> list[Section]:
    sections = [*_against(rows), *_front(rows), *leaders_section(folders, rows)]
    sections.append(Section("runs", "Runs", tables=[_table(rows)]))
    trials = {row["run"]: read_trials(folder) for folder, row in zip(folders, rows, strict=True)}
    if any(len(own) > 1 for own in trials.values()):
        chart = best_so_far_chart(trials, metric_of(rows[0]))
        sections.append(Section("progress", "The searches", charts=[[chart]]))
    layers = [read_json(folder / "summary.json")["layers"] for folder in folders]
    return [*sections, _policies([row["run"] for row in rows], layers)]


def _against(rows: Sequence[Row]) -> list[Section]:
    """Return the section that holds agents against uniform bits, where there are such runs."""
    differences = against_uniform(rows)
    if not differences:
        return []
    metric = metric_of(rows[0])
    share = isinstance(metric, Share)
    what = "points" if share else "difference"
    columns = ("budget", "agent", "seeds", f"test {metric.said}", "best uniform bits", what, "±")
    cells = [
        [
            Cell(one.budget), Cell(one.agent), number(one.seeds),
            number(one.accuracy, metric.text(one.accuracy)),
            number(one.uniform, metric.text(one.uniform)),
            number(one.points, points(one.points) if share
                   else metric.difference(one.accuracy, one.uniform)),
            number(one.error, _error(one.error, share)),
        ]
        for one in differences
    ]  # fmt: skip
    above = sum(round(one.points, 2) > 0 for one in differences)
    below = sum(round(one.points, 2) < 0 for one in differences)
    lead = (
        f"Of {len(differences)} results {above} have a higher and {below} a lower test "
        f"{metric.said} "
        "than the best uniform bits within the same budget, which had the same evaluation and "
        "fine-tuning."
    )
    note = "±: standard error over the seeds. Without it, look at more seeds before you conclude."
    table = Table("Against uniform bits", columns, cells, "uniform-table", stacked=True)
    return [Section("uniform", "Better than uniform bits?", lead, tables=[table], notes=[note])]


def _error(error: float | None, share: bool) -> str | None:
    """Return a standard error, in points of a share, else in the metric's own unit."""
    if error is None:
        return None
    return f"{error:.2f}" if share else f"{error / 100:.3g}"


def _front(rows: Sequence[Row]) -> list[Section]:
    """Return a chart for each quantity that several runs know, the budgeted ones first."""
    shared = shared_quantities(rows, quantities(rows))
    budgeted = {text.partition("=")[0] for row in rows for text in row["budget"].split()}
    shared.sort(key=lambda quantity: quantity not in budgeted)
    # All by the same measure: a test accuracy beside a validation accuracy would mislead.
    fields = [name for name in MEASURES if all(row[name] is not None for row in rows)]
    charts = [front_chart(rows, q, field, UNIFORM) for q in shared for field in fields]
    if not charts:
        return []
    said = metric_of(rows[0]).said.capitalize()
    return [Section("front", f"{said} and cost", "Where each run ended.", charts=[charts])]


def _policies(runs: Sequence[str], layers: Sequence[Sequence[Row]]) -> Section:
    names = [[layer["name"] for layer in each] for each in layers]
    if any(each != names[0] for each in names):
        note = "The runs have different layers, so their bits cannot be shown side by side."
        return Section("policies", "Bits of each layer", notes=[note])
    charts = [policies_chart(runs, layers, field) for field in ("weight_bits", "act_bits")]
    return Section("policies", "Bits of each layer", charts=[charts])


def _table(rows: Sequence[Row]) -> Table:
    units = {**WITHOUT_TARGET, **quantities(rows)}
    costs = list(quantities(rows))
    named = ["run", "model", "data", "budget", "agent"]
    columns = [*named, "seed", "final test", "95 % interval", "final validation",
               "validation in its episode", "float test"]  # fmt: skip
    columns += [spoken(quantity) for quantity in costs]
    columns += ["evaluations", "seconds", "state"]
    cells = []
    for row in rows:
        line = [Cell(row[field]) for field in named]
        line.append(number(row["seed"]))
        line.append(_value(row, "final_test_accuracy"))
        line.append(interval_cell(row))
        line += [_value(row, field) for field in
                 ("final_val_accuracy", "episode_val_accuracy", "float_test_accuracy")]  # fmt: skip
        line += [number(row.get(q), amount(row.get(q), "" if spoken(q) != q else units[q]))
                 for q in costs]  # fmt: skip
        line += [number(row["evaluations"]), number(row["evaluation_seconds"]), Cell(row["state"])]
        cells.append(line)
    return Table("All runs", columns, cells, "run-table", stacked=True)


def _value(row: Row, field: str) -> Cell:
    value = row[field]
    return number(value, None if value is None else metric_of(row).text(value))
