"""Pages made of templates."""

import time
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from haq.metrics import named
from haq.service.scores import text_of
from haq.service.security import Principal


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("haq.service.pages", "templates"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "said": lambda run: named(run.metric).said,
        "best": lambda run: text_of(named(run.metric), run.best_accuracy),
        "shown": lambda run, score: text_of(named(run.metric), score),
    }
    environment.filters["moment"] = lambda s: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(s))
    return environment


def html(
    name: str, who: Principal | None, status: int = 200, here: str = "", **values: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        name: Of the template.
        who: Who looks at it; None before signing in.
        status: The HTTP status.
        here: Which entry of the menu this is.
        values: What the template shows.
    """
    template = _templates().get_template(name)
    return HTMLResponse(
        template.render(who=who, here=here, version=version("haq"), **values), status
    )


@cache
def source(package: str, *path: str) -> str:
    """Return the text of a file that lies in a package."""
    return files(package).joinpath(*path).read_text(encoding="utf-8")
