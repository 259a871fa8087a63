"""Several runs side by side."""

import re
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from haq.service import place, shapes
from haq.service.guard import REPORT_POLICY
from haq.service.pages.html import html
from haq.service.pages.visitors import Visitor
from haq.service.shared import Shared

router = APIRouter()

_COMPARED = 12  # at most

Chosen = Annotated[tuple[shapes.RunId, ...], Query(max_length=_COMPARED)]


@router.get("/compare")
def compare_page(service: Shared, who: Visitor, run: Chosen = ()) -> HTMLResponse:
    """Show chosen runs side by side."""
    if len(set(run)) < 2:
        return html(
            "message.html", who, 422, heading="Comparison", message="Choose two runs or more."
        )
    query = urlencode([("run", run_id) for run_id in dict.fromkeys(run)])
    return html("compare.html", who, query=query, count=len(set(run)))


@router.get("/compare/report")
def compare_report(service: Shared, who: Visitor, run: Chosen) -> HTMLResponse:
    """Give the comparison itself, whose scripts reach nothing of the service."""
    from haq.reports.compare import comparison_html

    runs = [service.run(run_id, who) for run_id in dict.fromkeys(run)]
    page = comparison_html([service.settings.run_folder(one.id) for one in runs])
    for one in runs:  # the folders' names, which are numbers
        plain = re.sub(r"[^\w .,=%-]", "", one.title)
        page = page.replace(one.id, f"{plain} ({one.id[:4]})")
    return HTMLResponse(
        place.without_paths(page, service.settings),
        headers={"Content-Security-Policy": REPORT_POLICY},
    )
