"""The form for a new search."""

import re
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from haq.service import checks, choices, shapes, uploads
from haq.service.pages.html import html
from haq.service.pages.visitors import Form, Sender, Visitor
from haq.service.security import Principal
from haq.service.shapes import JobRequest
from haq.service.shared import Refusal, Service, Shared
from haq.service.submission import queue

router = APIRouter()

_QUANTITIES = ("avg_weight_bits", "size", "bops", "latency", "energy")

_FIRST = {
    "model": "digits_cnn", "data": "digits", "agent": "guided", "episodes": "60",
    "quantity.0": "avg_weight_bits", "quantity.1": "size", "budgets.0": "3", "clipping": "kl",
}  # fmt: skip

_TAKEN = (
    "model", "data", "size", "weights", "float_epochs", "target", "batch", "agent", "episodes",
    "act_bits", "title", "seed", "width", "train_images", "val_images", "calibration_images",
    "final_epochs", "lr", "clipping", "max_drop", "minimise", "channel_multiple", "metric",
    "length",
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
        asked = JobRequest.model_validate(_fields(form))
        if form.get("action") == "ranges":
            return _new(service, who, form, {}, _ranges(service, who, asked, form))
        key = re.fullmatch(r"[\x21-\x7e]{1,255}", form.get("key", ""))
        run, _ = queue(service, who, asked, key[0] if key else None)
        return RedirectResponse(f"/runs/{run.id}", 303)
    except ValidationError as error:
        errors = {shapes.field_of(fault["loc"]): fault["msg"] for fault in reversed(error.errors())}
    except checks.FieldError as error:
        errors = {error.field or "": str(error)}
    except Refusal as error:
        errors = {error.field or "": error.message}
    shown = {_input_of(name): text for name, text in errors.items()}
    return _new(service, who, form, shown, status=422)


def _input_of(field: str) -> str:
    """Return the input of the form in which a field, or a part of it, was filled in."""
    return "budgets.0" if field == "budgets" else "widths" if field[:7] == "widths." else field


def _fields(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a job that were filled in."""
    fields: dict[str, Any] = {name: form[name] for name in _TAKEN if form.get(name)}
    if form.get("widths"):
        fields["widths"] = form["widths"].split(",")
    fields["budgets"] = [
        f"{form.get(f'quantity.{row}', '')}={form[f'budgets.{row}']}"
        for row in range(2)
        if form.get(f"budgets.{row}")
    ]
    if "max_drop" in fields:
        # The form begins with an agent and a budget: they are of the other kind of search.
        for name in ("agent", "episodes"):
            fields.pop(name, None)
        if not fields["budgets"]:
            fields.pop("budgets")
    return fields


def _ranges(
    service: Service, who: Principal, asked: JobRequest, form: Mapping[str, str]
) -> dict[int, str]:
    rows = checks.ranges(service.engine, service.settings, who.sees, asked.job_fields())
    known = {row["quantity"]: row for row in rows}
    sentences = {}
    for number in range(2):
        quantity = form.get(f"quantity.{number}", "")
        if quantity in known:
            row = known[quantity]
            sentences[number] = (
                f"From {row['cheapest']:,.4g} (cheapest policy) to {row['dearest']:,.4g} "
                f"{row['unit']} (dearest)."
            )
        else:
            sentences[number] = f"{quantity} needs a target."
    return sentences


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
    return html(
        "new.html", who, status, "new",
        values=values, errors=errors, ranges=ranges or {}, key=uuid.uuid4().hex,
        quantities=_QUANTITIES, **options, open=any(values.get(name) for name in ("seed", "lr")),
        models=[(m["name"], m["name"]) for m in known["models"]],
        targets=[(t["name"], f"{t['name']}: {t['about']}") for t in known["targets"]],
        agents=[(name, name) for name in known["agents"]],
        clipping=[(name, name) for name in known["clipping"]],
        metrics=[(name, name) for name in known["metrics"]],
    )  # fmt: skip
