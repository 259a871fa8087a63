"""What a user asks for, checked once for the command line and for Python."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haq.errors import HaqError

Width = Annotated[int, Field(ge=2, le=8)]


class Job(BaseModel):
    """One search, as it is kept in ``job.json``.

    Paths and names are as the user gave them; nothing here is looked up yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "digits_cnn"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    size: Annotated[int, Field(ge=1)] | None = None
    weights: Path | None = None
    data: str = "digits"
    target: str | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    budgets: tuple[str, ...] = ("avg_weight_bits=3",)
    agent: str = "ddpg"
    paper: bool = False
    episodes: Annotated[int, Field(ge=1)] = 60
    evaluation: Literal["finetune", "cheap"] = "finetune"
    reward: Literal["accuracy", "loss", "agreement"] = "accuracy"
    finalists: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    weight_bits: tuple[Width, Width] = (2, 8)
    act_bits: Width | Literal["search"] | None = None
    pins: dict[str, Width] | None = None
    clipping: str = "kl"
    per_channel: bool = True
    calibration_images: Annotated[int, Field(ge=1)] = 512
    train_images: Annotated[int, Field(ge=2)] = 5000
    val_images: Annotated[int, Field(ge=1)] = 2500
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.005
    distill: bool = True
    final_epochs: Annotated[int, Field(ge=0)] | None = None
    rounding_steps: Annotated[int, Field(ge=0)] | None = None
    float_epochs: Annotated[int, Field(ge=0)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    ray: str | None = None

    def last_epochs(self, tuned: bool) -> int:
        """Return the epochs for the policy found: as asked, else 30 of the few digits, else 1.

        None unless they are asked for, where its network is not fine-tuned so far.
        """
        default = (30 if self.data == "digits" else 1) if tuned else 0
        return default if self.final_epochs is None else self.final_epochs

    @property
    def last_steps(self) -> int:
        """Steps in which the policy found learns its rounding, where it is not fine-tuned."""
        default = 300 if self.evaluation == "cheap" else 0
        return default if self.rounding_steps is None else self.rounding_steps

    @property
    def fixed_act_bits(self) -> int | None:
        """The activations' width where it is fixed, None where it is searched."""
        if isinstance(self.act_bits, int):
            return self.act_bits
        costly = any(text.split("=")[0].strip() in _OF_ACTIVATIONS for text in self.budgets)
        return None if self.act_bits == "search" or costly else 8


_OF_ACTIVATIONS = ("latency", "energy", "bops")


BY_AGENT: Mapping[str, Mapping[str, object]] = {
    "ilp": {"episodes": 1, "evaluation": "cheap"},
    "guided": {"evaluation": "cheap", "finalists": 3, "reward": "agreement"},
}
"""What an agent asks for unless the user says otherwise."""


def parse_job(**fields: object) -> Job:
    """Return the job, or say in one sentence which field is wrong.

    Fields that are left out, or None where that says nothing, are as suits the agent; workers share
    the cores.

    Raises:
        HaqError: A field is unknown or out of range.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    suits = dict(BY_AGENT.get(str(fields.get("agent")), {}))
    if given.get("evaluation") == "finetune":
        suits.pop("finalists", None)
    try:
        job = Job.model_validate(suits | given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        raise HaqError(f"{field} {first['input']!r}: {first['msg']}") from error
    if job.weight_bits[0] > job.weight_bits[1]:
        low, high = job.weight_bits
        raise HaqError(f"weight-bits {low}..{high} is empty; give the smaller number first")
    if not job.budgets:
        raise HaqError("a search needs a budget, such as avg_weight_bits=3 or latency=50%w8a8")
    if job.weights is not None and job.float_epochs is not None:
        raise HaqError("weights and float-epochs exclude each other; leave one of them out")
    if job.paper and job.agent != "ddpg":
        raise HaqError(f"paper is a way to run ddpg, not {job.agent}; leave one of them out")
    if job.paper and job.evaluation != "finetune":
        raise HaqError("paper fine-tunes in every episode; leave --evaluation cheap out")
    if job.finalists and job.evaluation == "finetune":
        raise HaqError(
            f"finalists {job.finalists}: every episode is fine-tuned already; leave it out, or ask "
            "for the cheap evaluation"
        )
    threads = job.threads
    if threads is None and (job.workers > 1 or job.ray is not None):
        threads = max(1, cores() // job.workers)
    return job.model_copy(update={"distill": job.distill and not job.paper, "threads": threads})


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))
