"""The float network that a search starts from: built, loaded or trained."""

from pathlib import Path

import torch
from torch import nn

from haq.datasets import Data, check_fits
from haq.errors import HaqError, ModelError
from haq.models import build, input_shape
from haq.models.weights import load_weights, save_weights
from haq.runs.folder import write_job
from haq.runs.job import Job
from haq.runs.progress import OnProgress, Progress
from haq.training.train import Step, train


def fresh_model(name: str, data: Data, width: float, seed: int) -> nn.Module:
    """Return a model for the images and classes of a data set, its weights drawn from the seed.

    Raises:
        HaqError: There is no such model, or the images do not fit it.
    """
    torch.manual_seed(seed)
    own = input_shape(name)
    size = data.shape[-1] if own else None
    check_fits(data, name, input_shape(name, size) if own and own[0] == data.shape[0] else own)
    model = build(name, classes=len(data.classes), width=width, size=size)
    _check_outputs(name, model, data)
    # The layout decides in which order sums are taken: the same for every start of a run.
    return model.to(memory_format=torch.channels_last)


def _check_outputs(name: str, model: nn.Module, data: Data) -> None:
    images, _ = data.train.batch(torch.zeros(1, dtype=torch.int64))
    try:
        with torch.no_grad():
            output = model.eval()(images)
    except Exception as error:
        shape = "x".join(map(str, data.shape))
        raise ModelError(f"model {name} does not run on images of {shape}: {error}") from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, len(data.classes)):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"model {name} gives {got} for one image; {data.name} has {len(data.classes)} classes, "
            f"so it must be (1, {len(data.classes)})"
        )


def float_network(
    job: Job, folder: Path, model: nn.Module, data: Data, on_progress: OnProgress
) -> None:
    """Give a model its float weights: those in the run's folder, the job's, or new ones."""
    kept = folder / "float.safetensors"
    if kept.exists():
        return load_weights(model, kept)
    write_job(folder, job)
    if job.weights is not None:
        load_weights(model, job.weights)
    else:
        train_float(model, data, _float_epochs(job), job.seed, folder / "float.part", on_progress)
    save_weights(model, kept)
    (folder / "float.part").unlink(missing_ok=True)


def _float_epochs(job: Job) -> int:
    if job.float_epochs is None and job.data != "digits":
        raise HaqError(
            f"model {job.model} needs weights: give --weights FILE (haq train makes one), "
            "or --float-epochs N to train it within the run"
        )
    return 60 if job.float_epochs is None else job.float_epochs


def train_float(
    model: nn.Module,
    data: Data,
    epochs: int,
    seed: int,
    keep: Path,
    on_progress: OnProgress,
    lr: float = 0.1,
) -> None:
    """Train a float network in place; ``keep`` as in ``training.train.train``."""

    def on_step(step: Step) -> None:
        on_progress(Progress("train", step.done, step.total, f"loss {step.loss:.3f}"))

    train(model, data.train, epochs=epochs, lr=lr, seed=seed, on_step=on_step, keep=keep)
