"""Check a job before it is queued: its names, its fields, its budgets; and what it would cost."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from haq.allocation.budgets import cheapest
from haq.errors import BudgetError, DataError, HaqError, ModelError, TargetError, look_up
from haq.runs.job import Job, JobError, parse_job
from haq.runs.metric import metric_of_job
from haq.service import choices, place, uploads
from haq.service.place import UPLOAD, weights_file
from haq.service.settings import Settings

if TYPE_CHECKING:
    from haq.datasets import Data, Outline, Reading

LOG = logging.getLogger("haq.service.checks")

_ONE_AT_A_TIME = threading.Lock()  # a plan takes a model's memory
_BUSY_S = 60.0

_BY_MODEL = ("text", "dataset")
"""Data that are read as a model says, by its tokenizer or its images' size."""

_FIRST = 2  # inputs of a split that checking a job takes

EPISODES = 60
"""Of a run whose user names no number: it is on record before the run begins."""

MOST_BYTES = 1 << 18
"""Of a job as it is kept; one with a thousand pins of long names has about a quarter of it."""

_FIELDS = {BudgetError: "budgets", TargetError: "target", ModelError: "model", DataError: "data"}


class FieldError(HaqError):
    """A field of a job that cannot be as it was given.

    Attributes:
        field: Its name, or None where several do not go together.
    """

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


class Busy(HaqError):
    """Too much is asked at once."""


def load(settings: Settings) -> None:
    """Load once what checking a job needs: torch, the offered data sets, and a first plan.

    A data set that cannot be loaded is logged, and refused again to whoever asks for it.
    """
    from haq.datasets.tensors import AS_IT_IS

    choices.choices(settings)
    for name, spec in settings.data.items():
        if spec.partition(":")[0] in _BY_MODEL:
            continue
        try:
            data = _loaded(spec, None, AS_IT_IS)
            if name == "digits":
                _plan(settings, Job(), data)
        except HaqError as error:
            LOG.error("data %s cannot be offered: %s", name, error)


def checked(
    engine: Engine, settings: Settings, owner: str | None, fields: Mapping[str, Any]
) -> Job:
    """Return the job, if it could be begun: names are known and allowed, the budgets can be met.

    Args:
        engine: The database, for uploads.
        settings: What the operator allows.
        owner: Whose uploads may be used; None for everyone's.
        fields: As they came, each valid by itself.

    Raises:
        FieldError: They are not.
        Busy: Many others are being checked.
    """
    job = _job(settings, fields)
    data = _names(engine, settings, owner, job)
    planned = _plan(settings, job, data)
    metric = metric_of_job(job, planned.images).name
    # On record beside the run, so that its scores can be told; accuracy needs no word.
    return job if metric == "top1" else job.model_copy(update={"metric": metric})


def ranges(
    engine: Engine, settings: Settings, owner: str | None, fields: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return for every quantity what the cheapest and the dearest policy cost, and 8 bits.

    Args:
        engine: As in ``checked``.
        settings: As in ``checked``.
        owner: As in ``checked``.
        fields: As in ``checked``; of the budgets only which quantities they are of counts.

    Raises:
        FieldError: Something else than the budgets is wrong.
        Busy: Many others are being checked.
    """
    job = _job(settings, fields)
    data = _names(engine, settings, owner, job)
    acts = job.fixed_act_bits or "search"  # as the budgets have it, which are left out below
    planned = _plan(settings, job.model_copy(update={"budgets": (), "act_bits": acts}), data)
    return [_range(planned, quantity) for quantity in planned.table.units]


def _range(planned: Any, quantity: str) -> dict[str, Any]:
    from haq.allocation.costs import reference, total
    from haq.allocation.policy import Bits

    table = planned.table
    dearest = {
        name: table.choices[name][int(row.argmax())] for name, row in table.rows[quantity].items()
    }
    try:
        floats = sum(planned.graph.float_parameters.values())
        eight = reference(table.layers, planned.target, quantity, Bits(8, 8), floats)
    except TargetError:
        eight = None
    return {
        "quantity": quantity, "unit": table.units[quantity], "cheapest": cheapest(table, quantity),
        "dearest": total(table, dearest, quantity), "w8a8": eight,
    }  # fmt: skip


def _job(settings: Settings, fields: Mapping[str, Any]) -> Job:
    try:
        job = parse_job(**fields)
    except JobError as error:
        raise FieldError(error.field, str(error)) from error
    size = len(job.model_dump_json())
    if size > MOST_BYTES:
        raise FieldError(None, f"the job takes {size} bytes; {MOST_BYTES} are allowed")
    if job.distill.get("route"):
        raise FieldError("distill", "distill route: it names files, and none of here; leave it out")
    if job.episodes is None:
        job = job.model_copy(update={"episodes": EPISODES})
    if job.episodes is not None and job.episodes > settings.limits.episodes:
        most = settings.limits.episodes
        raise FieldError("episodes", f"episodes {job.episodes}: a run has at most {most} here")
    if job.workers > settings.threads:
        raise FieldError(
            "workers",
            f"workers {job.workers}: a search has {settings.threads} CPU threads here, so that it "
            "can have no more workers than that",
        )
    share = settings.threads // job.workers
    return job.model_copy(update={"threads": min(job.threads or share, share)})


def _names(engine: Engine, settings: Settings, owner: str | None, job: Job) -> "Data | Outline":
    """Look up every name of a job; no name is used for anything else before."""
    from haq.agents import AGENTS
    from haq.hw_profiles import TARGETS
    from haq.metrics import METRICS
    from haq.models import MODELS
    from haq.quantization.clipping import CLIPPING
    from haq.runs.named import brings_weights

    tables: dict[str, Mapping[str, Any]] = {
        "model": {**MODELS, **settings.models}, "agent": AGENTS, "clipping": CLIPPING,
    }  # fmt: skip
    if job.target is not None and _upload(engine, owner, "target", job.target) is None:
        tables["target"] = TARGETS
    tables |= {"metric": METRICS} if job.metric is not None else {}
    for field, table in tables.items():
        _known(field, table, getattr(job, field))
    data = _data(engine, settings, owner, job)
    if job.weights is not None:
        upload = _upload(engine, owner, "weights", str(job.weights))
        if upload is None:
            _known("weights", settings.weights, str(job.weights))
    elif (
        job.float_epochs is None and job.data != "digits"
        and not brings_weights(_with_model(job, settings))
    ):  # fmt: skip
        raise FieldError(
            "weights",
            f"model {job.model} needs weights: give some, or float_epochs to train it within "
            "the run",
        )
    return data


def _known(field: str, table: Mapping[str, Any], name: str) -> None:
    try:
        look_up(table, field, name)
    except HaqError as error:
        raise FieldError(field, str(error)) from None


def _upload(engine: Engine, owner: str | None, kind: str, name: str) -> uploads.Upload | None:
    match = UPLOAD.fullmatch(name)
    if not match:
        return None
    upload = uploads.find(engine, match[1], owner)
    if upload is None or upload.kind != kind:
        raise FieldError(kind, f"there is no upload {match[1]} of {kind}")
    return upload


def _data(engine: Engine, settings: Settings, owner: str | None, job: Job) -> "Data | Outline":
    """Return the first inputs of a job's data as its model takes them, or what is known of them."""
    from haq.datasets import Outline
    from haq.datasets.tensors import IMAGENET_MEAN, IMAGENET_STD
    from haq.runs.named import reading_of

    reading = reading_of(_with_model(job, settings))
    upload = _upload(engine, owner, "data", job.data)
    if upload is not None:
        size = reading.size or 224
        classes = tuple(map(str, range(upload.classes)))
        return Outline("folder", classes, (3, size, size), IMAGENET_MEAN, IMAGENET_STD)
    _known("data", settings.data, job.data)
    try:
        return _loaded(settings.data[job.data], job.size, reading)
    except HaqError as error:
        field = "size" if job.size is not None else "data"
        sentence = place.without_paths(str(error), settings)
        raise FieldError(field, f"data {job.data}: {sentence}") from error


def _with_model(job: Job, settings: Settings) -> Job:
    """Return the job with the model and the target that its names stand for."""
    target = None if job.target is None else place.target_of(job.target, settings)
    model = place.model_of(job.model, settings)
    return job.model_copy(update={"model": model, "target": target})


@lru_cache(maxsize=32)
def _loaded(spec: str, size: int | None, reading: "Reading") -> "Data":
    """Return the first inputs of a data set that the operator offers."""
    import torch

    from haq.datasets import Split, TensorSplit, load

    data = load(spec, size=size, reading=reading)

    def first(split: Split) -> Split:
        inputs, labels = split.batch(torch.arange(min(_FIRST, len(split))))
        return TensorSplit(inputs, labels, (), ())

    return replace(data, train=first(data.train), val=first(data.val), test=first(data.test))


def _plan(settings: Settings, job: Job, data: "Data | Outline") -> Any:
    if not _ONE_AT_A_TIME.acquire(timeout=_BUSY_S):
        raise Busy("too many jobs are being checked; try again in a minute")
    try:
        return _planned(settings, job, data)
    except FieldError:
        raise
    except HaqError as error:
        sentence, field = place.without_paths(str(error), settings), _field_of(error)
        if field == "target":
            sentence += _way_out(settings, job, data)
        raise FieldError(field, sentence) from error
    finally:
        _ONE_AT_A_TIME.release()


def _way_out(settings: Settings, job: Job, data: "Data | Outline") -> str:
    """Return which targets know the costs of the model, as the end of a sentence."""
    from haq.allocation.choices import permitted
    from haq.allocation.costs import tabulate
    from haq.hw_profiles import TARGETS
    from haq.hw_profiles import load as load_target

    try:
        bare = job.model_copy(update={"target": None, "batch": None, "budgets": (), "pins": None})
        graph = _planned(settings, bare, data).graph
    except HaqError:
        return ""  # the target is not all that is wrong
    able = []
    for name in TARGETS:
        try:
            target = load_target(name)
            tabulate(graph.layers, permitted(graph.layers, target), target)
            able.append(name)
        except HaqError:
            continue
    return f"; {', '.join(able)} can" if able else "; leave the target out: none of here can"


def _planned(settings: Settings, job: Job, data: "Data | Outline") -> Any:
    from haq.compression.chain import as_in_file
    from haq.models import input_shape
    from haq.runs.float_network import example
    from haq.runs.plan import images_of, plan
    from haq.runs.run import suited
    from haq.runs.transforms import network_of

    real = suited(_with_model(job, settings), data)
    own = input_shape(real.model)
    if own is not None and own[0] != data.shape[0]:
        raise FieldError(
            "data",
            f"model {job.model} takes images of {own[0]} channels, {job.data} has {data.shape[0]}",
        )
    sample, model = example(data), network_of(real, data)
    if job.weights is not None:  # which may be of a pruned network
        model = as_in_file(model, sample, weights_file(str(job.weights), settings))
    return plan(real, model, images_of(data), sample)


def _field_of(error: HaqError) -> str | None:
    text = str(error)
    if text.startswith("metric "):
        return "metric"
    if isinstance(error, ModelError):
        for field in ("width", "size"):
            if f"{field} " in text:
                return field
    for kind, field in _FIELDS.items():
        if isinstance(error, kind):
            return field
    for word, field in (
        ("pin", "pins"), ("max drop", "max_drop"), ("--widths", "widths"),
        ("--channel-multiple", "channel_multiple"), ("a budget on", "budgets"),
        ("unknown layer", "pins"), ("weight bits", "weight_bits"),
        ("activation", "act_bits"), ("layer", "weight_bits"),
    ):  # fmt: skip
        if text.startswith(word):
            return field
    return None
