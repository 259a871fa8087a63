"""Who visits a page or sends a form."""

from typing import Annotated
from urllib.parse import parse_qsl, quote

from fastapi import Depends, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from haq.service.security import Principal
from haq.service.shared import COOKIE, Refusal, Shared


class SignInFirst(Exception):
    """Nobody is signed in."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.path = request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def sign_in_first(request: Request, error: Exception) -> Response:
    """Answer with the way to the page for signing in."""
    assert isinstance(error, SignInFirst)
    return RedirectResponse(f"/login?next={quote(error.path)}", 303)


def _visitor(request: Request, service: Shared) -> Principal:
    try:
        return service.principal(request, None, request.cookies.get(COOKIE))
    except Refusal as error:
        if error.status == 401:
            raise SignInFirst(request) from None
        raise


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form, the last of each name."""
    return await run_in_threadpool(_fields, await request.body())


def _fields(body: bytes) -> dict[str, str]:
    try:
        text = body.decode(errors="replace")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=200))
    except ValueError as error:
        raise Refusal(400, "a form has at most 200 fields") from error


def _sender(
    request: Request, service: Shared, form: Annotated[dict[str, str], Depends(_form)]
) -> Principal:
    try:
        who = service.principal(request, None, request.cookies.get(COOKIE), form.get("csrf", ""))
    except Refusal as error:
        if error.status == 401:
            raise SignInFirst(request) from None
        raise
    if not who.may("submit"):
        raise Refusal(403, f"this needs a token of scope submit; yours is of {who.scope}")
    return who


Visitor = Annotated[Principal, Depends(_visitor)]

Sender = Annotated[Principal, Depends(_sender)]

Form = Annotated[dict[str, str], Depends(_form)]
