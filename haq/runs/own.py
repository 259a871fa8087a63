"""Models and data of the caller's own: what a search makes of them before it begins.

Whatever the caller's model and data cannot do together is said here, in one sentence.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haq.agents import find
from haq.datasets import Data, from_splits, load
from haq.errors import DataError, HaqError, ModelError
from haq.network.capture import evaluating, unwrapped
from haq.network.outputs import taken_apart
from haq.runs.float_network import example
from haq.runs.job import Job, parse_job
from haq.runs.plan import images_of

Own = Callable[[nn.Module], float]

FEW = 32
"""Inputs below which statistics of activations are hardly worth the name."""


class OwnTask(NamedTuple):
    """A job for a model of the caller's own, and what it works on.

    Attributes:
        job: What is asked for.
        model: The network without its wrappers.
        data: Labelled data, None where there are inputs alone.
        inputs: (N, ...), None where there are labelled data.
        sample: The first inputs (1 or 2, ...).
        images: What is on record of an input.
        notes: Sentences for the user.
    """

    job: Job
    model: nn.Module
    data: Data | None
    inputs: Tensor | None
    sample: Tensor
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
    _check_forward(model)
    named = sorted(
        name
        for name in ("weights", "float_epochs", "width", "size")
        if fields.get(name) is not None
    )
    if named:
        raise HaqError(f"{', '.join(named)}: only for a model given by its name; leave it out")
    if isinstance(data, Tensor):
        inputs, notes = _checked_inputs(data)
        job = _job(model, "inputs", evaluate, {"finalists": 0, **_given(fields)})
        if evaluate is None:
            _output(model, inputs[:1])
        elif _compares_answers(job):
            _check_comparable(model, inputs[:1])
        images: dict[str, Any] = {"shape": list(inputs.shape[1:])}
        task = OwnTask(job, model, None, inputs, inputs[:2], images, notes)
    else:
        task = _labeled_task(model, data, evaluate, fields)
    if not task.sample.is_floating_point():
        task.images["tokens"] = max(int(task.sample.max()), 0) + 1
    return task


def _labeled_task(
    model: nn.Module, data: object, evaluate: Own | None, fields: Mapping[str, Any]
) -> OwnTask:
    if isinstance(data, str):
        data = load(data, seed=fields.get("seed") or 0)
    elif not isinstance(data, Data):
        data = from_splits(data, outputs=None if evaluate else partial(_outputs, model))
    sample = example(data)
    job = _job(model, data.name, evaluate, _given(fields))
    if evaluate is None or _fine_tunes(job):
        outputs = _outputs(model, sample)
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
    return job.evaluation == "finetune" or job.finalists > 0 or job.last_epochs(tuned=False) > 0


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _job(model: nn.Module, data: str, evaluate: Own | None, fields: Mapping[str, Any]) -> Job:
    scored = {"reward": "accuracy"} if evaluate else {}
    job = parse_job(model=type(model).__name__, data=data, **{**scored, **fields})
    if evaluate and job.reward != "accuracy":
        raise HaqError(f"reward {job.reward}: evaluate= gives one number; leave the reward out")
    if data == "inputs" and job.final_epochs:
        _check_label_free(job)
    if data == "inputs" and evaluate is None and job.evaluation != "cheap":
        raise DataError(
            "inputs alone have no labels: give evaluate=, or the three splits, or take an agent or "
            'an evaluation that needs none, such as agent="ilp"'
        )
    return job


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


def _check_forward(model: nn.Module) -> None:
    """Refuse a network that takes more than one input, or none."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # not every callable tells
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        p.name for p in parameters
        if p.default is p.empty and p.kind in (*kinds, inspect.Parameter.KEYWORD_ONLY)
    ]  # fmt: skip
    if len(needed) > 1:
        raise ModelError(
            f"{type(model).__name__} takes {len(needed)} inputs ({', '.join(needed)}), and a "
            "search gives it one tensor: wrap it in a module that takes one tensor"
        )


def _checked_inputs(inputs: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    if inputs.dim() < 2 or not len(inputs):
        shape = "x".join(map(str, inputs.shape)) or "a single number"
        raise DataError(f"data= is a tensor of {shape}; give inputs (N, ...), at least one")
    if inputs.is_complex() or inputs.dtype in (torch.bool, torch.int8, torch.int16):
        raise DataError(f"data= is a {inputs.dtype} tensor; give floats, or int64 for tokens")
    notes = []
    if inputs.dtype == torch.uint8:
        raise DataError("data= is a uint8 tensor; give the inputs as the network takes them")
    if not inputs.is_floating_point():
        inputs = inputs.long()
    else:
        if inputs.dtype != torch.float32:
            notes.append(f"the inputs were brought from {inputs.dtype} to torch.float32")
        inputs = inputs.detach().float()
        broken = (~torch.isfinite(inputs).flatten(1).all(1)).nonzero()
        if len(broken):
            raise DataError(f"input {int(broken[0])} of data= holds NaN or infinity")
    if len(inputs) < FEW:
        few = f"{len(inputs)} inputs are" if len(inputs) > 1 else "1 input is"
        notes.append(
            f"{few} few: clips and statistics taken from them are rough; give {FEW} or more"
        )
    return inputs, tuple(notes)


def _outputs(model: nn.Module, sample: Tensor) -> int:
    """Return how many numbers a network gives for an input: for how many classes.

    Raises:
        ModelError: It gives something else, or fails.
    """
    output = _output(model, sample)
    if output.dim() != 2 or len(output) != len(sample):
        shape = "x".join(map(str, output.shape))
        raise ModelError(
            f"{type(model).__name__} gives a tensor of {shape} for {len(sample)} input, and labels "
            f"need (N, classes): {_WAY_OUT}"
        )
    return output.shape[1]


def _output(model: nn.Module, sample: Tensor) -> Tensor:
    """Return what a network gives for a sample, if that is one tensor.

    Raises:
        ModelError: It gives something else, or fails.
    """
    output = _answer(model, sample)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise ModelError(f"{_what_it_gives(model, output)}, not a tensor of floats: {_WAY_OUT}")
    return output


def _check_comparable(model: nn.Module, sample: Tensor) -> None:
    """Refuse a network whose answers cannot be compared with those of the float network.

    Raises:
        ModelError: There is no tensor of floats among them, or it fails.
    """
    output = _answer(model, sample)
    if not any(tensor.is_floating_point() for tensor in taken_apart(output)[1]):
        raise ModelError(f"{_what_it_gives(model, output)} and no tensor of floats: {_WAY_AROUND}")


def _answer(model: nn.Module, sample: Tensor) -> object:
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad(), evaluating(model):
            return model(sample.to(kind) if sample.is_floating_point() else sample)
    except Exception as error:
        shape = "x".join(map(str, sample.shape))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{type(model).__name__} does not run on an input of {shape}: {reason}"
        ) from error


def _what_it_gives(model: nn.Module, output: object) -> str:
    kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
    parts = f" of {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
    return f"{type(model).__name__} gives a {kind}{parts}"


_WAY_OUT = (
    "wrap the network in a module that returns its logits alone, or give evaluate= and, with "
    'labels, evaluation="cheap" and finalists=0'
)

_WAY_AROUND = (
    "wrap the network in a module that returns its logits, or take an agent that does not compare "
    'answers, such as agent="random", with rounding_steps=0'
)
