"""What lies in the folder of a run, and the charts that it has numbers for."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq.agents import ddpg, guided
from haq.allocation.costs import UNITS, permitted, reference, tabulate
from haq.allocation.policy import FLOAT, Bits, Policy
from haq.allocation.trials import Trial
from haq.errors import HaqError, TargetError
from haq.hw_profiles.ceilings import ceilings
from haq.models import build, input_shape
from haq.network.layers import Layer
from haq.quantization.sensitivity import Sensitivity, load_sensitivity
from haq.reports.charts import (
    Chart,
    bits_chart,
    progress_chart,
    roofline_chart,
    sensitivity_chart,
    shares_chart,
    trials_chart,
)
from haq.reports.reasons import reasons
from haq.runs import folder as results
from haq.runs.job import Job
from haq.runs.plan import Plan, plan

Three = tuple[float | None, float | None, float | None]
"""A quantity of the float network, of 8 bits everywhere and of the run."""

ROOFS = 4
"""How many rooflines are drawn at most: each pair of bits has its own."""


@dataclass(frozen=True)
class Found:
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


def read_run(folder: Path, model: nn.Module | None = None) -> Found:
    """Return what lies in the folder of a run, also of one that is not finished.

    Args:
        folder: A run.
        model: Where the run searched a module of the caller's own: such a module, whose weights do
            not matter. Without it the layers' choices are not known.

    Raises:
        RunError: The folder is no run, or a file in it is damaged.
    """
    job, summary = results.read_job(folder), _read(folder / "summary.json") or {}
    trials = results.read_trials(folder)  # after the summary, so that its best episode is here
    missing: dict[str, str] = {}
    planned = None
    if summary:
        try:
            planned = _planned(job, summary, model)
        except HaqError as error:
            missing["plan"] = f"The layers' choices are not known here: {error}."
    sensitivity = _sensitivity(folder)
    if sensitivity is None:
        missing["sensitivity"] = (
            "The sensitivities were not measured: haq inspect measures them unless it is called "
            "with --no-sensitivity."
        )
    return Found(
        folder, job, summary, trials, _chosen(summary), sensitivity,
        _read(folder / "uniform.json") or {}, _read(folder / "onnx.json") or {}, planned, missing,
    )  # fmt: skip


def _chosen(summary: Mapping[str, Any]) -> dict[str, Bits]:
    rows = summary.get("layers", [])
    return {row["name"]: Bits(row["weight_bits"], row["act_bits"]) for row in rows}


def _sensitivity(folder: Path) -> Sensitivity | None:
    path = folder / "sensitivity.json"
    known = load_sensitivity(path) if path.exists() else None
    return (
        known
        if known and (any(known.weights.values()) or any(known.activations.values()))
        else None
    )


def _read(path: Path) -> dict[str, Any] | None:
    return results.read_json(path) if path.exists() else None


def _planned(job: Job, summary: Mapping[str, Any], model: nn.Module | None) -> Plan:
    images = summary["images"]
    if model is None:
        size = images["shape"][-1] if input_shape(job.model) else None
        with torch.random.fork_rng(devices=[]):  # the first weights of a model are drawn
            model = build(job.model, classes=len(images["classes"]), width=job.width, size=size)
    return plan(job, model, images)


def all_charts(found: Found) -> list[Chart]:
    """Return the charts that the run has numbers for, in the order of the page."""
    charts: list[Chart | None] = []
    if found.summary:
        layers = found.summary["layers"]
        charts = [
            bits_chart(layers),
            shares_chart(layers, found.summary["units"]),
            sensitivity_chart(layers, found.sensitivity) if found.sensitivity else None,
            roofline(found),
        ]
    if found.trials:
        charts.append(progress_chart(found.trials, noise(found), kind_of(found)))
        charts += _trials_charts(found)
    return [chart for chart in charts if chart is not None]


def noise(found: Found) -> list[float | None]:
    """Return the sigma of the agent's noise in each episode; None where it had none.

    It follows from the schedules of the agents: what they note is not kept with the trials.
    """
    schedule = SCHEDULES.get(found.job.agent)
    if schedule is None:
        return [None] * len(found.trials)
    return [schedule(trial.episode, found.job) for trial in found.trials]


def _ddpg_noise(number: int, job: Job) -> float | None:
    if number < ddpg.WARM_UP:  # uniform actions
        return None
    return ddpg.exploration(number, job.episodes, job.paper)


SCHEDULES: Mapping[str, Callable[[int, Job], float | None]] = {
    "ddpg": _ddpg_noise,
    "guided": lambda number, job: guided.exploration(number, job.episodes),
}
"""Agent to the sigma of its noise in an episode, counted from 0."""


def kind_of(found: Found) -> str:
    """Return what the accuracy of the run's trials is called."""
    share = all(0 <= trial.accuracy <= 1 for trial in found.trials)
    of_classes = "classes" in found.summary.get("images", {})
    return "validation accuracy" if share and of_classes else "score"


def _trials_charts(found: Found) -> list[Chart]:
    """Return one chart a quantity, that of the first budget first."""
    units = {**UNITS, **found.summary.get("units", {})}
    limits = {budget["quantity"]: budget["limit"] for budget in found.summary.get("budgets", [])}
    quantities = dict.fromkeys([*limits, *found.trials[0].cost])
    charts = []
    for at, quantity in enumerate(quantities):
        chart = trials_chart(
            found.trials, quantity, units.get(quantity, ""), kind_of(found), limits.get(quantity),
            found.summary.get("float_val_accuracy"), found.summary.get("best_episode"),
        )  # fmt: skip
        key = "trials" if at == 0 else f"trials-{quantity}"
        charts.append(chart._replace(key=key, title=f"All trials, by {quantity}"))
    return charts


def roofline(found: Found) -> Chart | None:
    """Return the roofline chart, None where ``no_roof`` says why there is none."""
    target = found.planned.target if found.planned else None
    if found.planned is None or target is None or "latency" not in target.si:
        return None
    points, roofs, work = [], {}, {"w8a8": math.inf}
    for layer in found.planned.graph.layers:
        point: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
        for state, bits in (("w8a8", Bits(8, 8)), ("run", found.policy[layer.name])):
            roof = ceilings(target, bits)
            if roof is None:
                if state == "run":
                    return None
                continue
            roofs[str(bits)] = (roof.macs_per_second, roof.bytes_per_second)
            work[str(bits)] = work.get(str(bits), 0) + layer.macs
            try:
                seconds = target.cost(layer, bits)["latency"] * target.si["latency"]
            except TargetError:
                continue
            intensity = layer.macs * target.batch / moved_bytes(layer, bits, target.batch)
            point[state] = {
                "bits": str(bits), "intensity": intensity,
                "attained": layer.macs * target.batch / seconds,
                "ceiling": min(roof.macs_per_second, intensity * roof.bytes_per_second),
            }  # fmt: skip
        points.append(point)
    # The roofs of 8 bits and of the pairs of bits that most of the work is done in.
    drawn = sorted(roofs, key=lambda bits: -work[bits])[:ROOFS]
    return roofline_chart(points, {bits: roofs[bits] for bits in drawn})


def moved_bytes(layer: Layer, bits: Bits, batch: int) -> float:
    """Return the least bytes that a layer must read: its weights once, its inputs once an image."""
    inputs = layer.c_in * layer.in_size[0] * layer.in_size[1] * layer.calls
    return (layer.weights * bits.weight + batch * inputs * bits.act) / 8


def no_roof(found: Found) -> str:
    """Return the reason why the run has no roofline."""
    if found.job.target is None:
        return (
            "There is no roofline: the run has no target. With --target its layers are shown "
            "against what the hardware can do."
        )
    if found.planned is None:
        return "There is no roofline: " + found.missing.get("plan", "nothing has been tried yet.")
    return f"There is no roofline: {found.job.target} states no ceilings of its own."


def why(found: Found) -> dict[str, str]:
    """Return a sentence for each layer; none where its choices are not known."""
    planned = found.planned
    if planned is None or not found.policy:
        return {}
    layers, target = planned.graph.layers, planned.target
    every = tabulate(layers, permitted(layers, target), target)
    return reasons(planned.table, every, found.policy, planned.budgets, found.sensitivity)


def side_by_side(found: Found) -> dict[str, Three]:
    """Return each quantity of the float network, of 8 bits everywhere and of the run."""
    summary = found.summary
    layers = summary["layers"]
    costs: dict[str, Three] = {}
    for quantity in summary["units"]:
        if quantity == "avg_weight_bits":
            costs[quantity] = (float(FLOAT), 8.0, summary["cost"][quantity])
            continue
        eights = [layer["cost_w8a8"].get(quantity) for layer in layers]
        eight = None if None in eights else math.fsum(eights)
        whole = {"size": math.fsum(4 * layer["params"] for layer in layers),
                 "bops": math.fsum(layer["macs"] * FLOAT**2 for layer in layers)}  # fmt: skip
        full = whole.get(quantity)
        if found.planned and quantity not in UNITS:
            full = _reference(found.planned, quantity, Bits(FLOAT, FLOAT))
            eight = _reference(found.planned, quantity, Bits(8, 8))
        costs[quantity] = (full, eight, summary["cost"][quantity])
    return costs


def _reference(planned: Plan, quantity: str, bits: Bits) -> float | None:
    try:
        return reference(planned.graph.layers, planned.target, quantity, bits)
    except TargetError:
        return None
