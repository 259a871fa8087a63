"""The first page: what runs, what waits and for how long, and what was found."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from haq.service import estimates, findings, store
from haq.service.pages.html import html
from haq.service.pages.visitors import Visitor
from haq.service.shapes import RunOut
from haq.service.shared import Service, Shared

router = APIRouter()

SHOWN = 8
"""Runs of each kind that the page shows."""


@router.get("/")
def home_page(service: Shared, who: Visitor) -> HTMLResponse:
    """Show what goes on."""
    standing = store.standing(service.engine, service.settings.order == "fair")
    waits = estimates.waits(standing, store.paces(service.engine))
    mine = {
        part: [run for run in runs if who.sees in (None, run.owner)]
        for part, runs in (("running", standing.running), ("waiting", standing.waiting))
    }
    over = store.listed(service.engine, who.sees, store.OVER, limit=SHOWN, order="ended")
    return html(
        "home.html", who, here="home", everyone=who.sees is None, may=who.may("submit"),
        running=[RunOut.of(run) for run in mine["running"][:SHOWN]],
        waiting=[(RunOut.of(run), waits[run.id]) for run in mine["waiting"][:SHOWN]],
        more_waiting=max(0, len(mine["waiting"]) - SHOWN),
        others=len(standing.running) - len(mine["running"]),
        over=[_described(service, run) for run in over], workers=standing.workers,
        live=bool(mine["running"] or mine["waiting"]),
    )  # fmt: skip


def _described(service: Service, run: store.Run) -> dict[str, Any]:
    return {
        "run": RunOut.of(run),
        "finding": findings.finding(service.settings.run_folder(run.id)),
    }
