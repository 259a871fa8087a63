"""Several runs side by side: chosen ones, or those of a sweep."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from haq.errors import HaqError
from haq.metrics import metric_of
from haq.reports.charts.theme import amount, spoken
from haq.runs.folder import read_json
from haq.service import findings, place, shapes, store
from haq.service.guard import REPORT_POLICY
from haq.service.pages.front import Point, drawing
from haq.service.pages.html import html
from haq.service.pages.visitors import Visitor
from haq.service.shapes import RunOut
from haq.service.shared import Refusal, RunId, Service, Shared

router = APIRouter()

_COMPARED = 12  # at most

Chosen = Annotated[tuple[shapes.RunId, ...], Query(max_length=_COMPARED)]


class Column(NamedTuple):
    """One run of the comparison."""

    run: RunOut
    finding: findings.Finding | None
    cost: dict[str, str]
    images: str


@router.get("/compare")
def compare_page(service: Shared, who: Visitor, run: Chosen = ()) -> HTMLResponse:
    """Show chosen runs side by side."""
    chosen = list(dict.fromkeys(run))
    if len(chosen) < 2:
        return html(
            "message.html", who, 422, heading="Comparison", message="Choose two runs or more.",
            back="/runs",
        )  # fmt: skip
    runs = [service.run(run_id, who) for run_id in chosen]
    return _page(service, who, f"{len(runs)} runs side by side", runs)


@router.get("/sweeps/{sweep}")
def sweep_page(sweep: RunId, service: Shared, who: Visitor) -> HTMLResponse:
    """Show the runs of a sweep, and the front that they draw."""
    runs = store.of_sweep(service.engine, sweep, who.sees)
    if not runs:
        raise Refusal(404, f"there is no sweep {sweep}, or none of its runs is there any more")
    models = sorted({one.job.model for one in runs})
    return _page(service, who, f"Sweep of {', '.join(models)}: {len(runs)} runs", runs)


def _page(service: Service, who: Any, title: str, runs: Sequence[store.Run]) -> HTMLResponse:
    folders = {run.id: service.settings.run_folder(run.id) for run in runs}
    summaries = {run_id: _summary(folder) for run_id, folder in folders.items()}
    columns = [_column(folders[run.id], run, summaries[run.id]) for run in runs]
    begun = [one.id for one in runs if one.episodes][:_COMPARED]
    quantities = list(dict.fromkeys(name for column in columns for name in column.cost))
    over = sum(run.state in store.OVER for run in runs)
    fronts = _fronts(runs, summaries)
    asked = _asked(runs)
    return html(
        "compare.html", who, here="runs", title=title, columns=columns, quantities=quantities,
        query=urlencode([("run", run_id) for run_id in begun]) if len(begun) > 1 else "",
        fronts=fronts, over=over,
        differing=[(name, of) for name, of in asked.items() if len(set(of.values())) > 1],
        common=[text for of in asked.values() for text in _shared(of)], live=over < len(runs),
        apart=len({column.images for column in columns if column.images}) > 1,
    )  # fmt: skip


_NONE = "\u2013"


def _asked(runs: Sequence[store.Run]) -> dict[str, dict[str, str]]:
    """Return what was asked for: the name of a column to its cell for each run."""
    jobs = {run.id: run.job for run in runs}
    return {
        "Model": {key: job.model for key, job in jobs.items()},
        "Data": {key: job.data for key, job in jobs.items()},
        "Hardware": {key: job.target or _NONE for key, job in jobs.items()},
        "Agent": {key: job.agent for key, job in jobs.items()},
        "Seed": {key: f"seed {job.seed}" for key, job in jobs.items()},
        "Budget": {key: ", ".join(job.budgets) for key, job in jobs.items()},
    }  # fmt: skip


def _shared(of: Mapping[str, str]) -> list[str]:
    texts = set(of.values()) - {_NONE}
    return list(texts) if len(set(of.values())) == 1 else []


def _column(folder: Path, run: store.Run, summary: Mapping[str, Any]) -> Column:
    units = summary.get("units", {})
    cost = {
        f"{spoken(name)}": amount(value, units.get(name, ""))
        for name, value in summary.get("cost", {}).items()
    }
    images = str(summary.get("test_set", {}).get("sha256", ""))
    return Column(RunOut.of(run), findings.finding(folder), cost, images)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "summary.json")
    except HaqError:
        return {}  # there is none yet, or it is being written


def _fronts(
    runs: Sequence[store.Run], summaries: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a front for each kind of runs that can be compared: tested on the same images."""
    groups: dict[tuple[str, ...], list[tuple[store.Run, dict[str, Any]]]] = {}
    for run in runs:
        summary = summaries[run.id]
        metric = summary.get("metric", "")
        if run.state != "finished" or metric_of(summary).key("final_test") not in summary:
            continue
        quantity = run.job.budgets[0].partition("=")[0].strip()
        sha256 = str(summary.get("test_set", {}).get("sha256", ""))
        if quantity in summary["cost"]:
            key = (run.job.model, run.job.target or "", quantity, metric, sha256)
            groups.setdefault(key, []).append((run, summary))
    return [_front(key, members) for key, members in groups.items() if len(members) > 1]


def _front(
    key: tuple[str, ...], members: Sequence[tuple[store.Run, dict[str, Any]]]
) -> dict[str, Any]:  # fmt: skip
    quantity = key[2]
    metric = metric_of(members[0][1])
    points = [
        Point(summary["cost"][quantity], metric.score(summary[metric.key("final_test")]),
              run.title, f"/runs/{run.id}")
        for run, summary in members
    ]  # fmt: skip
    floats = {summary.get(metric.key("float_test")) for _, summary in members} - {None}
    level = metric.score(float(floats.pop() or 0.0)) if len(floats) == 1 else None
    unit = members[0][1]["units"][quantity]
    drawn = drawing(points, level)
    return drawn | {
        "title": f"{spoken(quantity).capitalize()} against test {metric.said}, {key[0]}",
        "costs": [(amount(value, unit), x) for value, x in drawn["costs"]],
        "scores": [(metric.text(metric.of_score(value)), y) for value, y in drawn["scores"]],
        "said": [
            (p, amount(p.cost, unit), metric.text(metric.of_score(p.score))) for p in points
        ],
    }  # fmt: skip


@router.get("/compare/report")
def compare_report(service: Shared, who: Visitor, run: Chosen) -> HTMLResponse:
    """Give the report that compares runs; its scripts reach nothing of the service."""
    from haq.reports.compare import comparison_html

    runs = [service.run(run_id, who) for run_id in dict.fromkeys(run)]
    with service.heavy(who):
        page = comparison_html([service.settings.run_folder(one.id) for one in runs])
    for one in runs:  # the folders' names, which are numbers
        plain = re.sub(r"[^\w .,=%-]", "", one.title)
        page = page.replace(one.id, f"{plain} ({one.id[:4]})")
    return HTMLResponse(
        place.without_paths(page, service.settings),
        headers={"Content-Security-Policy": REPORT_POLICY},
    )
