"""Options of a search that would change nothing: they are refused, not ignored in silence."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from haq.cli.options import flag
from haq.errors import HaqError

if TYPE_CHECKING:
    from haq.runs.job import Job

OF_TRAINING = ("train_images", "lr", "distill")


def check_used(given: Mapping[str, Any], job: "Job") -> None:
    """Check that every option given has a say in the job.

    Args:
        given: Parameters on the command line, with their values.
        job: What they ask for.

    Raises:
        HaqError: One of them changes nothing.
    """
    if "batch" in given and job.target is None:
        raise HaqError(
            f"--batch {job.batch} is of a target, and there is none: name one with --target, or "
            "leave it out"
        )
    if job.paper and given.get("distill", "none") != "none":
        raise HaqError("--paper learns from labels alone; leave --distill out")
    unused = [flag(name) for name in OF_TRAINING if name in given]
    if unused and not fine_tunes(job):
        raise HaqError(
            f"{unused[0]} is of fine-tuning, and nothing is fine-tuned here: give --finalists or "
            "--final-epochs as well, or --evaluation finetune, or leave it out"
        )
    if "rounding_steps" in given and job.rounding_steps and job.evaluation == "finetune":
        raise HaqError(
            f"--rounding-steps {job.rounding_steps}: the rounding is learned where nothing is "
            "fine-tuned; leave it out, or give --evaluation cheap"
        )


def fine_tunes(job: "Job") -> bool:
    """Return whether any network of the job is fine-tuned."""
    return job.fine_tunes or bool(job.final_epochs)


def unbudgeted(job: "Job") -> str:
    """Return a sentence where a target is named and no budget is on it; else nothing."""
    from haq.allocation.costs import WITHOUT_TARGET

    quantities = [text.partition("=")[0].strip() for text in job.budgets]
    if job.target is None or any(quantity not in WITHOUT_TARGET for quantity in quantities):
        return ""
    return (
        f"no budget is on {job.target}: its costs are only shown, and its bit-widths are those "
        "searched; for a budget give --budget latency=50%w8a8"
    )
