"""What becomes of errors: for each kind a status and one sentence."""

import logging
import re
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from haq.errors import HaqError, RunError
from haq.service import checks, place, uploads
from haq.service.pages.html import html
from haq.service.shapes import FieldProblem, Problem, field_of, sentence
from haq.service.shared import Refusal, service_of

LOG = logging.getLogger("haq.service.api")

MOST_ERRORS = 20
"""How many errors of one request an answer lists; it says how many more there are."""

MOST_LETTERS = 500
"""Of a sentence: what is wrong may be told with a value that is as long as the request."""


_HEADINGS = {
    400: "This request cannot be read", 401: "Sign in first", 403: "This is not allowed",
    404: "There is nothing here", 405: "This cannot be asked of it",
    408: "The request came too slowly",
    409: "Not as things stand", 413: "This is too large", 415: "This is of another kind",
    421: "This is another host", 422: "This cannot be done as asked for",
    429: "Too much at once", 500: "An error of the service", 503: "Not now",
}  # fmt: skip


def wants_page(headers: Headers) -> bool:
    """Return whether a browser asks, which is to see errors as pages; programs get JSON."""
    return "text/html" in headers.get("accept", "")


def refusal(headers: Headers, status: int, message: str) -> Response:
    """Return what refuses a request before it is looked at."""
    return _answer(headers, status, message)


def _short(text: str) -> str:
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[:half]} … {text[-half:]}"


def _answer(
    headers: Headers,
    status: int,
    message: str,
    fields: list[FieldProblem] | None = None,
    wait_s: float | None = None,
) -> Response:
    message = _short(message)
    for field in fields or []:
        field.message = _short(field.message)
    more = {} if wait_s is None else {"Retry-After": str(int(wait_s) + 1)}
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    if wants_page(headers):
        page = html(
            "message.html", None, status, heading=_HEADINGS.get(status, "This did not work"),
            message=message, more=[one.message for one in fields or [] if one.message != message],
            back=_back(headers),
        )  # fmt: skip
        page.headers.update({**more, "Vary": "Accept"})
        return page
    problem = Problem(message=message, errors=fields or [])
    return JSONResponse(problem.model_dump(), status, {**more, "Vary": "Accept"})


def _back(headers: Headers) -> str:
    """Return the path of the page before, where it was one of ours."""
    try:
        referer = urlsplit(headers.get("referer", ""))
    except ValueError:
        return ""
    whole = referer.path + (f"?{referer.query}" if referer.query else "")
    ours = referer.netloc and referer.netloc == headers.get("host")
    return whole if ours and re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", whole) else ""


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    fields = [FieldProblem(field=error.field, message=error.message)] if error.field else None
    return _answer(request.headers, error.status, error.message, fields, error.wait_s)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    fields = [
        FieldProblem(field=field_of(fault["loc"][1:] or fault["loc"]), message=sentence(fault))
        for fault in faults[:MOST_ERRORS]
    ]
    more = len(faults) - len(fields)
    rest = f" (and {more} more)" if more else ""
    return _answer(request.headers, 422, f"{fields[0].field}: {fields[0].message}{rest}", fields)


async def _impossible(request: Request, error: Exception) -> Response:
    field = error.field if isinstance(error, checks.FieldError) else None
    message = place.without_paths(str(error), service_of(request).settings)
    return _answer(
        request.headers,
        422,
        message,
        [FieldProblem(field=field, message=message)] if field else None,
    )


async def _damaged(request: Request, error: Exception) -> Response:
    LOG.error("a run's files are damaged", exc_info=error)
    return _answer(
        request.headers, 503, "the files of this run are damaged or being written; try again later"
    )


async def _too_busy(request: Request, error: Exception) -> Response:
    return _answer(request.headers, 503, str(error), wait_s=30)


async def _too_full(request: Request, error: Exception) -> Response:
    return _answer(request.headers, 413, str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _answer(request.headers, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _no_database(request: Request, error: Exception) -> Response:
    LOG.error("the database does not answer: %s", type(error).__name__)
    return _answer(
        request.headers, 503, "the database does not answer; try again in a moment", wait_s=2
    )


async def _no_files(request: Request, error: Exception) -> Response:
    LOG.error("the files cannot be used: %s", error)
    return _answer(
        request.headers, 503, "the service's files cannot be read or written now; try again later"
    )


async def _bug(request: Request, error: Exception) -> Response:
    LOG.error("internal error", extra={"traceback": "".join(traceback.format_exception(error))})
    return _answer(request.headers, 500, "an internal error; the operator finds it in the log")


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
