"""The HTTP API, one resource a file."""

from fastapi import APIRouter

from haq.service.routes import (
    choices,
    events,
    files,
    networks,
    operation,
    results,
    runs,
    uploads,
    users,
)
from haq.service.shared import problems

api = APIRouter(prefix="/v1", responses=problems(400, 401, 403, 404, 405, 413, 421, 422, 429, 503))
for part in (runs, events, results, files, networks, choices, users, uploads):
    api.include_router(part.router)

operations = operation.router
