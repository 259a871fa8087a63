"""The list of runs and the page of one."""

import json
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from haq.errors import HaqError
from haq.service import artifacts, store
from haq.service.pages.html import html
from haq.service.pages.visitors import Sender, Visitor
from haq.service.shapes import RunOut
from haq.service.shared import Refusal, RunId, Service, Shared

router = APIRouter()

PAGE = 50

POINTS = 60
"""Episodes of a sparkline."""


@router.get("/")
def runs_page(
    service: Shared,
    who: Visitor,
    state: str = "",
    text: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[str, Query(pattern=r"^([0-9]{1,20}(\.[0-9]{1,20})?_[0-9a-f]{32})?$")] = "",
) -> HTMLResponse:
    """List the runs."""
    states = [state] if state in store.STATES else []
    created, _, run_id = before.partition("_")
    after = (float(created), run_id) if before else None
    text = text.replace("\x00", "")
    runs = store.listed(service.engine, who.sees, states, text, PAGE + 1, after)
    more = ""
    if len(runs) > PAGE:
        runs = runs[:PAGE]
        last = f"{runs[-1].created!r}_{runs[-1].id}"
        more = urlencode({"state": state, "text": text, "before": last})
    return html(
        "runs.html", who, here="runs",
        runs=[(RunOut.of(run), _points(service, run)) for run in runs], more=more,
        states=store.STATES, chosen=state, text=text, everyone=who.sees is None,
        live=any(run.state not in store.OVER for run in runs),
    )  # fmt: skip


def _points(service: Service, run: store.Run) -> list[float]:
    """Return the accuracies of the last episodes, for a sparkline."""
    if not run.episodes:
        return []
    events = store.events_after(service.engine, run.id, max(0, run.events - POINTS - 2))
    trials = [json.loads(event.data) for event in events if event.kind == "trial"]
    return [trial["accuracy"] for trial in trials][-POINTS:]


@router.get("/runs/{run_id}")
def run_page(run_id: RunId, service: Shared, who: Visitor) -> HTMLResponse:
    """Show a run, live while it goes on."""
    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    layers, reasons = _layers(service, run)
    listed = artifacts.listed(folder, run.state == "finished")
    return html(
        "run.html", who,
        run=RunOut.of(run), over=run.state in store.OVER, may=who.may("submit"),
        layers=layers, reasons=reasons, trace=run.traceback if who.may("admin") else None,
        files=[
            {
                "name": name, "href": f"/v1/runs/{run.id}/files/{name}",
                "size_bytes": there.stat().st_size if there else None,
            }
            for name, there in listed
        ],
    )  # fmt: skip


def _layers(service: Service, run: store.Run) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from haq.reports.report import report_fragments
    from haq.runs import folder as results

    folder = service.settings.run_folder(run.id)
    try:
        layers = results.read_json(folder / "summary.json")["layers"]
        over = run.state in store.OVER  # before that they change with every episode
        return layers, report_fragments(folder)["reasons"] if over else {}
    except HaqError:  # there is none yet, or it is being written
        return [], {}


@router.post("/runs/{run_id}/{act}")
def act(run_id: RunId, act: str, service: Shared, who: Sender) -> Response:
    """Cancel, try again or delete a run."""
    service.run(run_id, who)
    acts: Mapping[str, Any] = {
        "cancel": store.cancel, "retry": store.retry, "delete": store.hide,
    }  # fmt: skip
    if act not in acts:
        raise Refusal(404, f"a run cannot be asked to {act!r}")
    try:
        acts[act](service.engine, run_id)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None
    return RedirectResponse("/" if act == "delete" else f"/runs/{run_id}", 303)
