"""Pages made of templates."""

import math
import time
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from haq.metrics import named
from haq.service.estimates import Wait
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
    environment.filters["duration"] = duration
    environment.filters["capital"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["begins"] = begins
    environment.filters["moment"] = lambda s: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(s))
    return environment


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> [duration(s) for s in (0.4, 59, 61, 7000, 200_000)]
    ['about 1 s', 'about 59 s', 'about 2 min', 'about 1.9 h', 'about 2.3 days']
    """
    if seconds < 60:
        return f"about {math.ceil(seconds)} s"
    if seconds < 3600:
        return f"about {math.ceil(seconds / 60)} min"
    return (
        f"about {seconds / 3600:.1f} h" if seconds < 86400 else f"about {seconds / 86400:.1f} days"
    )


def begins(wait: Wait, workers: int) -> str:
    """Return when a run that waits begins, as far as that is known."""
    if not workers:
        return "when a worker is there"
    if wait.seconds is None:
        return "when a worker is free; no run like those before it has ended yet"
    return "soon" if wait.seconds < 5 else f"in {duration(wait.seconds)}"


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
