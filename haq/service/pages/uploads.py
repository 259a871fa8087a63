"""What a user has brought along; profiles and tables of hardware can be pasted."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from haq.errors import HaqError
from haq.service import place, uploads
from haq.service.pages.html import html
from haq.service.pages.visitors import Form, Sender, Visitor
from haq.service.routes.uploads import remove_upload
from haq.service.security import Principal
from haq.service.shared import Service, Shared

router = APIRouter()


@router.get("/uploads")
def uploads_page(service: Shared, who: Visitor) -> HTMLResponse:
    """List what was brought along."""
    return _page(service, who, {}, {})


@router.post("/uploads")
async def paste(service: Shared, who: Sender, form: Form) -> Response:
    """Keep a profile or a table that was pasted."""
    text, name = form.get("text", ""), form.get("name", "").strip()[:200]
    if not text.strip():
        errors = {"text": "paste a profile (JSON) or a table of costs (CSV or JSON)"}
        return await run_in_threadpool(_page, service, who, form, errors)

    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode(errors="replace")

    try:
        await run_in_threadpool(uploads.check_room, service.engine, who.name, service.limits)
        with service.upload(who):
            received = await uploads.receive(service.settings, pieces(), uploads.TARGET_BYTES)
            await run_in_threadpool(
                uploads.keep, service.engine, service.settings, service.limits, who.name, "target",
                "".join(c for c in name if c.isprintable()), received,
            )  # fmt: skip
    except HaqError as error:
        sentence = place.without_paths(str(error), service.settings)
        return await run_in_threadpool(_page, service, who, form, {"text": sentence})
    return RedirectResponse("/uploads", 303)


@router.post("/uploads/{upload_id}/delete")
def delete(
    upload_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")], service: Shared, who: Sender
) -> Response:
    """Delete an upload that no run needs any more."""
    remove_upload(upload_id, service, who)
    return RedirectResponse("/uploads", 303)


def _page(
    service: Service, who: Principal, values: dict[str, str], errors: dict[str, str]
) -> HTMLResponse:  # fmt: skip
    return html(
        "uploads.html", who, 422 if errors else 200, "uploads",
        uploads=uploads.listed(service.engine, who.sees), everyone=who.sees is None,
        may=who.may("submit"), values=values, errors=errors,
    )  # fmt: skip
