"""What becomes of errors: for each kind a status and one sentence."""

import logging
import traceback
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from haq.errors import HaqError, RunError
from haq.service import checks, place, uploads
from haq.service.shapes import FieldProblem, Problem, field_of
from haq.service.shared import Refusal, service_of

LOG = logging.getLogger("haq.service.api")

MOST_ERRORS = 20
"""How many errors of one request an answer lists; it says how many more there are."""


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
    faults = error.errors()
    fields = [
        FieldProblem(field=field_of(fault["loc"][1:] or fault["loc"]), message=fault["msg"])
        for fault in faults[:MOST_ERRORS]
    ]
    more = len(faults) - len(fields)
    rest = f" (and {more} more)" if more else ""
    return _answer(422, f"{fields[0].field}: {fields[0].message}{rest}", fields)


async def _impossible(request: Request, error: Exception) -> Response:
    field = error.field if isinstance(error, checks.FieldError) else None
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

HANDLERS: dict[type[Exception], Handler] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    checks.Busy: _too_busy,
    uploads.Full: _too_full,
    RunError: _damaged,
    HaqError: _impossible,
    HTTPException: _http,
    SQLAlchemyError: _no_database,
    OSError: _no_files,
    Exception: _bug,
}
"""What answers each kind of error that a request ends in."""
