"""What goes in and comes out over HTTP, as the OpenAPI document shows it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from haq.runs.job import Job, Width
from haq.service import store
from haq.service.feed import seconds_left
from haq.service.limits import Limits
from haq.service.scores import metric_of_run, value_of

_MOST = Limits().episodes

_LINE = r"^[^\x00-\x1f\x7f]*$"
_TAG = r"^[^\s,\x00-\x1f\x7f]*$"

Name = Annotated[str, Field(max_length=200, pattern=_LINE)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Evaluation = Literal["finetune", "cheap"]
Reward = Literal["metric", "accuracy", "loss", "agreement"]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


Tag = Annotated[str, Field(min_length=1, max_length=40, pattern=_TAG)]
Tags = Annotated[tuple[Tag, ...], Field(max_length=20, description="Words to find the run by.")]
Remark = Annotated[
    str,
    Field(max_length=5000, pattern=r"^[^\x00]*$", description="Notes of your own on the run."),
]


class JobRequest(Job):
    """A job, as on the command line, but for names in place of paths.

    ``data`` is one of the offered names or ``upload:ID``, and so is ``weights``. What is left out,
    or null, is as suits the agent and the data.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "digits_cnn", "data": "digits", "target": "bismo-cloud",
                "budgets": ["latency=50%w8a8"], "episodes": 60,
            }
        },
    )  # fmt: skip

    title: Name | None = None
    tags: Tags = ()
    remark: Remark = ""
    hook: Annotated[
        str | None,
        Field(
            max_length=500,
            description="A URL that is told when the run ends, of a host that the operator allows.",
        ),
    ] = None
    model: Name = "digits_cnn"
    size: Annotated[int, Field(ge=1, le=1024)] | None = None
    data: Name = "digits"
    target: Name | None = None
    batch: Annotated[int, Field(ge=1, le=65536)] | None = None
    budgets: Annotated[tuple[Name, ...], Field(min_length=1, max_length=8)] = ("avg_weight_bits=3",)
    minimise: Name | None = None
    agent: Name = "guided"
    evaluation: Evaluation | None = None  # type: ignore[assignment]
    reward: Reward | None = None  # type: ignore[assignment]
    episodes: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    groups: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=8)] = ()
    widths: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...],
        Field(max_length=8, description="Shares of channels that may stay, such as 1, .75, .5."),
    ] = ()
    channel_multiple: Annotated[int, Field(ge=1, le=65536)] = 1
    pins: Annotated[dict[Name, Width], Field(max_length=1000)] | None = None
    clipping: Name = "kl"
    calibration_images: Count = 512
    train_images: Annotated[int, Field(ge=2, le=10_000_000)] = 5000
    val_images: Count = 2500
    lr: Annotated[float, Field(gt=0, le=100)] = 0.005
    final_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    float_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    finalists: Annotated[int, Field(ge=0, le=1000)] | None = None  # type: ignore[assignment]
    rounding_steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    metric: Annotated[
        Name | None,
        Field(description="What networks are scored by; null: as suits the data's labels."),
    ] = None
    tokenizer: None = None  # a path: text is read as the model's folder says
    length: Annotated[int, Field(ge=2, le=8192)] | None = None
    transforms: Annotated[tuple[dict[str, Any], ...], Field(max_length=0)] = ()  # of the weights
    ray: None = None  # whose cluster a search uses is not for its user to say
    device: Literal["cpu"] = "cpu"  # nor whose GPU, which workers would share

    def job_fields(self) -> dict[str, Any]:
        """Return the fields of the job alone."""
        return self.model_dump(exclude={"title", "tags", "remark", "hook"}, exclude_unset=True)


def field_of(place: tuple[int | str, ...]) -> str:
    """Return the name of a field, as "budgets.0" for the first of its values.

    >>> field_of(("budgets", 0)), field_of(("act_bits", "constrained-int"))
    ('budgets.0', 'act_bits')
    """
    numbers = [part for part in place[1:2] if isinstance(part, int)]
    return ".".join(map(str, [*place[:1], *numbers]))


def sentence(fault: Mapping[str, Any]) -> str:
    """Return what is wrong with a field: the rule, and what was given.

    >>> sentence({"type": "greater_than_equal", "ctx": {"ge": 1}, "input": 0, "msg": "", "loc": ()})
    'give 1 or more, not 0'
    """
    name = str(fault["loc"][0]) if fault["loc"] else ""
    rule = _OWN.get(name, _RULES.get(str(fault["type"])))
    if fault["type"] == "string_pattern_mismatch":
        rule = _PATTERNS.get(fault["ctx"]["pattern"])
    if fault["type"] == "string_too_long":
        return f"give at most {fault['ctx']['max_length']} characters"
    if fault["type"] == "string_too_short":
        return "do not leave it empty"
    if rule is None:
        return str(fault["msg"]).removeprefix("Value error, ")
    given = fault.get("input")
    shown = repr(given[:60]) if isinstance(given, str) else json.dumps(given, default=str)[:60]
    names = [part for part in fault["loc"][1:] if isinstance(part, str)]
    inner = f"{names[0]}: " if names and name == "pins" else ""
    return f"{inner}{rule.format(**fault.get('ctx', {}))}, not {shown}"


_OWN: Mapping[str, str] = {"act_bits": "give 2 to 8, or search"}
"""Of fields that are one of several kinds."""

_PATTERNS: Mapping[str, str] = {
    _LINE: "give one line of text without control characters",
    _TAG: "a tag is one word, without blanks and commas",
    "^[0-9a-f]{32}$": "an id has 32 digits, 0 to 9 and a to f",
    "^([0-9a-f]{32})?$": "an id has 32 digits, 0 to 9 and a to f",
}
"""Of text that must be of some form."""

_RULES: Mapping[str, str] = {
    "greater_than_equal": "give {ge} or more",
    "greater_than": "give more than {gt}",
    "less_than_equal": "give at most {le}",
    "less_than": "give less than {lt}",
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
    "int_type": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give text",
    "literal_error": "give {expected}",
}
"""Of pydantic's kinds of errors, those that say a rule, in words for people."""


def tags_of(text: str) -> list[str]:
    """Return the tags in a text with blanks or commas between them.

    >>> tags_of("paper, digits  w4")
    ['paper', 'digits', 'w4']
    """
    return text.replace(",", " ").split()


class SweepRequest(BaseModel):
    """Several searches that differ in their budgets alone."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "job": {"model": "digits_cnn", "data": "digits", "episodes": 60},
                "budgets": [["avg_weight_bits=2.5"], ["avg_weight_bits=3"], ["avg_weight_bits=4"]],
            }
        },
    )

    job: JobRequest
    budgets: Annotated[
        tuple[Annotated[tuple[Name, ...], Field(min_length=1, max_length=8)], ...],
        Field(min_length=2, max_length=20, description="Of each run, in place of the job's."),
    ]


class Notes(BaseModel):
    """What is said of a run; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[Name, Field(min_length=1)] | None = None
    tags: Tags | None = None
    remark: Remark | None = None


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """Why something was not done, in one sentence, and which fields are to blame."""

    message: str
    errors: list[FieldProblem] = []


class Progress(BaseModel):
    """Where a run stands."""

    stage: str | None = Field(description="train, calibrate, fine-tune, search, …")
    done: int
    total: int
    note: str


class RunOut(BaseModel):
    """A run."""

    id: RunId
    owner: str
    title: str
    state: Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
    message: str | None = Field(description="Why it failed or waits, in one sentence.")
    job: dict[str, Any] = Field(description="As it was asked for.")
    created: float = Field(description="Seconds since 1970, as all times.")
    updated: float
    started: float | None
    finished: float | None
    attempts: int = Field(description="Tries since the last new episode.")
    cancelling: bool
    progress: Progress
    episodes: int = Field(description="Finished.")
    episodes_asked: int
    metric: str = Field(description="What its networks are scored by.")
    best_accuracy: float | None = Field(
        description="The best score on validation images, higher is better: of accuracies and mean "
        "IoU a share in [0, 1], of perplexity minus its logarithm."
    )
    best_value: float | None = Field(description="The same as the metric itself counts.")
    seconds_left: float | None = Field(description="For the episodes, at their pace so far.")
    events: int = Field(description="Number of the last event.")
    tags: list[str] = Field(description="Words to find the run by.")
    remark: str = Field(description="Notes of the user.")
    sweep: str | None = Field(description="Of the submission, where it began several runs.")
    hook: str | None = Field(description="The URL that is told when the run ends.")

    @staticmethod
    def of(run: store.Run) -> "RunOut":
        """Return what a user sees of a row."""
        metric = metric_of_run(run.job)
        return RunOut(
            id=run.id, owner=run.owner, title=run.title, state=run.state,  # type: ignore[arg-type]
            message=run.message, job=run.job.model_dump(mode="json"), created=run.created,
            updated=run.updated, started=run.started, finished=run.finished,
            attempts=run.attempts, cancelling=run.cancel and run.state == "running",
            progress=Progress(stage=run.stage, done=run.done, total=run.total, note=run.note),
            episodes=run.episodes, episodes_asked=run.episodes_asked,
            metric=metric.name, best_accuracy=run.best_accuracy,
            best_value=value_of(metric, run.best_accuracy), seconds_left=seconds_left(run),
            events=run.events, tags=run.words, remark=run.remark, sweep=run.sweep, hook=run.hook,
        )  # fmt: skip


class SweepOut(BaseModel):
    """The runs of one submission."""

    id: RunId
    runs: list[RunOut]


class WaitOut(BaseModel):
    """One of your runs that waits."""

    run: RunId
    position: int = Field(description="From 1, among the runs of all users.")
    seconds: float | None = Field(description="Until it begins; null where that is not known.")


class Line(BaseModel):
    """What goes on."""

    workers: int = Field(description="Who gave a sign of life of late, or do a run.")
    running: int = Field(description="Runs of all users.")
    waiting: list[WaitOut] = Field(description="Yours, or everyone's as an admin.")


class RunPage(BaseModel):
    """Some runs, the newest first."""

    runs: list[RunOut]
    next: str | None = Field(description="Give it as `after` for the next page; null at the end.")


class TrialOut(BaseModel):
    """One episode."""

    episode: int
    accuracy: float = Field(description="The metric's score, as in ``best_accuracy`` of the run.")
    loss: float | None
    reward: float
    seconds: float
    cached: bool
    cost: dict[str, float]
    policy: dict[str, tuple[int | float | str, ...]] = Field(
        description="Layer to weight and activation bits; behind them, where they say something, "
        "the weights of a group, how activations are rounded as the layer runs, and the share of "
        "its channels that stays."
    )


class LayerOut(BaseModel):
    """One layer of the best policy so far."""

    model_config = ConfigDict(extra="allow")

    name: str
    kind: str
    params: int
    macs: int
    weight_bits: int
    act_bits: int
    cost: dict[str, float]
    cost_w8a8: dict[str, float | None]


class FileOut(BaseModel):
    """A file to take away."""

    name: str
    size_bytes: int | None = Field(description="Null for an export until it is first asked for.")
    sha256: str | None
    href: str


class Publish(BaseModel):
    """What is to be the newest on a channel."""

    model_config = ConfigDict(extra="forbid")

    run: RunId = Field(description="Finished; its network is published.")


class ChannelOut(BaseModel):
    """A network on a channel."""

    owner: str
    name: str
    number: int = Field(description="From 1; the highest is the newest.")
    network: str = Field(description="Its id, with which the next one is asked for.")
    run: RunId
    at: float
    href: str


class ModelOut(BaseModel):
    """A network that can be asked for."""

    name: str
    channels: int | None = Field(description="Of its images; null where it takes something else.")
    size: int | None = Field(description="Of its images in pixels, likewise.")
    has_width: bool


class TargetOut(BaseModel):
    """A piece of hardware that can be asked for."""

    name: str
    about: str
    batch: int


class Choices(BaseModel):
    """Everything that a job may name."""

    models: list[ModelOut]
    targets: list[TargetOut]
    agents: list[str]
    data: list[str]
    weights: list[str]
    clipping: list[str]
    metrics: list[str]
    explained: dict[str, dict[str, str]] = Field(
        description="Agents, rewards, evaluations, schemes and metrics, each in a line."
    )


class Range(BaseModel):
    """What the policies of a job can cost."""

    quantity: str
    unit: str
    cheapest: float
    dearest: float
    w8a8: float | None = Field(description="With 8 bits everywhere; null if the target has none.")


class UploadOut(BaseModel):
    """Something a user brought along."""

    id: RunId
    owner: str
    kind: Literal["weights", "data", "target"]
    name: str
    size_bytes: int
    sha256: str
    classes: int
    images: int
    created: float


class Me(BaseModel):
    """Whoever asks."""

    name: str
    scope: Literal["read", "submit", "admin"]


class Health(BaseModel):
    """Whether the service works."""

    status: Literal["ok"]
