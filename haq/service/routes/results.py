"""The results of a run: episodes, layers, policy, report, charts."""

import csv
import io
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from haq.runs import folder as results
from haq.service import log, place, store
from haq.service.guard import REPORT_POLICY
from haq.service.shapes import (
    LayerOut,
    TrialOut,
)
from haq.service.shared import Admin, Reader, Refusal, RunId, Shared

router = APIRouter()

Format = Literal["json", "csv"]

CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {}}}}}


@router.get("/runs/{run_id}/trials", tags=["results"], responses=CSV, response_model=list[TrialOut])
def trials(run_id: RunId, service: Shared, who: Reader, format: Format = "json") -> Any:
    """Give the finished episodes."""
    run = service.run(run_id, who)
    finished = results.read_trials(service.settings.run_folder(run.id))
    lines = [json.loads(trial.line()) for trial in finished]
    if format == "json":
        return JSONResponse(lines)
    quantities = list(lines[0]["cost"]) if lines else []
    head = ["episode", "accuracy", "loss", "reward", "seconds", "cached"]
    rows = [
        [*(t[key] for key in head), *(t["cost"][q] for q in quantities), json.dumps(t["policy"])]
        for t in lines
    ]
    return _csv([*head, *quantities, "policy"], rows)


@router.get("/runs/{run_id}/layers", tags=["results"], responses=CSV, response_model=list[LayerOut])
def layers(run_id: RunId, service: Shared, who: Reader, format: Format = "json") -> Any:
    """Give the layers with the bits of the best policy so far, and what they cost."""
    run = service.run(run_id, who)
    file = service.settings.run_folder(run.id) / "summary.json"
    inventory = results.read_json(file)["layers"] if file.exists() else []
    if format == "json":
        return JSONResponse(inventory)
    head = ["name", "kind", "params", "macs", "weight_bits", "act_bits"]
    head += [key for key in ("channels", "float_channels") if inventory and key in inventory[0]]
    quantities = list(inventory[0]["cost"]) if inventory else []
    rows = [
        [*(row[key] for key in head), *(row["cost"][q] for q in quantities)] for row in inventory
    ]
    return _csv([*head, *quantities], rows)


@router.get("/runs/{run_id}/policy", tags=["results"], responses=CSV)
def policy(run_id: RunId, service: Shared, who: Reader, format: Format = "json") -> Any:
    """Give the best policy so far."""
    from haq.allocation.policy import read_policy

    run = service.run(run_id, who)
    file = service.settings.run_folder(run.id) / "policy.json"
    if not file.exists():
        raise _nothing_yet(run)
    if format == "json":
        return JSONResponse(results.read_json(file))
    found = read_policy(file)
    narrow = any(bits.keep < 1 for bits in found.values())
    rows = [[name, *bits, *[bits.keep] * narrow] for name, bits in found.items()]
    return _csv(["layer", "weight_bits", "act_bits", *["keep"] * narrow], rows)


def _nothing_yet(run: store.Run) -> Refusal:
    return Refusal(404, f"the run is {run.state} and has no finished episode yet")


def _csv(head: list[str], rows: list[list[Any]]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return Response(text.getvalue(), media_type="text/csv")


_HTML: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {"schema": {"type": "string"}}}}
}


@router.get("/runs/{run_id}/report", tags=["results"], response_class=HTMLResponse, responses=_HTML)
def report(run_id: RunId, service: Shared, who: Reader) -> HTMLResponse:
    """Give the report of a run, as one page that needs no network."""
    from haq.reports.report import report_html

    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    if not (folder / "job.json").exists():
        raise _nothing_yet(run)
    with service.heavy(who):
        page = place.without_paths(report_html(folder), service.settings)
    return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/runs/{run_id}/charts", tags=["results"])
def charts(run_id: RunId, service: Shared, who: Reader) -> dict[str, Any]:
    """Give the charts of the report, as plotly figures; none before the first episode."""
    from haq.reports.report import report_fragments

    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    if not (folder / "summary.json").exists():
        return {"title": run.title, "state": run.state, "charts": {}, "reasons": {}, "missing": {}}
    with service.heavy(who):
        return report_fragments(folder)


@router.get(
    "/runs/{run_id}/log", tags=["results"], response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)  # fmt: skip
def search_log(
    run_id: RunId,
    service: Shared,
    who: Reader,
    lines: Annotated[
        int | None, Query(ge=1, le=10_000, description="Of its end; all without it.")
    ] = None,
) -> PlainTextResponse:
    """Give the log of a search: stages, warnings, and what it ended with."""
    folder = service.settings.run_folder(service.run(run_id, who).id)
    text = log.whole(folder) if lines is None else log.tail(folder, lines)
    return PlainTextResponse(place.without_paths(text, service.settings))


@router.get("/runs/{run_id}/traceback", tags=["results"])
def failure(run_id: RunId, service: Shared, who: Admin) -> dict[str, str | None]:
    """Give what an operator needs to know of a run that failed."""
    return {"traceback": service.run(run_id, who).traceback}
