"""The list of runs and the page of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError

from haq.errors import HaqError
from haq.service import artifacts, estimates, findings, log, place, store
from haq.service.pages.html import html
from haq.service.pages.visitors import Form, Sender, Visitor
from haq.service.routes.runs import place_of, text_of_place
from haq.service.security import Principal
from haq.service.shapes import Notes, RunOut, field_of, sentence, tags_of
from haq.service.shared import Refusal, RunId, Service, Shared
from haq.service.snippet import snippet

router = APIRouter()

PAGE = 50

POINTS = 60
"""Episodes of a sparkline."""

_ORDERS = {
    "newest": "the newest first", "oldest": "the oldest first", "ended": "the last ended first",
    "score": "the best score first", "title": "by title",
}  # fmt: skip


class Asked(NamedTuple):
    """What a list is to show: as the form of the page sends it."""

    state: str
    text: str
    tag: str
    order: str


def _asked(
    state: Annotated[str, Query(max_length=20)] = "",
    text: Annotated[str, Query(max_length=200)] = "",
    tag: Annotated[str, Query(max_length=100)] = "",
    order: Literal["newest", "oldest", "ended", "score", "title"] = "newest",
) -> Asked:
    return Asked(state, text.replace("\x00", ""), tag.replace("\x00", ""), order)


@router.get("/runs")
def runs_page(
    service: Shared,
    who: Visitor,
    asked: Annotated[Asked, Depends(_asked)],
    before: Annotated[str, Query(max_length=1000)] = "",
) -> HTMLResponse:
    """List the runs."""
    states = [asked.state] if asked.state in store.STATES else []
    runs = store.listed(
        service.engine, who.sees, states, asked.text, PAGE + 1, _behind(before, asked.order),
        asked.order, asked.tag,
    )  # fmt: skip
    more = ""
    if len(runs) > PAGE:
        runs = runs[:PAGE]
        more = urlencode(asked._asdict() | {"before": text_of_place(runs[-1], asked.order)})
    standing = store.standing(service.engine, service.settings.order == "fair")
    caption = _ORDERS[asked.order]
    return html(
        "runs.html", who, here="runs",
        runs=[(RunOut.of(run), _points(service, run)) for run in runs], more=more,
        states=store.STATES, asked=asked, everyone=who.sees is None,
        tags=store.tags(service.engine, who.sees), orders=list(_ORDERS.items()),
        caption=caption[0].upper() + caption[1:], workers=standing.workers,
        waits=estimates.waits(standing, {}),
        live=any(run.state not in store.OVER for run in runs),
    )  # fmt: skip


def _behind(before: str, order: str) -> tuple[float | str, str] | None:
    try:
        return place_of(before, order) if before else None
    except ValueError:
        raise Refusal(422, "before: this is no place in the list; begin with the first") from None


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
    return _run_page(service, who, run_id)


def _run_page(
    service: Service, who: Principal, run_id: str, errors: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
) -> HTMLResponse:  # fmt: skip
    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    layers, reasons = _layers(service, run)
    over = run.state in store.OVER
    standing = store.standing(service.engine, service.settings.order == "fair")
    waits = {} if over else estimates.waits(standing, store.paces(service.engine))
    said = {"title": run.title, "tags": " ".join(run.words), "remark": run.remark}
    return html(
        "run.html", who, 422 if errors else 200,
        run=RunOut.of(run), over=over, may=who.may("submit"), live=not over,
        layers=layers, reasons=reasons, trace=run.traceback if who.may("admin") else None,
        files=[_file(run.id, name, there) for name, there in _files(folder, run)],
        wait=waits.get(run.id), workers=standing.workers, finding=findings.finding(folder),
        code=snippet(folder) if run.state == "finished" else None,
        log=place.without_paths(log.tail(folder), service.settings),
        errors=errors or {}, values=said | dict(values or {}),
    )  # fmt: skip


def _files(folder: Path, run: store.Run) -> list[tuple[str, Path | None]]:
    """Return the files to take away, the network's own first: that is what people come for."""
    listed = artifacts.listed(folder, run.state == "finished")
    return sorted(listed, key=lambda file: file[0] not in artifacts.EXPORTS)


def _file(run_id: str, name: str, there: Path | None) -> dict[str, Any]:
    return {
        "name": name, "href": f"/v1/runs/{run_id}/files/{name}", "about": artifacts.ABOUT[name],
        "size_bytes": there.stat().st_size if there else None,
    }  # fmt: skip


@router.post("/runs/{run_id}/notes")
def notes(run_id: RunId, service: Shared, who: Sender, form: Form) -> Response:
    """Change the title, the tags and the remark of a run."""
    service.run(run_id, who)
    given = {name: form[name] for name in ("title", "remark") if name in form}
    try:
        said = Notes.model_validate({**given, "tags": tags_of(form.get("tags", ""))})
    except ValidationError as error:
        errors = {field_of(one["loc"]).partition(".")[0]: sentence(one) for one in error.errors()}
        return _run_page(service, who, run_id, errors, form)
    store.annotate(service.engine, run_id, said.title, said.tags, said.remark)
    return RedirectResponse(f"/runs/{run_id}", 303)


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
    return RedirectResponse("/runs" if act == "delete" else f"/runs/{run_id}", 303)
