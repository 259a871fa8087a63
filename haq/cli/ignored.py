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
    if job.paper and given.get("distill", "none") != "none":
        raise HaqError("--paper learns from labels alone; leave --distill out")
    unused = [flag(name) for name in OF_TRAINING if name in given]
    if unused and not fine_tunes(job):
        raise HaqError(
            f"{unused[0]} is of fine-tuning, and nothing is fine-tuned here: give --finalists or "
            "--final-epochs as well, or --evaluation finetune, or leave it out"
        )
    if "train_images" in given and not job.fine_tunes:
        raise HaqError(
            f"--train-images {job.train_images} is of the epoch of an episode or a finalist, and "
            "none has one here: give --finalists as well, or --evaluation finetune, or leave it out"
        )
    if "calibration_images" in given and "static" not in job.schemes:
        raise HaqError(
            f"--calibration-images {job.calibration_images} is of activations that are rounded "
            f"once for all readers, and with --scheme {' and '.join(job.schemes)} none are; leave "
            "it out, or name static too"
        )
    books = set(job.schemes) == {"codebook"}
    for name in ("clipping", "per_tensor", "rounding_steps"):
        if books and given.get(name):
            raise HaqError(
                f"{flag(name)} is of weights that are rounded to levels, and codebooks have values "
                "of their own; leave it out, or name another --scheme too"
            )
    if "rounding_steps" in given and job.rounding_steps and job.evaluation == "finetune":
        raise HaqError(
            f"--rounding-steps {job.rounding_steps}: the rounding is learned where nothing is "
            "fine-tuned; leave it out, or give --evaluation cheap"
        )


def check_workers(job: "Job") -> None:
    """Check that there is work for more than one worker.

    Raises:
        HaqError: One policy is tried, and nothing else is done side by side.
    """
    if job.workers > 1 and job.episodes == 1 and not job.finalists:
        raise HaqError(
            f"--workers {job.workers} evaluate policies side by side, and one is tried here; leave "
            "it out, or give --episodes"
        )


OWNERS = {
    "energy": "factorise", "scope": "sparsity", "residual": "filters", "channel_multiple": "filters"
}  # fmt: skip
"""Options of ``haq prune`` that are of one kind of pruning."""


def check_pruning(given: Mapping[str, Any], what: str) -> None:
    """Check that every option given of ``haq prune`` has a say in what it does.

    Args:
        given: Parameters on the command line, with their values.
        what: "filters", "sparsity" or "factorise".

    Raises:
        HaqError: One of them changes nothing.
    """
    search = given.get("filters") == "search"
    layers, kind = given.get("layer") or (), given.get("factorise")
    own = [text for text in layers if "=" in text]
    untrained = given.get("epochs") == 0
    faults = (
        *((what != owner and name in given, f"{flag(name)} is of --{owner}, not of --{what}")
          for name, owner in OWNERS.items()),
        *((search and name in given, f"--filters search chooses in all layers; {flag(name)} is of "
           "--filters SHARE") for name in ("layer", "residual")),
        ("target" in given and not search,
         "--target is of --filters search, which chooses within a --budget"),
        *((untrained and name in given, f"{flag(name)} is of training, and --epochs 0 has none")
          for name in ("lr", "distill")),
        (own and given.get("scope") == "network",
         "--scope network has one share for all layers together, and a --layer has its own"),
        ("energy" in given and layers and len(own) == len(layers),
         "--energy chooses ranks, and every --layer has its own"),
        ("energy" in given and kind in ("depthwise", "two3x3"),
         f"--energy chooses ranks, and {kind} has none"),
    )  # fmt: skip
    for is_one, sentence in faults:
        if is_one:
            raise HaqError(f"{sentence}; leave it out")


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
