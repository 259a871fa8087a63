"""What all requests share: the service itself, who asks, and how a request is refused."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from haq.service import checks, security, store
from haq.service.feed import Feed
from haq.service.metrics import Metrics
from haq.service.security import Principal
from haq.service.settings import Settings
from haq.service.shapes import Problem

LOG = logging.getLogger("haq.service")

COOKIE = "haq_session"


class Refusal(Exception):
    """An answer that is not what was asked for.

    Attributes:
        status: The HTTP status.
        message: One sentence.
        field: The field of the request that is to blame, if one is.
        wait_s: After how many seconds it may be tried again, if that helps.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, wait_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.wait_s = status, message, field, wait_s


class Service:
    """What the requests share, for as long as the server runs."""

    def __init__(self, engine: Engine, settings: Settings, store_name: str, is_open: bool) -> None:
        self.engine, self.settings, self.limits = engine, settings, settings.limits
        limits = settings.limits
        self.store_name, self.is_open = store_name, is_open
        self.feed = Feed(engine, settings.poll_s)
        self.metrics = Metrics(engine, self.feed)
        self.requests = security.Buckets(limits.requests, limits.requests / 10)
        self.failures = security.Buckets(limits.failures, limits.failures / 10)
        self._heavy = security.Gate(limits.heavy, limits.heavy_each)
        self._uploads = security.Gate(limits.uploads, limits.uploads_each)
        self.longest = limits.heavy + limits.uploads  # requests at once that hold a thread for long
        self.loading: str | None = None

    def begin_loading(self) -> threading.Thread:
        """Load what the first request would wait for, in a thread, which is returned."""
        self.loading = "the service is still loading what requests need"
        thread = threading.Thread(target=self._load, daemon=True)
        thread.start()
        return thread

    def _load(self) -> None:
        try:
            checks.load(self.settings)
            self.loading = None
        except Exception:
            LOG.exception("what requests need cannot be loaded")
            self.loading = "what requests need cannot be loaded; the operator finds why in the log"

    @contextmanager
    def heavy(self, who: Principal) -> Iterator[None]:
        """Do what plans, exports or draws, which takes a thread and memory for a while.

        Raises:
            Refusal: Too many are at it, or what it needs is not loaded yet.
        """
        if self.loading is not None:
            raise Refusal(503, self.loading, wait_s=5)
        with self._passed(self._heavy, who):
            yield

    def upload(self, who: Principal) -> AbstractContextManager[None]:
        """Receive and unpack an upload.

        Raises:
            Refusal: Too many are at it.
        """
        return self._passed(self._uploads, who)

    @contextmanager
    def _passed(self, gate: security.Gate, who: Principal) -> Iterator[None]:
        with gate.passed(who.name) as answer:
            if answer == "each":
                raise Refusal(429, "too much of yours is under way; wait for some", wait_s=5)
            if answer == "all":
                raise Refusal(503, "too much is under way; try again soon", wait_s=5)
            yield

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
            token: A program's token.
            cookie: The cookie of the page's session.
            csrf: As a form sent it; otherwise it is in a header.

        Raises:
            Refusal: Nobody known asks, or someone too often.
        """
        request.state.may = lambda: True
        who: Principal | None = Principal("local", "admin")
        if not self.is_open:
            who = self._known(request, token, cookie, csrf)
        if who is None:
            raise Refusal(401, "give a token: Authorization: Bearer haq_…, or sign in at /login")
        request.state.user = who.name
        wait = self.requests.take(who.name)
        if wait:
            raise Refusal(429, "too many requests; slow down", wait_s=wait)
        return who

    def _known(
        self, request: Request, token: str | None, cookie: str | None, csrf: str | None
    ) -> Principal | None:
        if token is not None:
            request.state.may = lambda: security.by_token(self.engine, token) is not None
            owner = self.signed_in(request, token)
            return owner and owner[0]
        request.state.may = lambda: security.by_session(self.engine, cookie or "") is not None
        session = security.by_session(self.engine, cookie) if cookie else None
        if session is not None and request.method not in ("GET", "HEAD"):
            sent = request.headers.get("x-csrf-token", "") if csrf is None else csrf
            if not security.same(sent, session.csrf or ""):
                raise Refusal(403, "the form is too old; load the page again")
        return session

    def signed_in(self, request: Request, token: str) -> tuple[Principal, str] | None:
        """Return who has a token, and its id; None if nobody has.

        A token that is right is let in whatever came from its address before: others behind the
        same proxy must not lock anyone out.

        Raises:
            Refusal: The token is wrong, as were many others from this address.
        """
        owner = security.by_token(self.engine, token)
        if owner is None:
            address = request.client.host if request.client else ""
            wait = self.failures.take(security.network_of(address))
            if wait:
                raise Refusal(429, "too many wrong tokens; wait a moment", wait_s=wait)
        return owner

    def run(self, run_id: str, who: Principal) -> store.Run:
        """Return a run that this user may see.

        Raises:
            Refusal: There is none.
        """
        run = store.find(self.engine, run_id, who.sees)
        if run is None:
            raise Refusal(404, f"there is no run {run_id}")
        return run


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
        who = service_of(request).principal(request, bearer.credentials if bearer else None, cookie)
        if not who.may(scope):
            raise Refusal(403, f"this needs a token of scope {scope}; yours is of {who.scope}")
        return who

    return principal


Shared = Annotated[Service, Depends(service_of)]
Reader = Annotated[Principal, Depends(_asks("read"))]
Submitter = Annotated[Principal, Depends(_asks("submit"))]
Admin = Annotated[Principal, Depends(_asks("admin"))]
RunId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return these statuses, each with the same shape, for the OpenAPI document."""
    return {code: {"model": Problem} for code in codes}
