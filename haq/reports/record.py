"""What lies in the folder of a run, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from haq.allocation.policy import Bits, Policy
from haq.allocation.sensitivities import Sensitivity, load_sensitivity
from haq.allocation.trials import Trial
from haq.compression.chain import replayed
from haq.errors import HaqError
from haq.metrics import metric_of
from haq.runs.folder import read_job, read_json, read_trials
from haq.runs.job import Job
from haq.runs.named import rebuilt
from haq.runs.plan import Plan, plan
from haq.runs.sample import load_sample, sample_of


@dataclass(frozen=True)
class RunRecord:
    """What lies in the folder of a run, and what follows from it.

    Attributes:
        folder: The run.
        job: What was asked for.
        summary: Empty before the first episode.
        trials: So far.
        policy: The one chosen, so far; empty before the first episode.
        sensitivity: None where it was not measured.
        uniform: Accuracies of 8 bits everywhere, as in ``uniform.json``.
        onnx: What the exported file is worth in ONNX Runtime, as in ``onnx.json``.
        planned: Layers, costs and target; None where the model cannot be made again.
        missing: Key of a section to the reason why it is not there.
    """

    folder: Path
    job: Job
    summary: Mapping[str, Any]
    trials: Sequence[Trial]
    policy: Policy
    sensitivity: Sensitivity | None = None
    uniform: Mapping[str, float] = field(default_factory=dict)
    onnx: Mapping[str, Any] = field(default_factory=dict)
    planned: Plan | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: Path, model: nn.Module | None = None) -> RunRecord:
    """Return what lies in the folder of a run, also of one that is not finished.

    Args:
        folder: A run.
        model: Where the run searched a module of the caller's own: such a module, whose weights do
            not matter. Without it the layers' choices are not known.

    Raises:
        RunError: The folder is no run, or a file in it is damaged.
    """
    job, summary = read_job(folder), _read(folder / "summary.json") or {}
    trials = read_trials(folder)  # after the summary, so that its best episode is here
    missing: dict[str, str] = {}
    planned = None
    if summary:
        try:
            planned = _planned(folder, job, summary, model)
        except HaqError as error:
            missing["plan"] = f"The layers' choices are not known here: {error}."
    sensitivity = _sensitivity(folder)
    if sensitivity is None:
        missing["sensitivity"] = (
            "The sensitivities were not measured: haq inspect measures them unless it is called "
            "with --no-sensitivity."
        )
    return RunRecord(
        folder, job, summary, trials, _chosen(summary), sensitivity,
        _read(folder / "uniform.json") or {}, _read(folder / "onnx.json") or {}, planned, missing,
    )  # fmt: skip


def _chosen(summary: Mapping[str, Any]) -> dict[str, Bits]:
    return {row["name"]: bits_of_row(row) for row in summary.get("layers", [])}


def bits_of_row(row: Mapping[str, Any]) -> Bits:
    """Return the bits of a layer in a summary."""
    return Bits(
        row["weight_bits"], row["act_bits"], row.get("block", 0), row.get("dynamic", ""),
        row.get("keep", 1.0),
    )  # fmt: skip


def _sensitivity(folder: Path) -> Sensitivity | None:
    path = folder / "sensitivity.json"
    known = load_sensitivity(path) if path.exists() else None
    return (
        known
        if known and (any(known.weights.values()) or any(known.activations.values()))
        else None
    )


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _planned(folder: Path, job: Job, summary: Mapping[str, Any], model: nn.Module | None) -> Plan:
    images = summary["images"]
    if model is None:
        model = replayed(rebuilt(job, images), sample_of(folder, images), job.transforms)
    return plan(job, model, images, load_sample(folder))


def kind_of(record: RunRecord) -> str:
    """Return what the values of the trials are called: by which inputs, and by which metric."""
    inputs = "validation" if record.job.max_drop is None else "training"
    return f"{inputs} {metric_of(record.summary).said}"
