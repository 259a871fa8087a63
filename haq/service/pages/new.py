"""The form for a new search, or for several that differ in a budget."""

import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from haq.runs.job import Job
from haq.service import checks, choices, shapes, uploads
from haq.service.pages import fields
from haq.service.pages.html import html
from haq.service.pages.visitors import Form, Sender, Visitor
from haq.service.security import Principal
from haq.service.shapes import JobRequest
from haq.service.shared import Refusal, Service, Shared
from haq.service.submission import queue, queue_sweep

router = APIRouter()

_ACT_BITS = ("search", "2", "3", "4", "5", "6", "7", "8")

Again = Annotated[str, Query(pattern="^([0-9a-f]{32})?$")]


@router.get("/new")
def new_page(service: Shared, who: Visitor, again: Again = "") -> HTMLResponse:
    """Ask what to search for; filled in as a run was asked for, where one is named."""
    if not again:
        return _new(service, who, fields.FIRST, {})
    run = service.run(again, who)
    values = fields.values_of(run.job, run.title, " ".join(run.words), run.remark)
    return _new(service, who, values | ({"hook": run.hook} if run.hook else {}), {}, of=run.title)


@router.post("/new")
async def new(service: Shared, who: Sender, form: Form) -> Response:
    """Begin a search or a sweep, say what is wrong with it, or what its budgets can be."""
    return await run_in_threadpool(_begun, service, who, form)


@router.post("/new/check")
async def check(service: Shared, who: Sender, form: Form) -> JSONResponse:
    """Say what is wrong with a form, and what its budgets can be, to the page's script."""
    return await run_in_threadpool(_looked_at, service, who, form)


def _looked_at(service: Service, who: Principal, form: dict[str, str]) -> JSONResponse:
    errors, ranges = _ranges(service, who, form)
    return JSONResponse({"errors": errors, "ranges": {str(k): v for k, v in ranges.items()}})


def _begun(service: Service, who: Principal, form: dict[str, str]) -> Response:
    if form.get("action") == "ranges":
        errors, ranges = _ranges(service, who, form)
        return _new(service, who, form, errors, ranges, 422 if errors else 200)
    place = ""

    def begin() -> None:
        nonlocal place
        asked, budgets = _asked(form)
        key = re.fullmatch(r"[\x21-\x7e]{1,255}", form.get("key", ""))
        if len(budgets) > 1:
            sweep, _ = queue_sweep(service, who, asked, budgets, key[0] if key else None)
            place = f"/sweeps/{sweep}"
        else:
            run, _ = queue(service, who, asked, key[0] if key else None)
            place = f"/runs/{run.id}"

    errors = _errors(begin)
    if errors:
        return _new(service, who, form, errors, status=422)
    return RedirectResponse(place, 303)


def _asked(form: Mapping[str, str]) -> tuple[JobRequest, list[list[str]]]:
    budgets = fields.budgets_of(form)
    asked = fields.fields_of(form)
    if budgets:
        asked["budgets"] = budgets[0]
    elif "max_drop" not in asked:
        raise fields.FieldMistake("budgets.0", "give a budget, such as 3, 90kB, 5ms or 50%w8a8")
    return JobRequest.model_validate(asked), budgets


def _errors(act: Any) -> dict[str, str]:
    """Do something and return what was wrong: the input to its sentence."""
    try:
        act()
    except ValidationError as error:
        faults = reversed(error.errors())
        errors = {shapes.field_of(fault["loc"]): _sentence(fault) for fault in faults}
    except (checks.FieldError, fields.FieldMistake) as error:
        errors = {error.field or "": str(error)}
    except Refusal as error:
        errors = {error.field or "": error.message}
    else:
        return {}
    return {fields.input_of(name): text for name, text in errors.items()}


def _sentence(fault: Mapping[str, Any]) -> str:
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted({*Job.model_fields}))
        return f"a search has no field {name!r} (known: {known})"
    return shapes.sentence(fault)


def _ranges(
    service: Service, who: Principal, form: Mapping[str, str]
) -> tuple[dict[str, str], dict[int, str]]:
    """Return what is wrong with a form but for its budgets, and what these can be."""
    sentences: dict[int, str] = {}

    def look() -> None:
        filled = [row for row in range(8) if f"quantity.{row}" in form]
        free = {f"budgets.{row}": "1" for row in filled if row == 0 or form.get(f"budgets.{row}")}
        asked, _ = _asked({**form, **free})
        given = asked.job_fields()
        if "weights" not in given and "float_epochs" not in given:
            given["float_epochs"] = 1  # costs do not depend on it
        with service.heavy(who):
            rows = checks.ranges(service.engine, service.settings, who.sees, given)
        known = {row["quantity"]: row for row in rows}
        for row in filled:
            sentences[row] = _range(form[f"quantity.{row}"], known)

    errors = _errors(look)
    return errors, sentences


def _range(quantity: str, known: Mapping[str, Any]) -> str:
    if quantity not in known:
        return f"{quantity} needs hardware that knows it."
    row = known[quantity]
    eight = "" if row["w8a8"] is None else f"; 8 bits everywhere: {row['w8a8']:,.4g}"
    return (
        f"From {row['cheapest']:,.4g} (cheapest policy) to {row['dearest']:,.4g} "
        f"{row['unit']} (dearest){eight}."
    )


def _new(
    service: Service,
    who: Principal,
    values: Mapping[str, str],
    errors: Mapping[str, str],
    ranges: Mapping[int, str] | None = None,
    status: int = 200,
    of: str = "",
) -> HTMLResponse:
    known = choices.choices(service.settings)
    brought = uploads.listed(service.engine, who.name)
    mine = {
        kind: [
            (f"upload:{u.id}", f"{u.name or u.id} (uploaded)") for u in brought if u.kind == kind
        ]
        for kind in uploads.KINDS
    }
    data = [(name, name) for name in known["data"]] + mine["data"]
    rows = sum(1 for row in range(8) if values.get(f"budgets.{row}"))
    options = {
        "models": [(m["name"], m["name"]) for m in known["models"]], "data": data,
        "targets": mine["target"]
        + [(t["name"], f"{t['name']}: {t['about']}") for t in known["targets"]],
        "weights": [(name, name) for name in known["weights"]] + mine["weights"],
        "quantities": [(name, name) for name in fields.QUANTITIES],
        "act_bits": [(name, name) for name in _ACT_BITS],
        "clipping": [(name, name) for name in known["clipping"]],
        **{
            kind: [(name, f"{name}: {about}") for name, about in known["explained"][kind].items()]
            for kind in ("agents", "rewards", "evaluations", "metrics")
        },
    }  # fmt: skip
    return html(
        "new.html", who, status, "new",
        values=values, errors=errors, ranges=ranges or {}, key=uuid.uuid4().hex, of=of,
        options=options, agents=known["explained"]["agents"], rows=max(2, min(8, rows)),
        fits=choices.fits(service.settings, known, [name for name, _ in data]),
        folds=[(fold, _is_open(fold, values, errors)) for fold in fields.FOLDS],
    )  # fmt: skip


def _is_open(fold: fields.Fold, values: Mapping[str, str], errors: Mapping[str, str]) -> bool:
    names = [field.name for field in fold.fields]
    return any(
        name in errors or values.get(name, "") not in ("", fields.FIRST.get(name, ""))
        for name in names
    )
