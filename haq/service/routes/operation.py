"""For whoever operates the service: health, readiness, metrics."""

from fastapi import APIRouter, Response

from haq.service import place, store
from haq.service.shapes import (
    Health,
)
from haq.service.shared import Reader, Refusal, Shared, problems

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> Health:
    """Say that the process lives."""
    return Health(status="ok")


@router.get("/readyz", responses=problems(503))
def readyz(service: Shared) -> Health:
    """Say whether the database answers, the files are there and what requests need is loaded."""
    store.counts(service.engine)
    fault = place.missing(service.settings, service.store_name)
    if fault:
        raise Refusal(503, fault)
    if service.loading is not None:
        raise Refusal(503, service.loading, wait_s=5)
    return Health(status="ok")


@router.get(
    "/metrics", response_class=Response, responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401, 403),
    },
)  # fmt: skip
def metrics(service: Shared, who: Reader) -> Response:
    """Give the metrics for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
