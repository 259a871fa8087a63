"""What a user asks for, checked once for the command line, for Python and for the service."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from haq.allocation.policy import BLOCKS
from haq.allocation.schemes import SCHEMES, Formats, Scheme
from haq.allocation.widths import check_shares
from haq.distillation.settings import DEFAULT, read_distillation
from haq.errors import HaqError

Width = Annotated[int, Field(ge=2, le=8)]


class JobError(HaqError):
    """Something asked for that no search can do.

    Attributes:
        field: The field of the job that is to blame, None where several do not go together.
    """

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


class Job(BaseModel):
    """One search, as it is kept in ``job.json``.

    Paths and names are as the user gave them; nothing here is looked up yet. ``episodes`` is None
    until the run knows how long one evaluation takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "digits_cnn"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    size: Annotated[int, Field(ge=1)] | None = None
    weights: Path | None = None
    transforms: tuple[dict[str, Any], ...] = ()
    data: str = "digits"
    target: str | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    budgets: tuple[str, ...] = ("avg_weight_bits=3",)
    max_drop: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    minimise: str | None = None
    agent: str = "guided"
    paper: bool = False
    episodes: Annotated[int, Field(ge=1)] | None = None
    evaluation: Literal["finetune", "cheap"] = "finetune"
    reward: Literal["metric", "accuracy", "loss", "agreement"] = "accuracy"
    finalists: Annotated[int, Field(ge=0)] = 0
    metric: str | None = None
    tokenizer: Path | None = None
    length: Annotated[int, Field(ge=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    weight_bits: tuple[Width, Width] = (2, 8)
    act_bits: Width | Literal["search"] | None = None
    schemes: tuple[Scheme, ...] = ("static",)
    groups: tuple[int, ...] = ()
    widths: tuple[float, ...] = ()
    channel_multiple: Annotated[int, Field(ge=1)] = 1
    pins: dict[str, Width] | None = None
    clipping: str = "kl"
    per_channel: bool = True
    calibration_images: Annotated[int, Field(ge=1)] = 512
    train_images: Annotated[int, Field(ge=2)] = 5000
    val_images: Annotated[int, Field(ge=1)] = 2500
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.005
    distill: dict[str, Any] = dict(DEFAULT)
    final_epochs: Annotated[int, Field(ge=0)] | None = None
    rounding_steps: Annotated[int, Field(ge=0)] | None = None
    float_epochs: Annotated[int, Field(ge=0)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    workers: Annotated[int, Field(ge=1)] = 1
    ray: str | None = None

    @field_validator("widths")
    @classmethod
    def _in_order(cls, asked: tuple[float, ...]) -> tuple[float, ...]:
        """Return the shares of channels from large to small, that of a whole layer among them."""
        try:
            return check_shares(asked) if asked else ()
        except HaqError as error:
            raise ValueError(str(error)) from error

    @field_validator("distill", mode="before")
    @classmethod
    def _as_mapping(cls, asked: object) -> object:
        """Return what True, False or a text stands for."""
        try:
            return read_distillation(asked) if isinstance(asked, bool | str) else asked
        except HaqError as error:
            raise ValueError(str(error)) from error

    @property
    def fine_tunes(self) -> bool:
        """Whether networks are fine-tuned before one is chosen: in episodes, or as finalists."""
        return self.evaluation == "finetune" or self.finalists > 0

    @property
    def last_epochs(self) -> int:
        """The epochs for the policy chosen: as asked, else 30 of the few digits, else 1.

        None unless they are asked for, where nothing is fine-tuned before.
        """
        default = (30 if self.data == "digits" else 1) if self.fine_tunes else 0
        return default if self.final_epochs is None else self.final_epochs

    @property
    def by_metric(self) -> bool:
        """Whether the metric is what rewards: accuracy, unless another one is asked for."""
        return self.reward in ("metric", "accuracy")

    @property
    def last_steps(self) -> int:
        """Steps in which the policy chosen learns its rounding, where it is not fine-tuned."""
        default = 300 if self.evaluation == "cheap" else 0
        return default if self.rounding_steps is None else self.rounding_steps

    @property
    def formats(self) -> Formats:
        """Among which number formats the search chooses."""
        return Formats(self.schemes, self.groups)

    @property
    def fixed_act_bits(self) -> int | None:
        """The activations' width where it is fixed, None where it is searched."""
        if isinstance(self.act_bits, int):
            return self.act_bits
        costly = any(text.split("=")[0].strip() in _OF_ACTIVATIONS for text in self.budgets)
        return None if self.act_bits == "search" or costly else 8


_OF_ACTIVATIONS = ("latency", "energy", "bops")

ACCURACY_TARGET_EPISODES = 8
"""Policies that a search for an accuracy target tries before it verifies one."""

RANKING: Mapping[str, object] = {"evaluation": "cheap", "finalists": 3, "reward": "agreement"}
"""What agents learn from unless the user says otherwise: the divergence of the whole policy from
the float network, statistics corrected and nothing trained, because that ranks policies best
(``results/reference/ranking.json``). The best three are then fine-tuned."""

BY_AGENT: Mapping[str, Mapping[str, object]] = {
    "ilp": {"episodes": 1, "evaluation": "cheap", "reward": "agreement"},
}
"""What an agent asks for that is not ``RANKING``."""

_OPTIONS = {
    "budgets": "--budget",
    "pins": "--pin",
    "schemes": "--scheme",
    "per_channel": "--per-tensor",
}

_RULES = {
    "width": "a width multiplier is above 0 and at most 8",
    "size": "the height and width of an image are a whole number of pixels, 1 or more",
    "weights": "give the path of a file, such as resnet20.safetensors",
    "transforms": "give the records of haq.compression.chain, each a mapping with its name",
    "batch": "a target computes a whole number of images at once, 1 or more",
    "max_drop": "the accuracy may drop by a number of percentage points above 0, such as 1.0",
    "minimise": "give what is to cost the least, such as size or latency",
    "budgets": "a budget is text such as avg_weight_bits=3 or latency=50%w8a8",
    "episodes": "a search plays a whole number of episodes, 1 or more",
    "evaluation": "give finetune (one epoch for each policy) or cheap (no training)",
    "reward": "give metric, accuracy, loss or agreement",
    "tokenizer": "give the path of a folder that holds a tokenizer",
    "length": "give a whole number of tokens, 2 or more",
    "finalists": "give how many of the best policies are fine-tuned, 0 or more",
    "seed": "a seed is a whole number from 0 to 4294967295",
    "weight_bits": "weights have 2 to 8 bits; give a range within 2..8, or one number",
    "act_bits": "activations have 2 to 8 bits; give one number, or search",
    "schemes": f"give {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}",
    "groups": f"give the weights of a group, {', '.join(map(str, BLOCKS))}, or 0 for one scale a "
    "channel",
    "widths": "give shares of channels that may stay, above 0 and at most 1, some below 1, such as "
    "1,.75,.5,.25",
    "channel_multiple": "give of what the number of channels that stay is a multiple, 1 or more",
    "pins": "a pin is 2 to 8 bits; leave the layer out to let the search decide, or give "
    "--pin none",
    "calibration_images": "give a whole number of images, 1 or more",
    "train_images": "give a whole number of images, 2 or more",
    "val_images": "give a whole number of images, 1 or more",
    "lr": "a learning rate is a finite number above 0",
    "final_epochs": "give a whole number of epochs, 0 or more",
    "rounding_steps": "give a whole number of steps, 0 or more",
    "float_epochs": "give a whole number of epochs, 0 or more",
    "threads": "give a whole number of threads, 1 or more",
    "device": "give cpu, cuda or cuda:N",
    "workers": "give a whole number of processes, 1 or more",
} | dict.fromkeys(("paper", "per_channel"), "give true or false")


def option(field: str) -> str:
    """Return what a field of a job is called on the command line.

    >>> option("weight_bits"), option("pins")
    ('--weight-bits', '--pin')
    """
    return _OPTIONS.get(field, "--" + field.replace("_", "-"))


def parse_job(**fields: object) -> Job:
    """Return the job that is asked for, or say in one sentence which field is wrong.

    Fields that are left out, or None where that says nothing, are as suits the agent; workers share
    the cores.

    Raises:
        JobError: A field is unknown, out of range or would change nothing, or some do not go
            together.
    """
    job = recorded_job(**fields)
    _check_used(job)
    return job


def recorded_job(**fields: object) -> Job:
    """Return a job that a run has on record: what would change nothing was not always refused.

    Raises:
        JobError: As ``parse_job``, but for that.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "distill" in given:
        given["distill"] = _distillation(given["distill"])
        if given["distill"] and given.get("paper"):
            raise JobError("distill", "--paper learns from labels alone; leave --distill out")
    given.setdefault("agent", _agent(given))
    if given.get("max_drop") is not None:
        _without_budgets(given)
    suits = {} if given.get("paper") else dict(BY_AGENT.get(str(given["agent"]), RANKING))
    if given.get("evaluation") == "finetune":
        suits.pop("finalists", None)
    if given.get("metric", "top1") != "top1":
        suits["reward"] = "metric"
    try:
        job = Job.model_validate(suits | given)
    except ValidationError as error:
        raise _job_error(error.errors()[0]) from error
    _check_together(job)
    try:
        job.formats.check()
    except HaqError as error:
        raise JobError("groups" if any(job.groups) else "schemes", str(error)) from error
    threads = job.threads
    if threads is None and (job.workers > 1 or job.ray is not None):
        threads = max(1, default_threads() // job.workers)
    return job.model_copy(update={"distill": {} if job.paper else job.distill, "threads": threads})


def _agent(given: Mapping[str, object]) -> str:
    if given.get("max_drop") is not None:
        return "ilp"
    return "ddpg" if given.get("paper") else "guided"


def _without_budgets(given: dict[str, object]) -> None:
    """Fill in what is to cost the least, and a budget that 8 bits everywhere keep."""
    given.setdefault("minimise", "latency" if given.get("target") else "size")
    given.setdefault("budgets", (f"{given['minimise']}=100%w8a8",))
    given.setdefault("episodes", ACCURACY_TARGET_EPISODES)


def _distillation(asked: object) -> dict[str, Any]:
    if not isinstance(asked, bool | str | Mapping):
        raise JobError("distill", f"--distill {asked!r}: give text such as kd:0.9+hint:1, or none")
    try:
        return read_distillation(asked)
    except HaqError as error:
        raise JobError("distill", str(error)) from error


def _job_error(error: Mapping[str, Any]) -> JobError:
    """Return what a wrong field is refused with: its value, the rule and the way out."""
    field, *inner = error["loc"]
    if field not in Job.model_fields:
        known = ", ".join(sorted(Job.model_fields))
        return JobError(None, f"a search has no field {field!r} (known: {known})")
    value = error["input"]
    key = f" {inner[0]}=" if field == "pins" and inner else " "
    shown = value if isinstance(value, str | int | float) else repr(value)
    rule = _RULES.get(str(field), "give text")
    if error["type"] == "tuple_type" and not inner:
        rule += "; write a list, in brackets"
    return JobError(str(field), f"{option(str(field))}{key}{shown}: {rule}")


def _check_together(job: Job) -> None:
    """Refuse what cannot be had together.

    Raises:
        JobError: Some fields contradict each other.
    """
    low, high = job.weight_bits
    if low > high:
        raise JobError(
            "weight_bits", f"--weight-bits {low}..{high} is empty; give the smaller number first"
        )
    if not job.budgets:
        raise JobError(
            "budgets", "a search needs a budget, such as avg_weight_bits=3 or latency=50%w8a8"
        )
    _check_accuracy_target(job)
    if job.channel_multiple > 1 and not job.widths:
        raise JobError(
            "channel_multiple",
            f"--channel-multiple {job.channel_multiple} is for --widths, and none are given; give "
            "them as well, such as 1,.75,.5, or leave it out",
        )
    if job.weights is not None and job.float_epochs is not None:
        raise JobError(
            "weights",
            f"--weights {job.weights} and --float-epochs {job.float_epochs} exclude each other: "
            "the float network is read or trained; leave one of them out",
        )
    if job.paper and job.agent != "ddpg":
        raise JobError(
            "paper",
            f"--paper is a way to run ddpg, not {job.agent}; leave one of them out",
        )
    if job.paper and job.evaluation != "finetune":
        raise JobError("paper", "--paper fine-tunes in every episode; leave --evaluation cheap out")
    if job.reward == "accuracy" and job.metric not in (None, "top1"):
        raise JobError(
            "reward", f"--reward accuracy: the metric is {job.metric}; give --reward metric"
        )
    if job.finalists and job.evaluation == "finetune":
        raise JobError(
            "finalists",
            f"--finalists {job.finalists}: every episode is fine-tuned already; leave it out, or "
            "give --evaluation cheap",
        )


WITHOUT_TEXT = ("cifar10", "digits", "folder")
"""Data in which nothing is text."""


def check_reads_text(data: str, tokenizer: object, length: int | None) -> None:
    """Refuse what text is read by, beside data in which there is none.

    Raises:
        JobError: One of the two is given.
    """
    for name, value in (("tokenizer", tokenizer), ("length", length)):
        if value is not None and data.partition(":")[0] in WITHOUT_TEXT:
            raise JobError(
                name, f"{option(name)} {value} is of text, and {data} has none; leave it out"
            )


def _check_used(job: Job) -> None:
    """Refuse what would change nothing beside what else is asked for."""
    check_reads_text(job.data, job.tokenizer, job.length)
    if job.batch is not None and job.target is None:
        raise JobError(
            "batch",
            f"--batch {job.batch} is of a target, and there is none: name one with --target, or "
            "leave it out",
        )
    if job.act_bits is not None and "static" not in job.schemes:
        raise JobError(
            "act_bits",
            f"--act-bits {job.act_bits}: with --scheme {' and '.join(job.schemes)} no activation "
            "has bits that are chosen; leave it out, or name static too",
        )


def _check_accuracy_target(job: Job) -> None:
    if job.max_drop is None:
        if job.minimise is not None:
            raise JobError(
                "minimise",
                f"--minimise {job.minimise} is for --max-drop, the accuracy that may be lost for "
                "it; give that as well, or a budget instead",
            )
        return
    if job.agent != "ilp":
        raise JobError(
            "agent",
            f"--max-drop {job.max_drop:g} is solved by ilp, not {job.agent}; leave --agent out",
        )
    if job.evaluation != "cheap" or job.finalists:
        raise JobError(
            "max_drop",
            f"--max-drop {job.max_drop:g} tries policies without fine-tuning; leave --evaluation "
            "and --finalists out (--final-epochs fine-tunes the one handed over)",
        )
    if job.workers > 1 or job.ray is not None:
        raise JobError(
            "workers",
            f"--max-drop {job.max_drop:g} tries one policy after the other; leave --workers and "
            "--ray out",
        )


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every platform
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_threads() -> int:
    """Return how many threads a process uses unless told otherwise.

    That is ``OMP_NUM_THREADS`` where the environment has it, else one for each core.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else cores()


def check_threads(job: Job) -> None:
    """Refuse more threads than there are cores: they wait for each other, and never end.

    Raises:
        JobError: There are not that many.
    """
    if job.threads is not None and job.threads > cores():
        raise JobError(
            "threads",
            f"--threads {job.threads}: there are {cores()} cores here, and more threads only wait "
            f"for each other; give at most {cores()}",
        )
