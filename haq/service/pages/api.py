"""The page on the API: made of the OpenAPI document, so that it says what there is."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from haq.service.pages.html import html
from haq.service.pages.visitors import Visitor

router = APIRouter()

CLIENT = """\
import json, time, urllib.request

SERVICE, TOKEN = "{base}", "{token}"

def ask(path, body=None):
    headers = {{"Content-Type": "application/json", "Authorization": f"Bearer {{TOKEN}}"}}
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(SERVICE + path, content, headers)) as answer:
        return answer.read()

run = json.loads(ask("/v1/runs", {job}))
while run["state"] not in ("finished", "failed", "cancelled"):
    time.sleep(1)
    run = json.loads(ask(f"/v1/runs/{{run['id']}}"))
print(run["state"], run["best_value"])
with open("model.onnx", "wb") as file:
    file.write(ask(f"/v1/runs/{{run['id']}}/files/model.onnx"))
"""
"""A client that needs nothing but Python; a test runs it."""

JOB = {"model": "digits_cnn", "budgets": ["avg_weight_bits=3"], "episodes": 8, "float_epochs": 5}


@router.get("/api")
def api_page(request: Request, who: Visitor) -> HTMLResponse:
    """Show every request that programs can make."""
    base = str(request.base_url).rstrip("/")
    document = request.app.openapi()
    return html(
        "api.html", who, here="api", base=base, operations=operations(document),
        client=CLIENT.format(base=base, token="haq_ID_SECRET", job=json.dumps(JOB)),
        fields=fields_of(document, "JobRequest"),
        body=json.dumps(JOB),
    )  # fmt: skip


def operations(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the operations of a document by their tag."""
    by_tag: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag.setdefault(tag, []).append({
                "method": method.upper(), "path": path, "about": operation.get("description", ""),
                "parameters": [
                    (one["name"], one["in"], one.get("description", ""))
                    for one in operation.get("parameters", []) if one["in"] in ("query", "header")
                ],
            })  # fmt: skip
    return by_tag


def fields_of(document: Mapping[str, Any], name: str) -> list[tuple[str, str, str]]:
    """Return the fields of a shape: name, kind and what is known of it."""
    shape = document["components"]["schemas"][name]
    return [
        (field, _kind(one), one.get("description", _default(one)))
        for field, one in shape["properties"].items()
    ]


def _default(one: Mapping[str, Any]) -> str:
    value = one.get("default")
    return "" if value is None else f"{json.dumps(value)} unless given"


def _kind(one: Mapping[str, Any]) -> str:
    if "enum" in one:
        return " or ".join(map(str, one["enum"]))
    if "anyOf" in one:
        kinds = dict.fromkeys(_kind(part) for part in one["anyOf"] if part.get("type") != "null")
        return " or ".join(kinds) or "null"
    if "const" in one:
        return str(one["const"])
    limits = [
        f"{word} {one[key]}"
        for key, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if key in one
    ]
    return " ".join([str(one.get("type", "object")), *limits])
