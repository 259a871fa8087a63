"""What every request passes: its size, where it comes from, headers, a log line, the metrics."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


_SLOW_S = 30.0  # for a body of any size, and beside it
_LEAST_RATE = 1024.0  # bytes a second


class Guard:
    """The outermost layer of the service."""

    def __init__(
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        body_bytes: int,
        upload_bytes: int,
        only_loopback: bool,
        refuse: Callable[[Headers, int, str], Response],
    ) -> None:
        self._app, self._refuse = app, refuse
        self._body, self._upload, self._only_loopback = body_bytes, upload_bytes, only_loopback
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
        try:
            refusal = self._refusal(scope, Headers(scope=scope))
            if refusal is None:
                await self._app(scope, self._limited(scope, receive), answer)
            else:
                code, sentence = refusal
                await self._refuse(Headers(scope=scope), code, sentence)(scope, receive, answer)
        finally:
            self._record(scope, answer, time.perf_counter() - started)

    def _record(self, scope: Scope, answer: "_Outgoing", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, answer.status).inc()
        if not answer.streams:
            self._seconds.labels(route).observe(seconds)
        if route not in ("/healthz", "/readyz", "/metrics"):
            LOG.info(
                "answered",
                extra={
                    "request": answer.request, "method": scope["method"], "route": route,
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
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._limit(scope):
            return 413, f"the body is larger than {self._limit(scope)} bytes"
        return None

    def _limit(self, scope: Scope) -> int:
        return self._upload if scope["path"].startswith(_UPLOADS) else self._body

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return what receives a body, but none beyond the limit, nor one that hardly moves."""
        most = self._limit(scope)
        size, whole, started = 0, False, time.monotonic()

        async def counted() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            left_s = started + _SLOW_S + size / _LEAST_RATE - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), left_s)
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly; send it again") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        return counted


class _Outgoing:
    """Sends an answer on, with the headers that all answers have, and notes its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request = uuid.uuid4().hex[:16]
        self.status, self.streams = 500, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = self.request
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
        await self._send(message)
