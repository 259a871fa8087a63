"""What a search needs before its first episode: network, layers, costs, clips, sensitivities."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haq.agents import AGENTS
from haq.allocation.budgets import Budget, fit, parse_budget
from haq.allocation.costs import (
    CostTable,
    Target,
    nearest_pin,
    permitted,
    share_activations,
    tabulate,
)
from haq.allocation.policy import FLOAT, Bits
from haq.datasets import Data, check_fits
from haq.errors import HaqError, ModelError, look_up
from haq.hw_profiles import load as load_target
from haq.models import build, input_shape
from haq.models.weights import load_weights, save_weights
from haq.network.graph import Graph, trace
from haq.network.layers import Layer
from haq.quantization.calibration import Clips, calibrate, load_clips, save_clips
from haq.quantization.clipping import CLIPPING
from haq.quantization.sensitivity import (
    IMAGES,
    Sensitivity,
    load_sensitivity,
    save_sensitivity,
    sensitivity,
    widths,
)
from haq.runs import folder as results
from haq.runs.job import Job
from haq.training.train import Step, train


class Progress(NamedTuple):
    """Where a run stands: what it does, how far it is, what to say beside it."""

    stage: str
    done: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Plan:
    """What is known before any image is looked at: layers, costs, budgets.

    ``model`` is what the graph was traced from; ``notes`` are sentences for the user about what
    was decided otherwise than asked for.
    """

    model: nn.Module
    graph: Graph
    target: Target | None
    table: CostTable
    budgets: tuple[Budget, ...]
    texts: tuple[str, ...]
    images: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def plan(job: Job, model: nn.Module, images: Mapping[str, Any]) -> Plan:
    """Return the layers of a model, what their bits cost and the budgets of the job.

    Args:
        job: Its budgets, target, pins and bits count here.
        model: Left as it is.
        images: At least the "shape" of one; kept with the run.

    Raises:
        HaqError: The model cannot be traced, a name is unknown, or no policy meets the budgets.
    """
    look_up(AGENTS, "agent", job.agent)
    look_up(CLIPPING, "clipping", job.clipping)
    graph = trace(model, torch.zeros(1, *images["shape"]))
    target = load_target(job.target, job.batch) if job.target else None
    pins = _pins(job, graph.layers, target)
    choices = _choices(job, graph.layers, target, pins)
    table = tabulate(graph.layers, choices, target)
    budgets = tuple(parse_budget(text, graph.layers, target) for text in job.budgets)
    dearest = {name: pairs[-1] for name, pairs in table.choices.items()}
    fit(dearest, table, budgets)  # says now, not after an hour, that nothing fits
    notes = tuple(_pin_notes(pins, graph.layers, target))
    return Plan(model, graph, target, table, budgets, job.budgets, images, notes)


def _pins(job: Job, layers: Sequence[Layer], target: Target | None) -> dict[str, int | Bits]:
    """Return the pins of a job; without any, 8 bits in the first and the last layer.

    Where the target does not offer such a pair, the first and the last layer have the nearest one
    below it. A pin of the user gives way by one bit only, for integer kernels that saturate at 8.
    """
    if job.pins is None:
        return {layer.name: nearest_pin(layer, 8, target) for layer in (layers[0], layers[-1])}
    pins: dict[str, int | Bits] = dict(job.pins)
    for layer in layers:
        if job.pins.get(layer.name) == 8:
            nearest = nearest_pin(layer, 8, target)
            pins[layer.name] = nearest if sum(nearest) >= 15 else 8
    return pins


def _pin_notes(
    pins: Mapping[str, int | Bits], layers: Sequence[Layer], target: Target | None
) -> Iterator[str]:
    for layer in layers:
        pair = pins.get(layer.name)
        if isinstance(pair, Bits) and pair != Bits(8, 8):
            yield (
                f"layer {layer.name!r} is pinned to {pair}: "
                f"{target.name if target else 'the search'} does not offer w8a8"
            )


def _choices(
    job: Job, layers: Sequence[Layer], target: Target | None, pins: Mapping[str, int | Bits]
) -> dict[str, tuple[Bits, ...]]:
    """Return the bits each layer may have.

    Where a layer may stay float, the first and the last may too, unless the user pinned them.
    """
    pinned = permitted(layers, target, job.weight_bits, job.fixed_act_bits, pins)
    if job.pins is not None:
        return pinned
    free = permitted(layers, target, job.weight_bits, job.fixed_act_bits)
    floats = Bits(FLOAT, FLOAT)
    more = {name: (floats,) for name in pins if floats in free[name]}
    widened = {name: (*pairs, *more.get(name, ())) for name, pairs in pinned.items()}
    return share_activations(layers, widened)


def images_of(data: Data) -> dict[str, Any]:
    """Return what must be known of a data set's images to feed the network later."""
    return {
        "data": data.name, "shape": list(data.shape), "mean": list(data.mean),
        "std": list(data.std), "classes": list(data.classes),
    }  # fmt: skip


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
    results.write_job(folder, job)
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


def kept_clips(
    job: Job, folder: Path, graph: Graph, batches: Iterable[torch.Tensor], on_progress: OnProgress
) -> Clips:
    """Return the clips of a run: those in its folder, or new ones, which are put there."""
    kept = folder / "clips.safetensors"
    if kept.exists():
        return load_clips(kept)

    def on_tensor(done: int, count: int) -> None:
        on_progress(Progress("calibrate", done, count))

    clips = calibrate(graph, batches, job.clipping, job.per_channel, on_tensor)
    save_clips(clips, kept)
    return clips


def kept_sensitivity(
    folder: Path, planned: Plan, clips: Clips, images: Tensor, on_progress: OnProgress
) -> Sensitivity:
    """Return the sensitivities of a run: those in its folder, or new ones, which are put there."""
    kept = folder / "sensitivity.json"
    if kept.exists():
        return load_sensitivity(kept)

    def on_place(done: int, count: int) -> None:
        on_progress(Progress("sensitivity", done, count))

    known = sensitivity(planned.graph, clips, images, widths(planned.table.choices), on_place)
    save_sensitivity(known, kept)
    return known


def sensitivity_images(data: Data, seed: int) -> Tensor:
    """Return randomly chosen training images, augmented, (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:IMAGES]
    return data.train.batch(chosen, generator)[0]


def calibration_batches(data: Data, images: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield randomly chosen training images, not augmented, in batches."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:images]
    return (data.train.batch(index)[0] for index in chosen.split(128))
