"""The events of a run, as a stream."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from haq.service import store
from haq.service.shared import Reader, Refusal, RunId, Shared

router = APIRouter()


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
    if service.feed.readers_of(who.name) >= service.limits.readers_each:
        raise Refusal(429, "you read too many streams of events; close some", wait_s=10)
    return StreamingResponse(
        service.feed.follow(run, number, request.state.may, who.name),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )
