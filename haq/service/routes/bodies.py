"""JSON bodies, read off the event loop and held to a number of values.

Checking a body takes time for each value in it, and nothing else is answered meanwhile: a megabyte
of unknown keys would hold the service for seconds.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

MOST_VALUES = 2000
"""In a JSON body, the objects and lists among them; a job with a thousand pins has about 1 050."""


class JsonRoute(APIRoute):
    """A route whose JSON body is bounded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await answer(_Bounded(request.scope, request.receive))

        return bounded


class _Bounded(Request):
    async def json(self) -> Any:
        return await run_in_threadpool(parsed, await self.body())


def parsed(body: bytes) -> Any:
    """Return the value of a JSON body.

    Raises:
        HTTPException: It holds too many values, or is nested too deeply.
        JSONDecodeError: It is no JSON.
    """
    try:
        value = json.loads(body)
        if _count(value) > MOST_VALUES:
            raise HTTPException(422, f"the body holds more than {MOST_VALUES} values")
    except RecursionError:
        raise HTTPException(422, "the body is nested too deeply") from None
    return value


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(_count, value))
    return 1
