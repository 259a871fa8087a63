"""What users bring along."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from haq.service import store, uploads
from haq.service.shapes import (
    UploadOut,
)
from haq.service.shared import Reader, Refusal, Shared, Submitter, problems

router = APIRouter()

_BINARY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

Label = Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


@router.post("/uploads/{kind}", status_code=201, tags=["uploads"], openapi_extra=_BINARY)
async def bring(
    kind: Literal["weights", "data", "target"],
    request: Request,
    service: Shared,
    who: Submitter,
    name: Label = "",
) -> UploadOut:
    """Bring weights (.safetensors), images (.zip, .tar, .tar.gz) or a target, as the body itself.

    A target is a JSON profile, or a table of costs as CSV or JSON, of at most 4 MiB.

    A job names it `upload:ID`. Images lie as CLASS/IMAGE, or PART/CLASS/IMAGE with train, val and
    test.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/octet-stream":
        raise Refusal(415, "send the file itself as application/octet-stream")
    engine, settings, limits = service.engine, service.settings, service.limits
    await run_in_threadpool(uploads.check_room, engine, who.name, limits)
    most = uploads.TARGET_BYTES if kind == "target" else None
    with service.upload(who):
        received = await uploads.receive(settings, request.stream(), most)
        upload = await run_in_threadpool(
            uploads.keep, engine, settings, limits, who.name, kind, name, received
        )
    return UploadOut(**upload._asdict())


@router.get("/uploads", tags=["uploads"])
def list_uploads(service: Shared, who: Reader) -> list[UploadOut]:
    """List your uploads."""
    return [UploadOut(**u._asdict()) for u in uploads.listed(service.engine, who.sees)]


@router.delete("/uploads/{upload_id}", status_code=204, tags=["uploads"], responses=problems(409))
def remove_upload(
    upload_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")], service: Shared, who: Submitter
) -> None:
    """Delete an upload that no run needs any more."""
    upload = uploads.find(service.engine, upload_id, who.sees)
    if upload is None:
        raise Refusal(404, f"there is no upload {upload_id}")
    try:
        uploads.remove(service.engine, service.settings, upload)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None
