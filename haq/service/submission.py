"""Take a job that a user asks for into the queue."""

import uuid
from collections.abc import Sequence

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service import checks, hooks, store, uploads
from haq.service.security import Principal
from haq.service.shapes import JobRequest
from haq.service.shared import Refusal, Service
from haq.service.store import Beside


def queue(
    service: Service, who: Principal, asked: JobRequest, key: str | None
) -> tuple[store.Run, bool]:
    """Queue a job and return its run, and whether it is new.

    Raises:
        Refusal: Too many wait already or are being checked, or the key was used for another job.
        FieldError: The job cannot be begun.
        Full: The user's files take as much as they may.
    """
    _check_room(service, who, 1)
    beside = _beside(service, asked)
    with service.heavy(who):
        job = checks.checked(service.engine, service.settings, who.sees, asked.job_fields())
    return _submitted(service, who, job, asked.title or _title(job), key, beside)


def queue_sweep(
    service: Service,
    who: Principal,
    asked: JobRequest,
    budgets: Sequence[Sequence[str]],
    key: str | None,
) -> tuple[str, list[store.Run]]:
    """Queue a job once for each of some budgets; all of them are checked before one is queued.

    Returns:
        The id that the runs share, and the runs in the order of the budgets.

    Raises:
        Refusal: As ``queue``.
        FieldError: One of them cannot be begun; the sentence names its budgets.
    """
    _check_room(service, who, len(budgets))
    beside = _beside(service, asked)
    jobs = [_of_sweep(service, who, asked, tuple(texts)) for texts in budgets]
    name = f"{who.name}/{key}" if key else uuid.uuid4().hex
    sweep = uuid.uuid5(uuid.NAMESPACE_URL, name).hex
    runs = []
    for number, job in enumerate(jobs):
        title = f"{asked.title}, {', '.join(job.budgets)}"[:200] if asked.title else _title(job)
        own = f"{key[:240]}.{number}" if key else None
        run, _ = _submitted(service, who, job, title, own, beside._replace(sweep=sweep))
        runs.append(run)
    return sweep, runs


def _of_sweep(
    service: Service, who: Principal, asked: JobRequest, budgets: tuple[str, ...]
) -> Job:  # fmt: skip
    fields = asked.job_fields() | {"budgets": budgets}
    try:
        with service.heavy(who):
            return checks.checked(service.engine, service.settings, who.sees, fields)
    except checks.FieldError as error:
        text = str(error)
        named = text if error.field != "budgets" else f"{', '.join(budgets)}: {text}"
        raise checks.FieldError(error.field, named) from error


def _check_room(service: Service, who: Principal, more: int) -> None:
    uploads.check_room(service.engine, who.name, service.limits)
    most = service.limits.waiting
    if store.waiting(service.engine, who.name) + more > most:
        raise Refusal(429, f"you have {most} runs that are not over; wait for some", wait_s=60)


def _beside(service: Service, asked: JobRequest) -> Beside:
    try:
        hook = hooks.check(asked.hook, service.settings) if asked.hook else None
    except HaqError as error:
        raise checks.FieldError("hook", str(error)) from error
    return Beside(asked.tags, asked.remark, None, hook)


def _title(job: Job) -> str:
    return f"{job.model}, {', '.join(job.budgets)}"[:200]


def _submitted(
    service: Service, who: Principal, job: Job, title: str, key: str | None, beside: Beside
) -> tuple[store.Run, bool]:
    try:
        return store.submit(service.engine, who.name, job, title, key, beside)
    except store.Conflict as error:
        raise Refusal(409, str(error), "Idempotency-Key") from None
