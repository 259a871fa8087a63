"""The page: forms and tables made by the server, kept up to date by one script of its own."""

import json
import re
import time
import uuid
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from haq.errors import HaqError
from haq.service import artifacts, choices, place, security, shapes, store, uploads
from haq.service.api import COOKIE, REPORT_POLICY, Refusal, RunId, Service, Shared, queue
from haq.service.security import Principal
from haq.service.shapes import Asked, RunOut

router = APIRouter(include_in_schema=False)

PAGE = 50
POINTS = 60
"""Episodes of a sparkline."""

_COMPARED = 12  # at most


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("haq.reports.page", "service"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters["moment"] = lambda s: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(s))
    return made


def _html(
    name: str, who: Principal | None, status: int = 200, here: str = "", **values: Any
) -> HTMLResponse:
    template = _templates().get_template(name)
    return HTMLResponse(
        template.render(who=who, here=here, version=version("haq"), **values), status
    )


class SignInFirst(Exception):
    """Nobody is signed in."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.path = request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def sign_in_first(request: Request, error: Exception) -> Response:
    """Answer with the way to the page for signing in."""
    assert isinstance(error, SignInFirst)
    return RedirectResponse(f"/login?next={quote(error.path)}", 303)


def _visitor(request: Request, service: Shared) -> Principal:
    try:
        return service.principal(request, None, request.cookies.get(COOKIE))
    except Refusal as error:
        if error.status == 401:
            raise SignInFirst(request) from None
        raise


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form, the last of each name."""
    body = (await request.body()).decode(errors="replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=200))
    except ValueError as error:
        raise Refusal(400, "a form has at most 200 fields") from error


def _sender(
    request: Request, service: Shared, form: Annotated[dict[str, str], Depends(_form)]
) -> Principal:
    try:
        found = service.principal(request, None, request.cookies.get(COOKIE), form.get("csrf", ""))
    except Refusal as error:
        if error.status == 401:
            raise SignInFirst(request) from None
        raise
    if not found.may("submit"):
        raise Refusal(403, f"this needs a token of scope submit; yours is of {found.scope}")
    return found


Visitor = Annotated[Principal, Depends(_visitor)]
Sender = Annotated[Principal, Depends(_sender)]
Form = Annotated[dict[str, str], Depends(_form)]


# --- signing in


@router.get("/login")
def login_page(next: str = "/") -> HTMLResponse:
    """Ask for a token."""
    return _html("login.html", None, next=_local(next), error="")


@router.post("/login")
def login(request: Request, service: Shared, form: Form) -> Response:
    """Open a session for a token."""
    target = _local(form.get("next", "/"))
    found = service.signed_in(request, form.get("token", "").strip())
    if found is None:
        return _html("login.html", None, 401, next=target, error="This is no token in use.")
    answer = RedirectResponse(target, 303)
    answer.set_cookie(
        COOKIE,
        security.open_session(service.engine, found[1]),
        max_age=int(security.SESSION_S),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout")
def logout(request: Request, service: Shared, form: Form) -> Response:
    """End the session."""
    cookie = request.cookies.get(COOKIE)
    if cookie:
        service.principal(request, None, cookie, form.get("csrf", ""))
        security.close_session(service.engine, cookie)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


def _local(path: str) -> str:
    """Return a path of this service; what leads elsewhere becomes its first page."""
    return path if re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", path) else "/"


# --- runs


@router.get("/")
def runs_page(
    service: Shared,
    who: Visitor,
    state: str = "",
    text: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[str, Query(pattern=r"^([0-9]{1,20}(\.[0-9]{1,20})?_[0-9a-f]{32})?$")] = "",
) -> HTMLResponse:
    """List the runs."""
    states = [state] if state in store.STATES else []
    created, _, run_id = before.partition("_")
    after = (float(created), run_id) if before else None
    text = text.replace("\x00", "")
    found = store.listed(service.engine, who.sees, states, text, PAGE + 1, after)
    more = ""
    if len(found) > PAGE:
        found = found[:PAGE]
        last = f"{found[-1].created!r}_{found[-1].id}"
        more = urlencode({"state": state, "text": text, "before": last})
    return _html(
        "runs.html", who, here="runs",
        runs=[(RunOut.of(run), _points(service, run)) for run in found], more=more,
        states=store.STATES, chosen=state, text=text, everyone=who.sees is None,
        live=any(run.state not in store.OVER for run in found),
    )  # fmt: skip


def _points(service: Service, run: store.Run) -> list[float]:
    if not run.episodes:
        return []
    told = store.events_after(service.engine, run.id, max(0, run.events - POINTS - 2))
    trials = [json.loads(event.data) for event in told if event.kind == "trial"]
    return [trial["accuracy"] for trial in trials][-POINTS:]


@router.get("/runs/{run_id}")
def run_page(run_id: RunId, service: Shared, who: Visitor) -> HTMLResponse:
    """Show a run, live while it goes on."""
    run = service.run(run_id, who)
    folder = service.settings.run_folder(run.id)
    layers, reasons = _layers(service, run)
    listed = artifacts.listed(folder, run.state == "finished")
    return _html(
        "run.html", who,
        run=RunOut.of(run), over=run.state in store.OVER, may=who.may("submit"),
        layers=layers, reasons=reasons, trace=run.traceback if who.may("admin") else None,
        files=[
            {
                "name": name, "href": f"/v1/runs/{run.id}/files/{name}",
                "size_bytes": there.stat().st_size if there else None,
            }
            for name, there in listed
        ],
    )  # fmt: skip


def _layers(service: Service, run: store.Run) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from haq.reports.report import report_fragments
    from haq.runs import folder as results

    folder = service.settings.run_folder(run.id)
    try:
        layers = results.read_json(folder / "summary.json")["layers"]
        over = run.state in store.OVER  # before that they change with every episode
        return layers, report_fragments(folder)["reasons"] if over else {}
    except HaqError:  # there is none yet, or it is being written
        return [], {}


@router.post("/runs/{run_id}/{act}")
def act(run_id: RunId, act: str, service: Shared, who: Sender) -> Response:
    """Cancel, try again or delete a run."""
    service.run(run_id, who)
    acts: Mapping[str, Any] = {
        "cancel": store.cancel, "retry": store.retry, "delete": store.hide,
    }  # fmt: skip
    if act not in acts:
        raise Refusal(404, f"a run cannot be asked to {act!r}")
    try:
        acts[act](service.engine, run_id)
    except store.Conflict as error:
        raise Refusal(409, str(error)) from None
    return RedirectResponse("/" if act == "delete" else f"/runs/{run_id}", 303)


# --- a new search

_QUANTITIES = ("avg_weight_bits", "size", "bops", "latency", "energy")
_FIRST = {
    "model": "digits_cnn", "data": "digits", "agent": "ddpg", "episodes": "60",
    "quantity.0": "avg_weight_bits", "quantity.1": "size", "budgets.0": "3", "clipping": "kl",
}  # fmt: skip
_TAKEN = (
    "model", "data", "size", "weights", "float_epochs", "target", "batch", "agent", "episodes",
    "act_bits", "title", "seed", "width", "train_images", "val_images", "calibration_images",
    "final_epochs", "lr", "clipping",
)  # fmt: skip


@router.get("/new")
def new_page(service: Shared, who: Visitor) -> HTMLResponse:
    """Ask what to search for."""
    return _new(service, who, _FIRST, {})


@router.post("/new")
async def new(service: Shared, who: Sender, form: Form) -> Response:
    """Begin a search, say what is wrong with it, or what its budgets can be."""
    return await run_in_threadpool(_begun, service, who, form)


def _begun(service: Service, who: Principal, form: dict[str, str]) -> Response:
    try:
        asked = Asked.model_validate(_fields(form))
        if form.get("action") == "ranges":
            return _new(service, who, form, {}, _ranges(service, who, asked, form))
        key = re.fullmatch(r"[\x21-\x7e]{1,255}", form.get("key", ""))
        run, _ = queue(service, who, asked, key[0] if key else None)
        return RedirectResponse(f"/runs/{run.id}", 303)
    except ValidationError as error:
        errors = {shapes.field_of(found["loc"]): found["msg"] for found in reversed(error.errors())}
    except choices.FieldError as error:
        errors = {error.field or "": str(error)}
    except Refusal as error:
        errors = {error.field or "": error.message}
    shown = {("budgets.0" if name == "budgets" else name): text for name, text in errors.items()}
    return _new(service, who, form, shown, status=422)


def _fields(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a job that were filled in."""
    found: dict[str, Any] = {name: form[name] for name in _TAKEN if form.get(name)}
    if found.get("act_bits", "search") != "search":
        found["act_bits"] = int(found["act_bits"]) if found["act_bits"].isdecimal() else -1
    found["budgets"] = [
        f"{form.get(f'quantity.{row}', '')}={form[f'budgets.{row}']}"
        for row in range(2)
        if form.get(f"budgets.{row}")
    ]
    return found


def _ranges(
    service: Service, who: Principal, asked: Asked, form: Mapping[str, str]
) -> dict[int, str]:
    rows = choices.ranges(service.engine, service.settings, who.sees, asked.job_fields())
    known = {row["quantity"]: row for row in rows}
    said = {}
    for number in range(2):
        quantity = form.get(f"quantity.{number}", "")
        if quantity in known:
            row = known[quantity]
            said[number] = (
                f"From {row['cheapest']:,.4g} (cheapest policy) to {row['dearest']:,.4g} "
                f"{row['unit']} (dearest)."
            )
        else:
            said[number] = f"{quantity} needs a target."
    return said


def _new(
    service: Service,
    who: Principal,
    values: Mapping[str, str],
    errors: Mapping[str, str],
    ranges: Mapping[int, str] | None = None,
    status: int = 200,
) -> HTMLResponse:
    known = choices.choices(service.settings)
    brought = uploads.listed(service.engine, who.name)
    options = {
        kind: [(name, name) for name in known[kind]]
        + [(f"upload:{u.id}", f"{u.name or u.id} (uploaded)") for u in brought if u.kind == kind]
        for kind in ("data", "weights")
    }
    return _html(
        "new.html", who, status, "new",
        values=values, errors=errors, ranges=ranges or {}, key=uuid.uuid4().hex,
        quantities=_QUANTITIES, **options, open=any(values.get(name) for name in ("seed", "lr")),
        models=[(m["name"], m["name"]) for m in known["models"]],
        targets=[(t["name"], f"{t['name']}: {t['about']}") for t in known["targets"]],
        agents=[(name, name) for name in known["agents"]],
        clipping=[(name, name) for name in known["clipping"]],
    )  # fmt: skip


# --- several runs

Chosen = Annotated[tuple[shapes.RunId, ...], Query(max_length=_COMPARED)]


@router.get("/compare")
def compare_page(service: Shared, who: Visitor, run: Chosen = ()) -> HTMLResponse:
    """Show chosen runs side by side."""
    if len(set(run)) < 2:
        return _html(
            "message.html", who, 422, heading="Comparison", message="Choose two runs or more."
        )
    query = urlencode([("run", run_id) for run_id in dict.fromkeys(run)])
    return _html("compare.html", who, query=query, count=len(set(run)))


@router.get("/compare/report")
def compare_report(service: Shared, who: Visitor, run: Chosen) -> HTMLResponse:
    """Give the comparison itself, whose scripts reach nothing of the service."""
    from haq.reports.compare import comparison_html

    runs = [service.run(run_id, who) for run_id in dict.fromkeys(run)]
    page = comparison_html([service.settings.run_folder(found.id) for found in runs])
    for found in runs:  # the folders' names, which are numbers
        plain = re.sub(r"[^\w .,=%-]", "", found.title)
        page = page.replace(found.id, f"{plain} ({found.id[:4]})")
    return HTMLResponse(
        place.without_paths(page, service.settings),
        headers={"Content-Security-Policy": REPORT_POLICY},
    )


# --- what the pages are made with


@router.get("/static/style.css")
def style() -> Response:
    """Give the report's style, and what the service adds."""
    from haq.reports.charts.theme import THEMES

    def theme(name: str) -> str:
        return "".join(f"{key}: {value}; " for key, value in THEMES[name].items())

    loaded = [_source("", "page.css"), _source("service", "service.css")]
    text = (
        f":root {{ {theme('light')} }}\n@media (prefers-color-scheme: dark) "
        f"{{ :root {{ {theme('dark')} }} }}\n" + "\n".join(loaded)
    )
    return _static(text, "text/css")


@router.get("/static/service.js")
def script() -> Response:
    """Give the script of the pages."""
    return _static(_source("service", "service.js"), "text/javascript")


@router.get("/static/themes.json")
def themes() -> Response:
    """Give the colours of the charts."""
    from haq.reports.charts.theme import THEMES

    return _static(json.dumps(THEMES), "application/json")


@router.get("/static/plotly.js")
def plotly() -> Response:
    """Give what draws the charts, from the package."""
    from plotly.offline import get_plotlyjs

    return _static(get_plotlyjs(), "text/javascript")


@cache
def _source(folder: str, name: str) -> str:
    from importlib.resources import files

    return (files("haq.reports.page") / folder / name).read_text(encoding="utf-8")


def _static(text: str, kind: str) -> Response:
    return Response(text, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})
