"""What a job may name and what its policies cost."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from haq.runs import folder as results
from haq.service import checks, choices
from haq.service.routes.bodies import JsonRoute
from haq.service.shapes import (
    Choices,
    JobRequest,
    Range,
)
from haq.service.shared import Reader, Refusal, Shared

router = APIRouter(route_class=JsonRoute)


@router.get("/choices", tags=["choices"])
def list_choices(service: Shared, who: Reader) -> Choices:
    """List the models, targets, agents, data sets, weights and clipping methods."""
    return Choices.model_validate(choices.choices(service.settings))


@router.get("/profiles/{name}", tags=["choices"])
def profile(name: Annotated[str, Path(max_length=100)], who: Reader) -> dict[str, Any]:
    """Give the profile of a target: its constants and where they come from."""
    from haq.hw_profiles import TARGETS

    if name not in TARGETS:
        raise Refusal(404, f"there is no target {name!r}; /v1/choices lists them")
    return results.read_json(TARGETS[name])


@router.post("/ranges", tags=["choices"])
def ranges(asked: JobRequest, service: Shared, who: Reader) -> list[Range]:
    """Say what the cheapest and the dearest policy of a job cost, whatever its budgets."""
    with service.heavy(who):
        rows = checks.ranges(service.engine, service.settings, who.sees, asked.job_fields())
    return [Range(**row) for row in rows]
