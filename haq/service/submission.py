"""Take a job that a user asks for into the queue."""

from haq.service import checks, store
from haq.service.security import Principal
from haq.service.shapes import JobRequest
from haq.service.shared import Refusal, Service


def queue(
    service: Service, who: Principal, asked: JobRequest, key: str | None
) -> tuple[store.Run, bool]:
    """Queue a job and return its run, and whether it is new.

    Raises:
        Refusal: Too many wait already, or the key was used for another job.
        FieldError: The job cannot be begun.
    """
    most = service.limits.waiting
    if store.waiting(service.engine, who.name) >= most:
        raise Refusal(429, f"you have {most} runs that are not over; wait for some", wait_s=60)
    job = checks.checked(service.engine, service.settings, who.sees, asked.job_fields())
    title = asked.title or f"{job.model}, {', '.join(job.budgets)}"[:200]
    try:
        return store.submit(service.engine, who.name, job, title, key)
    except store.Conflict as error:
        raise Refusal(409, str(error), "Idempotency-Key") from None
