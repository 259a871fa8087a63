"""The files of a run."""

import base64
import pathlib
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import FileResponse

from haq.service import artifacts
from haq.service.shapes import (
    FileOut,
)
from haq.service.shared import Reader, Refusal, RunId, Shared

router = APIRouter()


@router.get("/runs/{run_id}/files", tags=["results"])
def files(run_id: RunId, service: Shared, who: Reader) -> list[FileOut]:
    """List the files of a run: its network, and the exports once it is finished."""
    run = service.run(run_id, who)
    folder, finished = service.settings.run_folder(run.id), run.state == "finished"
    return [_described(run.id, name, path) for name, path in artifacts.listed(folder, finished)]


def _described(run_id: str, name: str, path: pathlib.Path | None) -> FileOut:
    return FileOut(
        name=name,
        size_bytes=path.stat().st_size if path else None,
        sha256=artifacts.sha256(path).hex() if path else None,
        href=f"/v1/runs/{run_id}/files/{name}",
    )


@router.get(
    "/runs/{run_id}/files/{name}", tags=["results"], response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"format": "binary"}}}},
        206: {"description": "The part asked for with Range."},
        304: {"description": "As If-None-Match says, it is known."},
        416: {"description": "The file has no such part."},
    },
)  # fmt: skip
def file(
    run_id: RunId,
    name: Annotated[str, Path(max_length=100)],
    service: Shared,
    who: Reader,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Give a file, whole or in part (Range), with its SHA-256 as ETag and Repr-Digest."""
    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    with service.heavy(who):
        path = artifacts.get(folder, name, run.state == "finished")
    if path is None:
        raise Refusal(404, f"the run has no file {name!r}; /v1/runs/{run.id}/files lists them")
    digest = artifacts.sha256(path)
    etag = f'"{digest.hex()}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        "Cache-Control": "private, no-cache",
    }
    if if_none_match and etag in [part.strip() for part in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)
