"""Clips and sensitivities of a run, kept in its folder, and the images they are taken from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from haq.allocation.policy import Bits
from haq.allocation.sensitivities import Sensitivity, load_sensitivity, save_sensitivity, widths
from haq.compression.widths import Widths, damage_of_channels
from haq.datasets import Data
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.quantization.calibration import Clips, calibrate, load_clips, save_clips
from haq.quantization.second_order import second_order
from haq.quantization.sensitivity import IMAGES
from haq.runs.job import Job
from haq.runs.plan import Plan
from haq.runs.progress import OnProgress, Progress


def clips_of_run(
    job: Job,
    folder: Path,
    graph: Graph,
    batches: Iterable[Inputs],
    on_progress: OnProgress,
    choices: Mapping[str, Sequence[Bits]] | None = None,
) -> Clips:
    """Return the clips of a run: those in its folder, or new ones, which are put there.

    Args:
        job: Says how they are chosen.
        folder: Of the run.
        graph: The float network's.
        batches: Calibration inputs.
        on_progress: Called as tensors are finished.
        choices: Layer to the bits that it may have, as for ``calibrate``.
    """
    file = folder / "clips.safetensors"
    if file.exists():
        return load_clips(file)

    def on_tensor(done: int, count: int) -> None:
        on_progress(Progress("calibrate", done, count))

    clips = calibrate(graph, batches, job.clipping, job.per_channel, on_tensor, choices)
    save_clips(clips, file)
    return clips


def sensitivity_of_run(
    folder: Path, planned: Plan, clips: Clips, images: Inputs, on_progress: OnProgress
) -> Sensitivity:
    """Return the sensitivities of a run: those in its folder, or new ones, which are put there."""
    file = folder / "sensitivity.json"
    if file.exists():
        return load_sensitivity(file)

    def on_place(done: int, count: int) -> None:
        on_progress(Progress("sensitivity", done, count))

    known = second_order(planned.graph, clips, images, widths(planned.table.choices), on_place)
    if planned.widths is not None:
        known = replace(known, channels=_channels(planned, planned.widths, images, on_progress))
    save_sensitivity(known, file)
    return known


def _channels(
    planned: Plan, known: Widths, images: Inputs, on_progress: OnProgress
) -> dict[str, dict[float, float]]:
    def on_place(done: int, count: int) -> None:
        on_progress(Progress("channels", done, count))

    return damage_of_channels(planned.graph.traced, known, images, planned.sample, on_place)


def sensitivity_images(data: Data, seed: int) -> Inputs:
    """Return randomly chosen training images, augmented, (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:IMAGES]
    return data.train.batch(chosen, generator)[0]


def calibration_batches(data: Data, images: int, seed: int) -> Iterator[Inputs]:
    """Yield randomly chosen training images, not augmented, in batches."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:images]
    return (data.train.batch(index)[0] for index in chosen.split(128))
