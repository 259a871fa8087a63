"""Style, script and what draws the charts."""

import json

from fastapi import APIRouter, Response

from haq.service.pages.html import source

router = APIRouter()

_TEMPLATES = ("haq.service.pages", "templates")


@router.get("/static/style.css")
def style() -> Response:
    """Give the report's style, and what the service adds."""
    from haq.reports.charts.theme import THEMES

    def theme(name: str) -> str:
        return "".join(f"{key}: {value}; " for key, value in THEMES[name].items())

    sheets = [source("haq.reports.page", "page.css"), source(*_TEMPLATES, "service.css")]
    text = (
        f":root {{ {theme('light')} }}\n@media (prefers-color-scheme: dark) "
        f"{{ :root {{ {theme('dark')} }} }}\n" + "\n".join(sheets)
    )
    return _static(text, "text/css")


@router.get("/static/service.js")
def script() -> Response:
    """Give the script of the pages."""
    return _static(source(*_TEMPLATES, "service.js"), "text/javascript")


@router.get("/static/themes.json")
def themes() -> Response:
    """Give the colours of the charts."""
    from haq.reports.charts.theme import THEMES

    return _static(json.dumps(THEMES), "application/json")


@router.get("/static/plotly.js")
def plotly() -> Response:
    """Give what draws the charts, from the package."""
    from haq.reports.page import plotly_js

    return _static(plotly_js(), "text/javascript")


def _static(text: str, kind: str) -> Response:
    return Response(text, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})
