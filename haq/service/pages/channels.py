"""Channels: which networks devices are sent, in how many bytes, and how they ask for them."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from haq.service import packets, store
from haq.service.pages.html import html
from haq.service.pages.visitors import Visitor
from haq.service.routes.networks import Channel, Owner, history
from haq.service.shapes import RunOut
from haq.service.shared import Service, Shared

router = APIRouter()

SHOWN = 50
"""Networks of a channel that its page shows, the newest ones."""


@router.get("/channels")
def channels_page(service: Shared, who: Visitor) -> HTMLResponse:
    """List the channels with their newest networks."""
    rows = store.channels(service.engine, who.sees)
    return html(
        "channels.html", who, here="channels", everyone=who.sees is None,
        channels=[_described(service, row) for row in rows],
    )  # fmt: skip


@router.get("/channels/{channel}")
def channel_page(
    channel: Channel, request: Request, service: Shared, who: Visitor, owner: Owner = None
) -> HTMLResponse:
    """Show what was published on a channel, and the packets of it so far."""
    rows = history(service, who, channel, owner)
    address = f"{request.base_url}v1/channels/{channel}/network"
    if rows[0].owner != who.name and owner is not None:
        address += f"?owner={owner}"
    names = {packets.known_id(service.engine, row.run): row.number for row in rows}
    return html(
        "channel.html", who, here="channels", channel=channel, address=address,
        more=len(rows) - SHOWN, numbers=names,
        networks=[
            {**_described(service, row), "packets": packets.sizes(service.settings, row.run)}
            for row in rows[:SHOWN]
        ],
    )  # fmt: skip


def _described(service: Service, row: store.Published) -> dict[str, Any]:
    return {
        "name": row.name, "owner": row.owner, "number": row.number, "at": row.at,
        "run": RunOut.of(row.run), "network": packets.known_id(service.engine, row.run),
    }  # fmt: skip
