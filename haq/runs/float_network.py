"""The float network that a search starts from: built, loaded or trained."""

from pathlib import Path

import torch
from torch import Tensor, nn

from haq.compression.chain import chain_text
from haq.datasets import Data, Outline, check_fits
from haq.errors import DataError, HaqError, ModelError
from haq.metrics import METRICS, Metric
from haq.models import build, input_shape
from haq.models.sources import about
from haq.models.weights import load_weights, save_weights
from haq.network.inputs import Inputs, call
from haq.network.outputs import main_tensor
from haq.runs.fitting import check_forward, check_tokens
from haq.runs.folder import write_job
from haq.runs.job import Job
from haq.runs.named import brings_weights
from haq.runs.progress import OnProgress, Progress
from haq.training.numerics import in_channels_last
from haq.training.scoring import check_metric
from haq.training.train import Step, train


def fresh_model(
    name: str, data: Data | Outline, width: float, seed: int, metric: Metric | None = None
) -> nn.Module:
    """Return a model for the images and classes of a data set, its weights drawn from the seed.

    Args:
        name: Of the model; one with a prefix may have its weights with it.
        data: What it is for.
        width: Width multiplier.
        seed: Of its weights.
        metric: What it will be scored by; None: accuracy.

    Raises:
        HaqError: There is no such model, or the images or the metric do not fit it.
    """
    torch.manual_seed(seed)
    own = input_shape(name)
    if len(data.classes) == 1:
        raise DataError(
            f"{data.name} has a single class ({data.classes[0]}), and there is nothing to tell "
            "apart: give two classes or more"
        )
    card = about(name) if ":" in name else None
    if card is not None and isinstance(data, Data):
        check_tokens(name, card, data)
    size = data.shape[-1] if own else None
    check_fits(data, name, input_shape(name, size) if own and own[0] == data.shape[0] else own)
    asked = None if metric is None else metric.name
    model = build(name, len(data.classes) or None, width, size, asked)
    _check_outputs(name, model, data, METRICS["top1"] if metric is None else metric)
    # The layout decides in which order sums are taken: the same for every start of a run.
    return in_channels_last(model)


def example(data: Data | Outline) -> Inputs:
    """Return one input as the data have it: their first one, or random numbers in its place."""
    if isinstance(data, Data):
        return data.train.batch(torch.zeros(1, dtype=torch.int64))[0]
    return torch.randn(1, *data.shape, generator=torch.Generator().manual_seed(0))


def _check_outputs(name: str, model: nn.Module, data: Data | Outline, metric: Metric) -> None:
    """Refuse a model that does not give what the metric counts, or a number for each class."""
    sample = example(data)
    check_forward(model, sample)
    try:
        with torch.no_grad():
            output = call(model.eval(), sample)
            output = output if isinstance(output, Tensor) else main_tensor(output)
    except HaqError:
        raise
    except Exception as error:
        what = "images" if len(data.shape) == 3 else "inputs"
        shape = "x".join(map(str, data.shape))
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {name} does not run on {what} of {shape}: {reason}") from error
    if data.labels != "classes":
        labels = (
            data.train.batch(torch.zeros(1, dtype=torch.int64))[1]
            if isinstance(data, Data)
            else None
        )
        check_metric(metric, output, labels if data.labels != "none" else None)
        return _check_labels(name, output, data) if isinstance(data, Data) else None
    classes = len(data.classes)
    tensor = isinstance(output, Tensor)
    if not tensor or output.dim() != 2 or len(output) != 1 or output.shape[1] < classes:
        got = tuple(output.shape) if tensor else f"a {type(output).__name__}"
        raise ModelError(
            f"model {name} gives {got} for one image; {data.name} has {classes} classes, so it "
            f"must give one tensor (1, {classes})"
        )
    check_metric(metric, output, torch.zeros(1, dtype=torch.int64))


def _check_labels(name: str, output: Tensor, data: Data) -> None:
    """Refuse labels of tokens or pixels that are none of the classes which a network gives."""
    axis = {"tokens": -1, "pixels": 1}.get(data.labels)
    if axis is None or output.dim() <= axis:
        return
    classes = output.shape[axis]
    for part in ("train", "val", "test"):
        highest = int(getattr(data, part).labels.max())
        if highest >= classes:
            raise ModelError(
                f"model {name} gives numbers for {classes} classes, and the {part} split of "
                f"{data.name} has label {highest}; labels count the classes from 0, and negative "
                "ones do not count"
            )


def float_network(
    job: Job, folder: Path, model: nn.Module, data: Data, on_progress: OnProgress
) -> None:
    """Give a model its float weights: those in the run's folder, the job's, or new ones.

    They are in the run's folder afterwards, beside ``job.json``.
    """
    file = folder / "float.safetensors"
    if file.exists():
        return load_weights(model, file)
    check_float(job)
    write_job(folder, job)
    if not read_float(job, folder, model):
        epochs = 60 if job.float_epochs is None else job.float_epochs
        train_float(model, data, epochs, job.seed, folder / "float.part", on_progress)
    save_weights(model, file, chain_text(job.transforms))
    (folder / "float.part").unlink(missing_ok=True)


def read_float(job: Job, folder: Path, model: nn.Module) -> bool:
    """Load the float weights of the run's folder or of the job's file, if there are any.

    Returns:
        Whether there were.

    Raises:
        ModelError: They do not fit the model, or the file cannot be read.
    """
    of_run = folder / "float.safetensors"
    file = of_run if of_run.exists() else job.weights
    if file is not None:
        load_weights(model, file)
    return file is not None or brings_weights(job)


def check_float(job: Job) -> None:
    """Refuse a job that says nothing of where its float weights come from.

    Raises:
        HaqError: It does not.
    """
    given = job.weights is not None or job.float_epochs is not None or brings_weights(job)
    if not given and job.data != "digits":
        raise HaqError(
            f"model {job.model} needs weights: give --weights FILE (haq train makes one), "
            "or --float-epochs N to train it within the run"
        )


def train_float(
    model: nn.Module,
    data: Data,
    epochs: int,
    seed: int,
    keep: Path,
    on_progress: OnProgress,
    lr: float = 0.1,
    states: Path | None = None,
) -> None:
    """Train a float network in place.

    Args:
        model: Drawn from the seed.
        data: Its train split.
        epochs: As in ``training.train.train``, as are the rest.
        seed: As above.
        keep: As above.
        on_progress: Called after every step.
        lr: As above.
        states: A folder for the weights after every epoch but the last, epoch-01.safetensors and so
            on: the route of ``haq.distillation.route``.
    """

    def on_step(step: Step) -> None:
        on_progress(Progress("train", step.done, step.total, str(step)))
        epoch, rest = divmod(step.done * epochs, step.total)
        if states and not rest and epoch < epochs:
            states.mkdir(exist_ok=True)
            save_weights(model, states / f"epoch-{epoch:0{len(str(epochs))}}.safetensors")

    train(model, data.train, epochs=epochs, lr=lr, seed=seed, on_step=on_step, keep=keep)
