"""Networks for those who hold one already: nothing, the difference, or all of it."""

import base64
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse

from haq.service import artifacts, packets, store
from haq.service.routes.bodies import JsonRoute
from haq.service.security import Principal
from haq.service.shapes import ChannelOut, Publish
from haq.service.shared import Reader, Refusal, RunId, Service, Shared, Submitter, problems

router = APIRouter(route_class=JsonRoute, tags=["networks"])

Channel = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Of a channel.")]
Held = Annotated[
    str | None,
    Query(pattern="^[0-9a-f]{64}$", description="The id of the network that is held."),
]
Owner = Annotated[
    str | None, Query(max_length=64, description="Whose channel, for admins; yours without it.")
]
Known = Annotated[str | None, Header()]

MOST_CHANNELS = 1000
"""Channels of one owner."""

PACKET = {
    "response_class": FileResponse,
    "responses": {
        200: {"content": {"application/octet-stream": {"schema": {"format": "binary"}}}},
        206: {"description": "The part asked for with Range."},
        304: {"description": "What is held is the newest network, or the packet is known."},
        409: {"description": "There is no network yet."},
        416: {"description": "The packet has no such part."},
    },
}


@router.get("/channels")
def channels(service: Shared, who: Reader) -> list[ChannelOut]:
    """List your channels, or everyone's as an admin, with their newest networks."""
    return [_described(service, row) for row in store.channels(service.engine, who.sees)]


@router.put("/channels/{channel}", responses=problems(409))
def publish(channel: Channel, asked: Publish, service: Shared, who: Submitter) -> ChannelOut:
    """Make the network of a finished run the newest one of a channel."""
    run = service.run(asked.run, who)
    _finished(run)
    with service.heavy(who):
        packets.network_id(service.engine, service.settings, run)
    new = not store.history(service.engine, who.name, channel)
    if new and store.channel_count(service.engine, who.name) >= MOST_CHANNELS:
        raise Refusal(409, f"you have {MOST_CHANNELS} channels; publish on one of these")
    store.publish(service.engine, who.name, channel, run.id)
    return _described(service, store.history(service.engine, who.name, channel)[0])


@router.get("/channels/{channel}")
def channel_history(
    channel: Channel, service: Shared, who: Reader, owner: Owner = None
) -> list[ChannelOut]:
    """List what was published on a channel, the newest first."""
    return [_described(service, row) for row in history(service, who, channel, owner)]


@router.get("/channels/{channel}/network", **PACKET)  # type: ignore[arg-type]
def channel_network(
    channel: Channel,
    service: Shared,
    who: Reader,
    held: Held = None,
    owner: Owner = None,
    if_none_match: Known = None,
) -> Response:
    """Give the smallest packet to the newest network of a channel from the one that is held."""
    newest = history(service, who, channel, owner)[0]
    return _sent(service, who, newest.run, held, if_none_match)


@router.get("/runs/{run_id}/network", **PACKET)  # type: ignore[arg-type]
def run_network(
    run_id: RunId,
    service: Shared,
    who: Reader,
    held: Held = None,
    if_none_match: Known = None,
) -> Response:
    """Give the smallest packet to the network of a finished run from the one that is held."""
    return _sent(service, who, service.run(run_id, who), held, if_none_match)


def history(
    service: Service, who: Principal, channel: str, owner: str | None
) -> list[store.Published]:
    """Return what was published on a channel, the newest first.

    Args:
        service: The service.
        who: Who asks.
        channel: Its name.
        owner: Whose; for admins, who have their own without it.

    Raises:
        Refusal: There is no such channel of theirs.
    """
    whose = who.name if owner is None or who.sees is not None else owner
    rows = store.history(service.engine, whose, channel)
    if not rows:
        raise Refusal(404, f"there is no channel {channel!r}, or nothing on it any more")
    return rows


def _finished(run: store.Run) -> None:
    if run.state != "finished":
        raise Refusal(409, f"run {run.id} is {run.state}, and has a network once it is finished")


def _sent(
    service: Service, who: Principal, run: store.Run, held: str | None, known: str | None
) -> Response:
    _finished(run)
    with service.heavy(who):
        newest = packets.network_id(service.engine, service.settings, run)
    headers = {"HAQ-Network": newest, "Cache-Control": "private, no-cache"}
    if held == newest:
        return Response(status_code=304, headers=headers)
    bases = store.runs_with(service.engine, held, who.sees) if held else []
    base = next((one for one in bases if one.state == "finished"), None)
    with service.heavy(who):
        path = packets.packet(service.settings, run, base, held)
    digest = artifacts.sha256(path)
    headers["ETag"] = f'"{digest.hex()}"'
    headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
    if path.stem != packets.WHOLE:
        headers["HAQ-Base"] = path.stem
    if known and headers["ETag"] in [part.strip() for part in known.split(",")]:
        return Response(status_code=304, headers=headers)
    name = f"{newest[:12]}.haqz"
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)


def _described(service: Service, row: store.Published) -> ChannelOut:
    return ChannelOut(
        owner=row.owner, name=row.name, number=row.number, run=row.run.id, at=row.at,
        network=packets.network_id(service.engine, service.settings, row.run),
        href=f"/v1/channels/{row.name}/network",
    )  # fmt: skip
