"""Runs: queue, list, read, cancel, retry, delete."""

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy import Engine

from haq.service import store
from haq.service.routes.bodies import JsonRoute
from haq.service.shapes import (
    JobRequest,
    RunOut,
    RunPage,
)
from haq.service.shared import Reader, Refusal, RunId, Shared, Submitter, problems
from haq.service.submission import queue

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/runs", status_code=201, tags=["runs"], responses={200: {"model": RunOut}, **problems(409)}
)
def create(
    asked: JobRequest,
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


@router.post("/runs/{run_id}/cancel", tags=["runs"], responses=problems(409))
def cancel(run_id: RunId, service: Shared, who: Submitter) -> RunOut:
    """Cancel a run; what it found so far stays."""
    service.run(run_id, who)
    return RunOut.of(_done(store.cancel, service.engine, run_id))


@router.post("/runs/{run_id}/retry", tags=["runs"], responses=problems(409))
def retry(run_id: RunId, service: Shared, who: Submitter) -> RunOut:
    """Queue a failed or cancelled run again: it goes on after its last finished episode."""
    service.run(run_id, who)
    return RunOut.of(_done(store.retry, service.engine, run_id))


@router.delete("/runs/{run_id}", status_code=204, tags=["runs"], responses=problems(409))
def remove(run_id: RunId, service: Shared, who: Submitter) -> None:
    """Delete a run that is not running, with all its files."""
    service.run(run_id, who)
    _done(store.hide, service.engine, run_id)


def _done(act: Callable[[Engine, str], Any], engine: Engine, run_id: str) -> Any:
    try:
        return act(engine, run_id)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None
