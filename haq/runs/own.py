"""Models and data of the caller's own: what a search makes of them before it begins.

Whatever the caller's model and data cannot do together is said here, in one sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haq.agents import find
from haq.datasets import Data, from_splits, load
from haq.datasets.splits import columns_of
from haq.datasets.tensors import Labels
from haq.errors import DataError, HaqError, ModelError
from haq.network.capture import evaluating, unwrapped
from haq.network.inputs import DTYPES, Batch, Inputs, call, kind_of, tensors_of
from haq.network.outputs import main_tensor, taken_apart
from haq.runs.fitting import check_forward
from haq.runs.job import Job, parse_job
from haq.runs.metric import metric_of_job
from haq.runs.plan import images_of
from haq.training.scoring import check_metric

Own = Callable[[nn.Module], float]

FEW = 32
"""Inputs below which statistics of activations are hardly worth the name."""


class OwnTask(NamedTuple):
    """A job for a model of the caller's own, and what it works on.

    Attributes:
        job: What is asked for.
        model: The network without its wrappers.
        data: Labelled data, None where there are inputs alone.
        inputs: (N, ...), None where there are three splits.
        sample: The first inputs (1 or 2, ...).
        images: What is on record of an input.
        notes: Sentences for the user.
    """

    job: Job
    model: nn.Module
    data: Data | None
    inputs: Inputs | None
    sample: Inputs
    images: dict[str, Any]
    notes: tuple[str, ...]


def own_task(
    model: nn.Module, data: object, evaluate: Own | None, fields: Mapping[str, Any]
) -> OwnTask:
    """Return the job for a model of the caller's own.

    Args:
        model: As for ``haq.search``.
        data: As for ``haq.search``.
        evaluate: As for ``haq.search``.
        fields: Of the job, as the caller gave them; None stands for the default.

    Raises:
        HaqError: Model, data, score and job do not go together.
    """
    model = unwrapped(model)
    named = sorted(
        name
        for name in ("weights", "float_epochs", "width", "size", "tokenizer", "length")
        if fields.get(name) is not None
    )
    if named:
        raise HaqError(f"{', '.join(named)}: only for a model given by its name; leave it out")
    if _is_inputs(data):
        task = _unlabeled_task(model, data, evaluate, fields)
    else:
        task = _labeled_task(model, data, evaluate, fields)
    if isinstance(task.sample, Tensor) and not task.sample.is_floating_point():
        task.images["tokens"] = max(int(task.sample.max()), 0) + 1
    return task


def _is_inputs(data: object) -> bool:
    """Return whether data are inputs of one set: no name, no ``Data``, no three splits."""
    if isinstance(data, Tensor | Batch | Mapping):
        return True
    return not isinstance(data, str | Data | Sequence) and hasattr(data, "__iter__")


def _unlabeled_task(
    model: nn.Module, data: Any, evaluate: Own | None, fields: Mapping[str, Any]
) -> OwnTask:
    columns = columns_of(data, "data=")
    if columns.labels is not None and evaluate is None:
        raise DataError(
            "data= has labels: give three splits (train, val, test), or leave the labels out"
        )
    inputs, notes = _checked_inputs(columns.inputs)
    check_forward(model, inputs)
    job = _job(model, "inputs", evaluate, {"finalists": 0, **_given(fields)})
    images: dict[str, Any] = {"shape": list(tensors_of(inputs)[0].shape[1:])}
    if kinds := kind_of(inputs):
        images["inputs"] = {name: one._asdict() for name, one in kinds.items()}
    metric = metric_of_job(job, images, evaluate is not None)
    if evaluate is None:
        metric.check(_output(model, inputs[:2]), None)
    elif _compares_answers(job):
        _check_comparable(model, inputs[:1])
    return OwnTask(job, model, None, inputs, inputs[:2], images, notes)


def _labeled_task(
    model: nn.Module, data: object, evaluate: Own | None, fields: Mapping[str, Any]
) -> OwnTask:
    if isinstance(data, str):
        data = load(data, seed=fields.get("seed") or 0)
    elif not isinstance(data, Data):
        data = from_splits(data, outputs=None if evaluate else partial(_outputs, model))
    sample, labels = data.train.batch(torch.zeros(1, dtype=torch.int64))
    check_forward(model, sample)
    labelled = data.labels != "none"
    given = _given(fields) if labelled else {"finalists": 0, **_given(fields)}
    job = _job(model, data.name, evaluate, given)
    if not labelled and _fine_tunes(job):
        raise DataError(_NO_LABELS)
    if evaluate is None or _fine_tunes(job):
        outputs = _outputs(model, sample, data.labels)
        metric = metric_of_job(job, images_of(data), evaluate is not None)
        check_metric(metric, _output(model, sample), labels if labelled else None)
        if outputs < len(data.classes):
            raise ModelError(
                f"{type(model).__name__} gives {outputs} numbers for one input; {data.name} has "
                f"{len(data.classes)} classes, so it must give at least as many"
            )
    elif _compares_answers(job):
        _check_comparable(model, sample)
    return OwnTask(job, model, data, None, sample, images_of(data), ())


def _compares_answers(job: Job) -> bool:
    """Return whether a job compares answers with the float network's, whatever scores them."""
    return find(job.agent).informed or job.last_steps > 0


def _fine_tunes(job: Job) -> bool:
    """Return whether a job with labels trains on them, whatever scores the networks."""
    return job.fine_tunes or job.last_epochs > 0


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _job(model: nn.Module, data: str, evaluate: Own | None, fields: Mapping[str, Any]) -> Job:
    scored = _of_own_score(fields) if evaluate else {}
    job = parse_job(model=type(model).__name__, data=data, **{**scored, **fields})
    if evaluate and not job.by_metric:
        raise HaqError(f"reward {job.reward}: evaluate= gives one number; leave the reward out")
    if data == "inputs" and job.final_epochs:
        _check_label_free(job)
    if data == "inputs" and evaluate is None and job.evaluation != "cheap":
        raise DataError(_NO_LABELS)
    return job


def _of_own_score(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return what suits a search by the caller's own score, which is all that agents learn from.

    Those that compare no answers ask nothing more of the network: nothing is corrected or rounded.
    """
    agent = fields.get("agent")
    plain = agent is not None and not find(str(agent)).informed
    return {"reward": "accuracy"} | ({"evaluation": "finetune"} if plain else {})


def _check_label_free(job: Job) -> None:
    """Refuse to fine-tune on inputs alone what needs their labels.

    Raises:
        DataError: The job does.
    """
    if not job.distill:
        raise DataError(
            f"final_epochs {job.final_epochs}: inputs alone have no labels to learn from; leave "
            "distill as it is, or final_epochs out"
        )
    given = ("labels", "gradient", "self_study", "co_study")
    needs = [name for name in given if job.distill.get(name) not in (None, 0, [0, 0])]
    if needs:
        raise DataError(
            f"distill {needs[0]}: it needs labels, and inputs alone have none; leave it out"
        )


def _checked_inputs(inputs: Inputs) -> tuple[Inputs, tuple[str, ...]]:
    notes: list[str] = []
    if isinstance(inputs, Tensor):
        if inputs.dim() < 2 or not len(inputs):
            shape = "x".join(map(str, inputs.shape)) or "a single number"
            raise DataError(f"data= is a tensor of {shape}; give inputs (N, ...), at least one")
        inputs = _checked(inputs, "data=", notes)
    else:
        names = inputs.names or tuple(f"input {place}" for place in range(len(inputs.tensors)))
        rows = {name: len(one) if one.dim() else 0
                for name, one in zip(names, inputs.tensors, strict=True)}  # fmt: skip
        if len(set(rows.values())) != 1 or 0 in rows.values():
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise DataError(f"data= has tensors of {counts} rows; give as many of each, at least 1")
        tensors = zip(names, inputs.tensors, strict=True)
        checked = tuple(
            one if one.dtype in DTYPES.values() else _checked(one, f"{name} of data=", notes)
            for name, one in tensors
        )
        inputs = Batch(checked, inputs.names)
    if len(inputs) < FEW:
        few = f"{len(inputs)} inputs are" if len(inputs) > 1 else "1 input is"
        notes.append(
            f"{few} few: clips and statistics taken from them are rough; give {FEW} or more"
        )
    return inputs, tuple(notes)


def _checked(inputs: Tensor, what: str, notes: list[str]) -> Tensor:
    """Return one tensor of inputs as networks take it, or refuse it."""
    if inputs.is_complex() or inputs.dtype in (torch.bool, torch.int8, torch.int16):
        raise DataError(f"{what} is a {inputs.dtype} tensor; give floats, or int64 for tokens")
    if inputs.dtype == torch.uint8:
        raise DataError(f"{what} is a uint8 tensor; give the inputs as the network takes them")
    if not inputs.is_floating_point():
        return inputs.long()
    if inputs.dtype != torch.float32:
        notes.append(f"the inputs were brought from {inputs.dtype} to torch.float32")
    inputs = inputs.detach().float()
    broken = (~torch.isfinite(inputs).reshape(len(inputs), -1).all(1)).nonzero()
    if len(broken):
        raise DataError(f"input {int(broken[0])} of {what} holds NaN or infinity")
    return inputs


def _outputs(model: nn.Module, sample: Inputs, labels: Labels) -> int:
    """Return how many numbers a network gives for a label: for how many classes.

    Raises:
        ModelError: It gives something else, or fails.
    """
    output = _output(model, sample)
    axes = {"classes": (2,), "tokens": (3,), "pixels": (4,), "none": range(2, 9)}[labels]
    if output.dim() not in axes or len(output) != len(sample):
        shape = "x".join(map(str, output.shape))
        raise ModelError(
            f"{type(model).__name__} gives a tensor of {shape} for {len(sample)} input, and labels "
            f"need {_NEEDED[labels]}: {_WAY_OUT}"
        )
    return output.shape[-1 if labels == "tokens" else 1]


_NEEDED: Mapping[Labels, str] = {
    "classes": "(N, classes)", "tokens": "(N, T, classes)", "pixels": "(N, classes, H, W)",
    "none": "rows",
}  # fmt: skip


def _output(model: nn.Module, sample: Inputs) -> Tensor:
    """Return the tensor that a network is there for, for a sample.

    Raises:
        ModelError: There is none, or it fails.
    """
    output = _answer(model, sample)
    try:
        return main_tensor(output)
    except ModelError as error:
        raise ModelError(
            f"{_what_it_gives(model, output)}, not a tensor of floats: {_WAY_OUT}"
        ) from error


def _check_comparable(model: nn.Module, sample: Inputs) -> None:
    """Refuse a network whose answers cannot be compared with those of the float network.

    Raises:
        ModelError: There is no tensor of floats among them, or it fails.
    """
    output = _answer(model, sample)
    if not any(tensor.is_floating_point() for tensor in taken_apart(output)[1]):
        raise ModelError(f"{_what_it_gives(model, output)} and no tensor of floats: {_WAY_AROUND}")


def _answer(model: nn.Module, sample: Inputs) -> object:
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def as_taken(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    given = as_taken(sample) if isinstance(sample, Tensor) else sample.map(as_taken)
    try:
        with torch.no_grad(), evaluating(model):
            return call(model, given)
    except Exception as error:
        shape = " and ".join("x".join(map(str, tensor.shape)) for tensor in tensors_of(sample))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{type(model).__name__} does not run on an input of {shape}: {reason}"
        ) from error


def _what_it_gives(model: nn.Module, output: object) -> str:
    kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
    parts = f" of {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
    return f"{type(model).__name__} gives a {kind}{parts}"


_NO_LABELS = (
    "inputs alone have no labels: give evaluate=, or the three splits, or take an agent or an "
    'evaluation that needs none, such as agent="ilp"'
)

_WAY_OUT = (
    "wrap the network in a module that returns its logits alone, or give evaluate= and, with "
    'labels, evaluation="cheap" and finalists=0'
)

_WAY_AROUND = (
    "wrap the network in a module that returns its logits, or take an agent that does not compare "
    'answers, such as agent="random", with rounding_steps=0'
)
