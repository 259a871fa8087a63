"""Several runs side by side: one page and one table."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from haq.allocation.costs import UNITS
from haq.allocation.trials import Trial, best
from haq.errors import HaqError, RunError
from haq.reports.charts import SERIES, Chart, amount, axis, layout
from haq.reports.page import Cell, Section, Table, number, render
from haq.runs import folder as results

Row = dict[str, Any]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
DASHES = ("solid", "dot", "dashdot", "longdash")


def compared(folders: Sequence[Path]) -> list[Row]:
    """Return a row for each run: what was asked for and what came of it.

    Quantities are columns of their names, with their units in ``units``; what a run does not know
    is None.

    Raises:
        RunError: A run has no finished episode, or is damaged.
    """
    rows = []
    for folder, name in zip(folders, _names(folders), strict=True):
        if not (folder / "summary.json").exists():
            raise RunError(
                f"run {folder} has no finished episode yet: haq search --resume {folder}"
            )
        job, summary = results.read_job(folder), results.read_json(folder / "summary.json")
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


MEASURES = {
    "final_test_accuracy": "test accuracy",
    "episode_val_accuracy": "validation accuracy in the search",
}
"""Which accuracies a front is drawn of: column of a row to what it is called."""


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or their paths where two have the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise HaqError("the same run was given twice; compare runs with others")
    return [os.path.relpath(folder) for folder in folders]


def quantities(rows: Sequence[Row]) -> dict[str, str]:
    """Return the quantities that any of the runs knows, with their units."""
    return {quantity: unit for row in rows for quantity, unit in row["units"].items()}


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
    trials = {
        row["run"]: results.read_trials(folder) for folder, row in zip(folders, rows, strict=True)
    }
    sections.append(Section("progress", "The searches", charts=[[best_so_far_chart(trials)]]))
    layers = [results.read_json(folder / "summary.json")["layers"] for folder in folders]
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


def front_chart(
    rows: Sequence[Row], quantity: str, field: str, reference: str | None = None
) -> Chart:
    """Return where the runs ended, by one cost and their accuracy, a line for each agent.

    Args:
        rows: As ``compared`` gives them; those without the quantity are left out.
        quantity: The cost.
        field: Which accuracy, one of ``MEASURES`` that all rows have.
        reference: The agent drawn as the dashed line to beat.
    """
    known = [row for row in rows if row.get(quantity) is not None]
    unit = quantities(known)[quantity]
    what = MEASURES[field]
    share = all(0 <= row[field] <= 1 for row in known)
    data: list[dict[str, Any]] = []
    agents = sorted({row["agent"] for row in known}, key=lambda agent: agent == reference)
    for at, agent in enumerate(agents):
        own = sorted((row for row in known if row["agent"] == agent), key=lambda r: r[quantity])
        is_reference = agent == reference
        color = "--soft" if is_reference else SERIES[at % len(SERIES)]
        label = f"{agent} bits, the reference" if is_reference else agent
        line = _means(own, quantity, field)
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": label, "legendgroup": agent,
                "showlegend": False, "hoverinfo": "skip",
                "x": [x for x, _ in line], "y": [y for _, y in line],
                "line": {"color": color, "width": max(4 - at, 1.5),
                         "dash": "dash" if is_reference else "solid"},
            }
        )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": label, "legendgroup": agent,
                "x": [row[quantity] for row in own], "y": [row[field] for row in own],
                "text": [row["run"] for row in own],
                "marker": {
                    # Later ones are smaller, so that none hides another.
                    "color": color, "size": max(15 - 4 * at, 6),
                    "symbol": SYMBOLS[at % len(SYMBOLS)],
                },
                "hovertemplate": f"%{{text}}<br>%{{x:,.6~g}} {unit}, "
                                 f"%{{y:{'.2%' if share else '.4g'}}}<extra></extra>",
            }
        )  # fmt: skip
    tick = {"tickformat": ".1%"} if share else {}
    about = layout(460, xaxis=axis(f"{quantity} ({unit})"), yaxis=axis(what, **tick))
    shown = ".2%" if share else ".4g"
    top = max(known, key=lambda row: row[field])
    sentence = (
        f"{len(known)} runs; the highest {what} is {top[field]:{shown}}, of {top['run']} at "
        f"{amount(top[quantity], unit)}."
    )
    if reference in agents and len(agents) > 1:
        sentence += " The dashed line is the same bits everywhere, lowered until the budget holds."
    if any(row["seed"] != known[0]["seed"] for row in known):
        sentence += " Lines go through the means over the seeds."
    numbers = [[row["run"], row["agent"], row[quantity], row[field]] for row in known]
    columns = ("run", "agent", f"{quantity} ({unit})", what)
    title = f"{what.capitalize()} by {quantity}"
    key = f"front-{quantity}" + ("" if field == next(iter(MEASURES)) else "-validation")
    return Chart(key, title, sentence, {"data": data, "layout": about}, columns, numbers)


def _means(rows: Sequence[Row], quantity: str, field: str) -> list[tuple[float, float]]:
    """Return the mean cost and accuracy over the seeds of each budget, the cheapest first."""
    means = []
    by_budget = sorted(rows, key=lambda row: str(row["budget"]))
    for _, group in groupby(by_budget, key=lambda row: str(row["budget"])):
        own = list(group)
        costs, accuracies = [row[quantity] for row in own], [row[field] for row in own]
        means.append((math.fsum(costs) / len(own), math.fsum(accuracies) / len(own)))
    return sorted(means)


def best_so_far_chart(trials: Mapping[str, Sequence[Trial]]) -> Chart:
    """Return the best accuracy up to each evaluation, a line for each run.

    Args:
        trials: Run to its trials, at least one each.
    """
    share = all(0 <= t.accuracy <= 1 for own in trials.values() for t in own)
    data: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    for at, (run, own) in enumerate(trials.items()):
        tops = [best(own[: n + 1]).accuracy for n in range(len(own))]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": run,
                "x": [t.episode for t in own], "y": tops,
                "line": {"color": SERIES[at % len(SERIES)], "width": 2, "shape": "hv",
                         "dash": DASHES[at // len(SERIES) % len(DASHES)]},
                "hovertemplate": f"{run}, episode %{{x}}: "
                                 f"%{{y:{'.2%' if share else '.4g'}}}<extra></extra>",
            }
        )  # fmt: skip
        rows.append([run, len(own), tops[-1], best(own).episode])
    tick = {"tickformat": ".1%"} if share else {}
    about = layout(420, xaxis=axis("episode"), yaxis=axis("best so far, validation", **tick))
    first = max(rows, key=lambda row: row[2])
    sentence = (
        f"The best accuracy on validation images up to each episode; highest at the end is "
        f"{first[0]} with {format(first[2], '.2%' if share else '.4g')}, from episode {first[3]}."
    )
    columns = ("run", "episodes", "best", "in episode")
    return Chart("best", "Best so far", sentence, {"data": data, "layout": about}, columns, rows)


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
        "data": [
            {
                "type": "heatmap", "x": names, "y": list(runs), "z": bits, "zmin": 1, "zmax": 8,
                "colorscale": "Cividis", "xgap": 1, "ygap": 1,
                "text": [[str(b) for b in row] for row in bits],
                "texttemplate": "%{text}" if len(names) <= 32 else "",
                "colorbar": {"title": {"text": "bits", "side": "right"}, "thickness": 12,
                             "lenmode": "pixels", "len": 160, "y": 1, "yanchor": "top"},
                "hovertemplate": "%{y}, %{x}: %{z} bits<extra></extra>",
            }
        ],
        "layout": layout(
            max(280, 200 + 26 * len(runs)),
            xaxis=axis("", type="category", categoryarray=names, tickangle=-90, showgrid=False),
            yaxis=axis("", type="category", range=[len(runs) - 0.5, -0.5], showgrid=False),
        ),
    }  # fmt: skip
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
