"""The pages for signing in and out."""

import re

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from haq.service import security
from haq.service.pages.html import html
from haq.service.pages.visitors import Form
from haq.service.shared import COOKIE, Shared

router = APIRouter()


@router.get("/login")
def login_page(next: str = "/") -> HTMLResponse:
    """Ask for a token."""
    return html("login.html", None, next=_local(next), error="")


@router.post("/login")
def login(request: Request, service: Shared, form: Form) -> Response:
    """Open a session for a token."""
    target = _local(form.get("next", "/"))
    owner = service.signed_in(request, form.get("token", "").strip())
    if owner is None:
        return html("login.html", None, 401, next=target, error="This is no token in use.")
    answer = RedirectResponse(target, 303)
    answer.set_cookie(
        COOKIE,
        security.open_session(service.engine, owner[1]),
        max_age=int(security.SESSION_S),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout")
def logout(request: Request, service: Shared, form: Form) -> Response:
    """End the session."""
    cookie = request.cookies.get(COOKIE)
    if cookie:
        service.principal(request, None, cookie, form.get("csrf", ""))
        security.close_session(service.engine, cookie)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


def _local(path: str) -> str:
    """Return a path of this service; what leads elsewhere becomes its first page."""
    return path if re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", path) else "/"
