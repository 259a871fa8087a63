"""What every request passes: its size, where it comes from, headers, a log line, the metrics."""

import asyncio
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haq.service.limits import Limits
from haq.service.security import LOOPBACK

LOG = logging.getLogger("haq.service.access")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; frame-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # with none at all, browsers hide the origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Unless a response brings its own. Inline styles: plotly.js writes them."""

REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'self'"
)
"""A report brings its scripts along; in a sandbox they reach nothing of the service."""

_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_SAFE = ("GET", "HEAD", "OPTIONS")
_UPLOADS = "/v1/uploads/"


_SLOW_S = 30.0  # for a body, and where it is an upload also for each so many bytes

_PIECE = 1 << 16
"""What is sent at a time, so that no client that is slow to read fills the memory."""

_MOST_QUERY = 8192  # bytes; a page of runs with a text of 200 letters has up to 2 700
_MOST_FIELDS = 100
_MOST_RANGES = 8

MOST_ARRIVING = 256
"""Requests whose bodies are not whole yet, uploads aside; the oldest is given up for a new one."""

MOST_UNDER_WAY = 1000
"""Requests that are being answered, streams of events and /healthz aside."""


class Guard:
    """The outermost layer of the service."""

    def __init__(
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        limits: Limits,
        only_loopback: bool,
        refuse: Callable[[Headers, int, str], Response],
    ) -> None:
        self._app, self._refuse = app, refuse
        self._limits, self._only_loopback = limits, only_loopback
        self._arriving: OrderedDict[int, asyncio.Timeout] = OrderedDict()
        self._under_way = 0
        self._requests = Counter(
            "haq_http_requests", "Requests answered.", ["method", "route", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "haq_http_seconds", "Time to the end of an answer, event streams aside.", ["route"],
            registry=registry,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answer = _Outgoing(send)
        method = scope["method"]
        self._under_way += 1
        try:
            refusal = self._refusal(scope, Headers(scope=scope))
            if refusal is not None:
                code, sentence = refusal
                refused = self._refuse(Headers(scope=scope), code, sentence)
                if code == 503:
                    refused.headers["Retry-After"] = "2"
                await refused(scope, receive, answer)
            elif method == "HEAD":
                scope = {**scope, "method": "GET"}
                await answer.head_alone(self._app(scope, receive, answer))
            else:
                await self._app(scope, self._limited(scope, receive), answer)
        finally:
            self._under_way -= 1
            self._record(scope, method, answer, time.perf_counter() - started)

    def _record(self, scope: Scope, asked: str, answer: "_Outgoing", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = asked if asked in _METHODS else "other"
        self._requests.labels(method, route, answer.status).inc()
        if not answer.streams:
            self._seconds.labels(route).observe(seconds)
        if route not in ("/healthz", "/readyz", "/metrics"):
            LOG.info(
                "answered",
                extra={
                    "request": answer.request, "method": asked, "route": route,
                    "status": answer.status, "seconds": round(seconds, 4),
                    "user": scope.get("state", {}).get("user"),
                },
            )  # fmt: skip

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._only_loopback and re.sub(r":\d+$", "", host) not in LOOPBACK:
            return 421, "this service answers at localhost only"  # a name that was bound anew
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if scope["method"] not in _SAFE and (
            foreign or headers.get("sec-fetch-site", "same-origin") == "cross-site"
        ):
            return 403, "this request came from another site"
        query = scope["query_string"]
        if len(query) > _MOST_QUERY or query.count(b"&") >= _MOST_FIELDS:
            return 414, f"give a query of up to {_MOST_FIELDS} fields and {_MOST_QUERY} bytes"
        if headers.get("range", "").count(",") >= _MOST_RANGES:
            return 416, f"ask for up to {_MOST_RANGES} ranges at once"
        if self._under_way > MOST_UNDER_WAY and scope["path"] != "/healthz":
            return 503, "too many requests are under way; try again in a moment"
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._limit(scope):
            return 413, f"the body is larger than {self._limit(scope)} bytes"
        return None

    def _limit(self, scope: Scope) -> int:
        return self._limits.upload_bytes if _is_upload(scope) else self._limits.body_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return what receives a body, but none beyond the limit, nor one that hardly moves."""
        most, is_upload = self._limit(scope), _is_upload(scope)
        size, whole, started = 0, False, asyncio.get_running_loop().time()

        async def counted() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            more_s = size / self._limits.upload_rate_bytes if is_upload else 0.0
            try:
                async with asyncio.timeout_at(started + _SLOW_S + more_s) as end:
                    with self._registered(end, is_upload):
                        message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly; send it again") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        return counted

    @contextmanager
    def _registered(self, end: asyncio.Timeout, is_upload: bool) -> Iterator[None]:
        """Have the oldest of too many bodies that are not whole given up."""
        if is_upload:  # of a user who is known, and who has so many at once
            yield
            return
        self._arriving[id(end)] = end
        if len(self._arriving) > MOST_ARRIVING:
            _, oldest = self._arriving.popitem(last=False)
            oldest.reschedule(0.0)
        try:
            yield
        finally:
            self._arriving.pop(id(end), None)


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"].startswith(_UPLOADS))


class _Outgoing:
    """Sends an answer on, with the headers that all answers have, and notes its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request = uuid.uuid4().hex[:16]
        self.status, self.streams = 500, False
        self._alone: asyncio.Future[None] | None = None

    async def head_alone(self, answering: Awaitable[None]) -> None:
        """Send the head of an answer, and end what would make the rest of it."""
        self._alone = asyncio.ensure_future(answering)
        try:
            await self._alone
        except asyncio.CancelledError:
            if not self._alone.cancelled():  # the request itself is given up
                self._alone.cancel()
                raise

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = self.request
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
        if message["type"] != "http.response.body":
            await self._send(message)
        elif self._alone is not None:
            await self._send({"type": "http.response.body", "body": b""})
            self._alone.cancel()
        else:
            await self._in_pieces(message.get("body", b""), message.get("more_body", False))

    async def _in_pieces(self, body: bytes, more: bool) -> None:
        for place in range(0, max(len(body), 1), _PIECE):
            piece = body[place : place + _PIECE]
            goes_on = more or place + _PIECE < len(body)
            await self._send({"type": "http.response.body", "body": piece, "more_body": goes_on})
