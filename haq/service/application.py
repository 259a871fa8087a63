"""The service as one ASGI application: the API, the pages, and what becomes of errors."""

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from haq.errors import HaqError, RunError
from haq.service import api, choices, pages, place, uploads
from haq.service.api import Refusal, Service, service_of
from haq.service.guard import Guard, TooLarge
from haq.service.limits import Limits
from haq.service.settings import Settings
from haq.service.shapes import FieldProblem, Problem, field_of

LOG = logging.getLogger("haq.service.api")

LIMITS = Limits()


def create_app(
    engine: Engine,
    settings: Settings,
    *,
    store_name: str,
    is_open: bool,
    only_loopback: bool = False,
    limits: Limits = LIMITS,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        engine: The database, its tables up to date.
        settings: As of the workers.
        store_name: As ``migrate`` returned it.
        is_open: Whether everyone may do everything; see ``security.is_open``.
        only_loopback: Whether it is to answer only at names of this machine.
        limits: For all users.
    """
    service = Service(engine, settings, limits, store_name, is_open)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.feed.end()

    app = FastAPI(
        title="HAQ",
        summary="Searches for the bits of every layer, under a budget.",
        version="1",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for part in (api.router, api.operation, pages.router):
        app.include_router(part)
    for kind, handler in {**_HANDLERS, pages.SignInFirst: pages.sign_in_first}.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(
        Guard,
        registry=service.metrics.registry,
        body_bytes=limits.body_bytes,
        upload_bytes=limits.upload_bytes,
        only_loopback=only_loopback,
    )
    return app


def _answer(
    status: int, message: str, fields: list[FieldProblem] | None = None, wait_s: float | None = None
) -> JSONResponse:
    headers = {} if wait_s is None else {"Retry-After": str(int(wait_s) + 1)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    problem = Problem(message=message, errors=fields or [])
    return JSONResponse(problem.model_dump(), status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    fields = [FieldProblem(field=error.field, message=error.message)] if error.field else None
    return _answer(error.status, error.message, fields, error.wait_s)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [
        FieldProblem(field=field_of(problem["loc"][1:] or problem["loc"]), message=problem["msg"])
        for problem in error.errors()
    ]
    return _answer(422, f"{fields[0].field}: {fields[0].message}", fields)


async def _impossible(request: Request, error: Exception) -> Response:
    field = error.field if isinstance(error, choices.FieldError) else None
    message = place.without_paths(str(error), service_of(request).settings)
    return _answer(422, message, [FieldProblem(field=field, message=message)] if field else None)


async def _damaged(request: Request, error: Exception) -> Response:
    LOG.error("a run's files are damaged", exc_info=error)
    return _answer(503, "the files of this run are damaged or being written; try again later")


async def _too_busy(request: Request, error: Exception) -> Response:
    return _answer(503, str(error), wait_s=30)


async def _too_full(request: Request, error: Exception) -> Response:
    return _answer(413, str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _answer(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _no_database(request: Request, error: Exception) -> Response:
    LOG.error("the database does not answer: %s", type(error).__name__)
    return _answer(503, "the database does not answer; try again in a moment", wait_s=2)


async def _no_files(request: Request, error: Exception) -> Response:
    LOG.error("the files cannot be used: %s", error)
    return _answer(503, "the service's files cannot be read or written now; try again later")


async def _bug(request: Request, error: Exception) -> Response:
    LOG.error("internal error", extra={"traceback": "".join(traceback.format_exception(error))})
    return _answer(500, "an internal error; the operator finds it in the log")


Handler = Callable[[Request, Exception], Awaitable[Response]]

_HANDLERS: dict[type[Exception], Handler] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    choices.Busy: _too_busy,
    uploads.Full: _too_full,
    TooLarge: _too_full,
    RunError: _damaged,
    HaqError: _impossible,
    HTTPException: _http,
    SQLAlchemyError: _no_database,
    OSError: _no_files,
    Exception: _bug,
}
