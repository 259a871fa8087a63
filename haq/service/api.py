"""The HTTP API: runs, their events and files, uploads, and what there is to choose from."""

import base64
import csv
import io
import json
import logging
import math
import pathlib
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from haq.runs import folder as results
from haq.service import artifacts, choices, place, security, store, uploads
from haq.service.feed import Feed
from haq.service.limits import Limits
from haq.service.metrics import Metrics
from haq.service.security import Principal
from haq.service.settings import Settings
from haq.service.shapes import (
    Asked,
    Choices,
    FileOut,
    Health,
    LayerOut,
    Me,
    Problem,
    Range,
    RunOut,
    RunPage,
    TrialOut,
    UploadOut,
)

LOG = logging.getLogger("haq.service.api")

COOKIE = "haq_session"

Format = Literal["json", "csv"]


class Refusal(Exception):
    """An answer that is not what was asked for."""

    def __init__(
        self, status: int, message: str, field: str | None = None, wait_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.wait_s = status, message, field, wait_s


class Service:
    """What the requests share."""

    def __init__(
        self, engine: Engine, settings: Settings, limits: Limits, store_name: str, is_open: bool
    ) -> None:
        self.engine, self.settings, self.limits = engine, settings, limits
        self.store_name, self.is_open = store_name, is_open
        self.feed = Feed(engine, settings.poll_s)
        self.metrics = Metrics(engine, self.feed)
        self.requests = security.Buckets(limits.requests, limits.requests / 10)
        self.failures = security.Buckets(limits.failures, limits.failures / 10)

    def principal(
        self,
        request: Request,
        token: str | None,
        cookie: str | None,
        csrf: str | None = None,
    ) -> Principal:
        """Return who asks.

        Args:
            request: What is asked.
            token: Of a program.
            cookie: Of the page.
            csrf: As a form sent it; else it is in a header.

        Raises:
            Refusal: Nobody who is known, or too often.
        """
        request.state.may = lambda: True
        if self.is_open:
            found: Principal | None = Principal("local", "admin")
        else:
            found = self._known(request, token, cookie, csrf)
        if found is None:
            raise Refusal(401, "give a token: Authorization: Bearer haq_…, or sign in at /login")
        request.state.user = found.name
        wait = self.requests.take(found.name)
        if wait:
            raise Refusal(429, "too many requests; slow down", wait_s=wait)
        return found

    def _known(
        self, request: Request, token: str | None, cookie: str | None, csrf: str | None
    ) -> Principal | None:
        if token is not None:
            request.state.may = lambda: security.by_token(self.engine, token) is not None
            found = self.signed_in(request, token)
            return found and found[0]
        request.state.may = lambda: security.by_session(self.engine, cookie or "") is not None
        session = security.by_session(self.engine, cookie) if cookie else None
        if session is not None and request.method not in ("GET", "HEAD"):
            sent = request.headers.get("x-csrf-token", "") if csrf is None else csrf
            if not security.same(sent, session.csrf or ""):
                raise Refusal(403, "the form is too old; load the page again")
        return session

    def signed_in(self, request: Request, token: str) -> tuple[Principal, str] | None:
        """Return who has a token, and its id; guesses are counted."""
        address = request.client.host if request.client else ""
        if self.failures.left(address) < 1:
            raise Refusal(429, "too many wrong tokens; wait a moment", wait_s=10)
        found = security.by_token(self.engine, token)
        if found is None:
            self.failures.take(address)
        return found

    def run(self, run_id: str, who: Principal) -> store.Run:
        """Return a run that this user may see.

        Raises:
            Refusal: There is none.
        """
        found = store.find(self.engine, run_id, who.sees)
        if found is None:
            raise Refusal(404, f"there is no run {run_id}")
        return found


def service_of(request: Request) -> Service:
    """Return what the requests share."""
    service: Service = request.app.state.service
    return service


_BEARER = HTTPBearer(auto_error=False, description="haq token create NAME")
_SESSION = APIKeyCookie(name=COOKIE, auto_error=False, description="Of the page.")


def _asks(scope: str) -> Callable[..., Principal]:
    def principal(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        cookie: Annotated[str | None, Depends(_SESSION)],
    ) -> Principal:
        found = service_of(request).principal(
            request, bearer.credentials if bearer else None, cookie
        )
        if not found.may(scope):
            raise Refusal(403, f"this needs a token of scope {scope}; yours is of {found.scope}")
        return found

    return principal


Shared = Annotated[Service, Depends(service_of)]
Reader = Annotated[Principal, Depends(_asks("read"))]
Submitter = Annotated[Principal, Depends(_asks("submit"))]
Admin = Annotated[Principal, Depends(_asks("admin"))]
RunId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


router = APIRouter(
    prefix="/v1", responses=_problems(400, 401, 403, 404, 405, 413, 421, 422, 429, 503)
)


# --- runs


@router.post(
    "/runs", status_code=201, tags=["runs"], responses={200: {"model": RunOut}, **_problems(409)}
)
def create(
    asked: Asked,
    response: Response,
    service: Shared,
    who: Submitter,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
    ] = None,
) -> RunOut:
    """Queue a job. With the same Idempotency-Key it is queued once, and then given again."""
    run, is_new = queue(service, who, asked, idempotency_key)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/runs/{run.id}"
    return RunOut.of(run)


def queue(
    service: Service, who: Principal, asked: Asked, key: str | None
) -> tuple[store.Run, bool]:
    """Queue a job and return its run, and whether it is new.

    Raises:
        Refusal: Too many wait already, or the key was used for another job.
        FieldError: The job cannot be begun.
    """
    most = service.limits.waiting
    if store.waiting(service.engine, who.name) >= most:
        raise Refusal(429, f"you have {most} runs that are not over; wait for some", wait_s=60)
    job = choices.checked(service.engine, service.settings, who.sees, asked.job_fields())
    title = asked.title or f"{job.model}, {', '.join(job.budgets)}"[:200]
    try:
        run, is_new = store.submit(service.engine, who.name, job, title, key)
    except store.Conflict as error:
        raise Refusal(409, str(error), "Idempotency-Key") from None
    return run, is_new


@router.get("/runs", tags=["runs"])
def list_runs(
    service: Shared,
    who: Reader,
    state: Annotated[
        list[Literal["queued", "running", "paused", "finished", "failed", "cancelled"]],
        Query(description="May be repeated."),
    ] = [],  # noqa: B006 - FastAPI copies it
    text: Annotated[str, Query(max_length=200, description="Part of the title.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,120}$")] = None,
) -> RunPage:
    """List your runs, or everyone's as an admin, the newest first."""
    runs = store.listed(
        service.engine, who.sees, state, text.replace("\x00", ""), limit + 1, _place(after)
    )
    more = len(runs) > limit
    runs = runs[:limit]
    return RunPage(runs=[RunOut.of(run) for run in runs], next=_cursor(runs[-1]) if more else None)


def _cursor(run: store.Run) -> str:
    return base64.urlsafe_b64encode(json.dumps([run.created, run.id]).encode()).decode()


def _place(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    try:
        created, run_id = json.loads(base64.urlsafe_b64decode(cursor))
        if not re.fullmatch("[0-9a-f]{32}", run_id) or not math.isfinite(created):
            raise ValueError("not a place")
        return float(created), run_id
    except (ValueError, TypeError, OverflowError) as error:
        raise Refusal(422, "after: give what `next` of the page before said", "after") from error


@router.get("/runs/{run_id}", tags=["runs"])
def read_run(run_id: RunId, service: Shared, who: Reader) -> RunOut:
    """Show a run: its state, progress, best accuracy so far and the time left."""
    return RunOut.of(service.run(run_id, who))


@router.post("/runs/{run_id}/cancel", tags=["runs"], responses=_problems(409))
def cancel(run_id: RunId, service: Shared, who: Submitter) -> RunOut:
    """Cancel a run; what it found so far stays."""
    service.run(run_id, who)
    return RunOut.of(_done(store.cancel, service.engine, run_id))


@router.post("/runs/{run_id}/retry", tags=["runs"], responses=_problems(409))
def retry(run_id: RunId, service: Shared, who: Submitter) -> RunOut:
    """Queue a failed or cancelled run again: it goes on after its last finished episode."""
    service.run(run_id, who)
    return RunOut.of(_done(store.retry, service.engine, run_id))


@router.delete("/runs/{run_id}", status_code=204, tags=["runs"], responses=_problems(409))
def remove(run_id: RunId, service: Shared, who: Submitter) -> None:
    """Delete a run that is not running, with all its files."""
    service.run(run_id, who)
    _done(store.hide, service.engine, run_id)


def _done(act: Callable[[Engine, str], Any], engine: Engine, run_id: str) -> Any:
    try:
        return act(engine, run_id)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None


@router.get(
    "/runs/{run_id}/events", tags=["runs"], response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "The run is over and there is nothing more to come."},
    },
)  # fmt: skip
async def events(
    run_id: RunId,
    request: Request,
    service: Shared,
    who: Reader,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**31 - 1)] = None,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Follow a run: its episodes and states, numbered, and between them its progress.

    Goes on after Last-Event-ID, or `after`. Once the run is over, the stream ends with `end`.
    """
    run = await run_in_threadpool(service.run, run_id, who)
    number = after if last_event_id is None else last_event_id
    if run.state in store.OVER and number >= run.events and last_event_id is not None:
        return Response(status_code=204)  # tells an EventSource not to come back
    if service.feed.readers >= service.limits.readers:
        raise Refusal(503, "too many are reading events; come back later", wait_s=10)
    return StreamingResponse(
        service.feed.follow(run, number, request.state.may),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {}}}}}


@router.get("/runs/{run_id}/trials", tags=["results"], responses=CSV, response_model=list[TrialOut])
def trials(run_id: RunId, service: Shared, who: Reader, format: Format = "json") -> Any:
    """Give the finished episodes."""
    run = service.run(run_id, who)
    found = [json.loads(t.line()) for t in results.read_trials(service.settings.run_folder(run.id))]
    if format == "json":
        return JSONResponse(found)
    quantities = list(found[0]["cost"]) if found else []
    head = ["episode", "accuracy", "loss", "reward", "seconds", "cached"]
    rows = [
        [*(t[key] for key in head), *(t["cost"][q] for q in quantities), json.dumps(t["policy"])]
        for t in found
    ]
    return _csv([*head, *quantities, "policy"], rows)


@router.get("/runs/{run_id}/layers", tags=["results"], responses=CSV, response_model=list[LayerOut])
def layers(run_id: RunId, service: Shared, who: Reader, format: Format = "json") -> Any:
    """Give the layers with the bits of the best policy so far, and what they cost."""
    run = service.run(run_id, who)
    file = service.settings.run_folder(run.id) / "summary.json"
    found = results.read_json(file)["layers"] if file.exists() else []
    if format == "json":
        return JSONResponse(found)
    head = ["name", "kind", "params", "macs", "weight_bits", "act_bits"]
    quantities = list(found[0]["cost"]) if found else []
    rows = [[*(row[key] for key in head), *(row["cost"][q] for q in quantities)] for row in found]
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
    rows = [[name, bits.weight, bits.act] for name, bits in read_policy(file).items()]
    return _csv(["layer", "weight_bits", "act_bits"], rows)


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

REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'self'"
)
"""A report brings its scripts along; in a sandbox they reach nothing of the service."""


@router.get("/runs/{run_id}/report", tags=["results"], response_class=HTMLResponse, responses=_HTML)
def report(run_id: RunId, service: Shared, who: Reader) -> HTMLResponse:
    """Give the report of a run, as one page that needs no network."""
    from haq.reports.report import report_html

    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    if not (folder / "job.json").exists():
        raise _nothing_yet(run)
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
    return report_fragments(folder)


@router.get("/runs/{run_id}/files", tags=["results"])
def files(run_id: RunId, service: Shared, who: Reader) -> list[FileOut]:
    """List the files of a run: its network, and the exports once it is finished."""
    run = service.run(run_id, who)
    folder, finished = service.settings.run_folder(run.id), run.state == "finished"
    return [_described(run.id, name, there) for name, there in artifacts.listed(folder, finished)]


def _described(run_id: str, name: str, there: pathlib.Path | None) -> FileOut:
    return FileOut(
        name=name,
        size_bytes=there.stat().st_size if there else None,
        sha256=artifacts.sha256(there).hex() if there else None,
        href=f"/v1/runs/{run_id}/files/{name}",
    )


@router.get(
    "/runs/{run_id}/files/{name}", tags=["results"], response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"format": "binary"}}}},
        206: {"description": "The part asked for with Range."},
        304: {"description": "As If-None-Match says, it is known."},
        416: {"description": "The file has no such part."},
    },
)  # fmt: skip
def file(
    run_id: RunId,
    name: Annotated[str, Path(max_length=100)],
    service: Shared,
    who: Reader,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Give a file, whole or in part (Range), with its SHA-256 as ETag and Repr-Digest."""
    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    found = artifacts.get(folder, name, run.state == "finished")
    if found is None:
        raise Refusal(404, f"the run has no file {name!r}; /v1/runs/{run.id}/files lists them")
    digest = artifacts.sha256(found)
    etag = f'"{digest.hex()}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        "Cache-Control": "private, no-cache",
    }
    if if_none_match and etag in [part.strip() for part in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    return FileResponse(
        found, media_type="application/octet-stream", filename=name, headers=headers
    )


@router.get("/runs/{run_id}/traceback", tags=["results"])
def failure(run_id: RunId, service: Shared, who: Admin) -> dict[str, str | None]:
    """Give what an operator needs to know of a run that failed."""
    return {"traceback": service.run(run_id, who).traceback}


# --- what there is to choose from


@router.get("/choices", tags=["choices"])
def list_choices(service: Shared, who: Reader) -> Choices:
    """List the models, targets, agents, data sets, weights and clipping methods."""
    return Choices.model_validate(choices.choices(service.settings))


@router.get("/profiles/{name}", tags=["choices"])
def profile(name: Annotated[str, Path(max_length=100)], who: Reader) -> dict[str, Any]:
    """Give the profile of a target: its constants and where they come from."""
    from haq.hw_profiles import TARGETS

    if name not in TARGETS:
        raise Refusal(404, f"there is no target {name!r}; /v1/choices lists them")
    return results.read_json(TARGETS[name])


@router.post("/ranges", tags=["choices"])
def ranges(asked: Asked, service: Shared, who: Reader) -> list[Range]:
    """Say what the cheapest and the dearest policy of a job cost, whatever its budgets."""
    found = choices.ranges(service.engine, service.settings, who.sees, asked.job_fields())
    return [Range(**row) for row in found]


@router.get("/me", tags=["choices"])
def me(who: Reader) -> Me:
    """Say who you are."""
    return Me(name=who.name, scope=who.scope)  # type: ignore[arg-type]


# --- uploads

_BINARY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Label = Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


@router.post("/uploads/{kind}", status_code=201, tags=["uploads"], openapi_extra=_BINARY)
async def upload(
    kind: Literal["weights", "data"],
    request: Request,
    service: Shared,
    who: Submitter,
    name: Label = "",
) -> UploadOut:
    """Bring float weights (.safetensors) or images (.zip, .tar, .tar.gz), as the body itself.

    A job names it `upload:ID`. Images lie as CLASS/IMAGE, or PART/CLASS/IMAGE with train, val and
    test.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/octet-stream":
        raise Refusal(415, "send the file itself as application/octet-stream")
    engine, settings, limits = service.engine, service.settings, service.limits
    await run_in_threadpool(uploads.check_room, engine, who.name, limits)
    received = await uploads.receive(settings, request.stream())
    kept = await run_in_threadpool(
        uploads.keep, engine, settings, limits, who.name, kind, name, received
    )
    return UploadOut(**kept._asdict())


@router.get("/uploads", tags=["uploads"])
def list_uploads(service: Shared, who: Reader) -> list[UploadOut]:
    """List your uploads."""
    return [UploadOut(**u._asdict()) for u in uploads.listed(service.engine, who.sees)]


@router.delete("/uploads/{upload_id}", status_code=204, tags=["uploads"], responses=_problems(409))
def remove_upload(
    upload_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")], service: Shared, who: Submitter
) -> None:
    """Delete an upload that no run needs any more."""
    found = uploads.find(service.engine, upload_id, who.sees)
    if found is None:
        raise Refusal(404, f"there is no upload {upload_id}")
    try:
        uploads.remove(service.engine, service.settings, found)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None


# --- for whoever operates it

operation = APIRouter(tags=["operation"])


@operation.get("/healthz")
async def healthz() -> Health:
    """Say that the process lives."""
    return Health(status="ok")


@operation.get("/readyz", responses=_problems(503))
def readyz(service: Shared) -> Health:
    """Say whether the database answers and the files are there."""
    store.counts(service.engine)
    fault = place.missing(service.settings, service.store_name)
    if fault:
        raise Refusal(503, fault)
    return Health(status="ok")


@operation.get(
    "/metrics", response_class=Response, responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_problems(401, 403),
    },
)  # fmt: skip
def metrics(service: Shared, who: Reader) -> Response:
    """Give the metrics for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
