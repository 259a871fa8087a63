"""Runs: queue, list, read, cancel, retry, delete."""

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy import Engine

from haq.service import estimates, store
from haq.service.routes.bodies import JsonRoute
from haq.service.shapes import (
    JobRequest,
    Line,
    Notes,
    RunOut,
    RunPage,
    SweepOut,
    SweepRequest,
    WaitOut,
)
from haq.service.shared import Reader, Refusal, RunId, Shared, Submitter, problems
from haq.service.submission import queue, queue_sweep

router = APIRouter(route_class=JsonRoute)

Key = Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


@router.post(
    "/runs", status_code=201, tags=["runs"], responses={200: {"model": RunOut}, **problems(409)}
)
def create(
    asked: JobRequest,
    response: Response,
    service: Shared,
    who: Submitter,
    idempotency_key: Key = None,
) -> RunOut:
    """Queue a job. With the same Idempotency-Key it is queued once, and then given again."""
    run, is_new = queue(service, who, asked, idempotency_key)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/runs/{run.id}"
    return RunOut.of(run)


@router.post("/sweeps", status_code=201, tags=["runs"], responses=problems(409))
def create_sweep(
    asked: SweepRequest, response: Response, service: Shared, who: Submitter,
    idempotency_key: Key = None,
) -> SweepOut:  # fmt: skip
    """Queue a job once for each of several budgets; none is queued unless all can be begun."""
    sweep, runs = queue_sweep(service, who, asked.job, asked.budgets, idempotency_key)
    response.headers["Location"] = f"/v1/sweeps/{sweep}"
    return SweepOut(id=sweep, runs=[RunOut.of(run) for run in runs])


@router.get("/sweeps/{sweep}", tags=["runs"])
def read_sweep(sweep: RunId, service: Shared, who: Reader) -> SweepOut:
    """Show the runs of a sweep, in the order of their budgets."""
    runs = store.of_sweep(service.engine, sweep, who.sees)
    if not runs:
        raise Refusal(404, f"there is no sweep {sweep}")
    return SweepOut(id=sweep, runs=[RunOut.of(run) for run in runs])


@router.get("/line", tags=["runs"])
def line(service: Shared, who: Reader) -> Line:
    """Say who works, how many runs are under way, and when those begin that wait."""
    standing = store.standing(service.engine, service.settings.order == "fair")
    waits = estimates.waits(standing, store.paces(service.engine))
    return Line(
        workers=standing.workers, running=len(standing.running),
        waiting=[
            WaitOut(run=run.id, position=waits[run.id].position, seconds=waits[run.id].seconds)
            for run in standing.waiting if who.sees in (None, run.owner)
        ],
    )  # fmt: skip


@router.get("/runs", tags=["runs"])
def list_runs(
    service: Shared,
    who: Reader,
    state: Annotated[
        list[Literal["queued", "running", "paused", "finished", "failed", "cancelled"]],
        Query(description="May be repeated."),
    ] = [],  # noqa: B006 - FastAPI copies it
    text: Annotated[
        str,
        Query(
            max_length=200,
            description="Part of the title, the tags or the remark, or how a "
            "name in the job begins.",
        ),
    ] = "",
    tag: Annotated[str, Query(max_length=40, description="A tag that the run must have.")] = "",
    order: Annotated[
        Literal["newest", "oldest", "ended", "score", "title"],
        Query(description="By when it was asked for, when it ended, its best score or its title."),
    ] = "newest",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,2000}$")] = None,
) -> RunPage:
    """List your runs, or everyone's as an admin, the newest first unless asked otherwise."""
    runs = store.listed(
        service.engine, who.sees, state, text.replace("\x00", ""), limit + 1,
        _place(after, order), order, tag.replace("\x00", ""),
    )  # fmt: skip
    more = len(runs) > limit
    runs = runs[:limit]
    return RunPage(
        runs=[RunOut.of(run) for run in runs], next=_cursor(runs[-1], order) if more else None
    )


def _cursor(run: store.Run, order: str) -> str:
    return base64.urlsafe_b64encode(text_of_place(run, order).encode()).decode()


def _place(cursor: str | None, order: str) -> tuple[float | str, str] | None:
    if cursor is None:
        return None
    try:
        return place_of(base64.urlsafe_b64decode(cursor).decode(), order)
    except ValueError:  # of base64, UTF-8, JSON or the place
        raise Refusal(422, "after: give what `next` of the page before said", "after") from None


def text_of_place(run: store.Run, order: str) -> str:
    """Return the text of the place behind a run in a list, which ``place_of`` reads."""
    return json.dumps([store.ORDERS[order].value(run), run.id], ensure_ascii=False)


def place_of(text: str, order: str) -> tuple[float | str, str]:
    """Return the place in a list at which its next page begins.

    Raises:
        ValueError: The text names none of this order.
    """
    try:
        value, run_id = json.loads(text)
        if not re.fullmatch("[0-9a-f]{32}", run_id):
            raise ValueError("no run")
        if isinstance(store.ORDERS[order].missing, str):
            value.encode()  # no half of a character
            return value.replace("\x00", ""), run_id
        if not math.isfinite(value):
            raise ValueError("no number")
        return float(value), run_id
    except (TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError("no place") from error


@router.get("/runs/{run_id}", tags=["runs"])
def read_run(run_id: RunId, service: Shared, who: Reader) -> RunOut:
    """Show a run: its state, progress, best accuracy so far and the time left."""
    return RunOut.of(service.run(run_id, who))


@router.patch("/runs/{run_id}", tags=["runs"])
def annotate(run_id: RunId, said: Notes, service: Shared, who: Submitter) -> RunOut:
    """Change the title, the tags or the remark of a run."""
    service.run(run_id, who)
    run = store.annotate(service.engine, run_id, said.title, said.tags, said.remark)
    return RunOut.of(run)


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
