"""What ``summary.json`` says of a run."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from haq.allocation.budgets import uniform_within
from haq.allocation.costs import CODED, reference, tabulate, total
from haq.allocation.policy import Bits, Policy
from haq.allocation.trials import Trial
from haq.allocation.widths import narrowed_layers
from haq.errors import TargetError
from haq.metrics import METRICS, Metric
from haq.network.layers import Layer
from haq.runs.evaluation import Evaluation
from haq.runs.folder import provenance, write_json
from haq.runs.plan import Plan
from haq.runs.provenance import cost_origin


def write_summary(
    folder: Path,
    state: str,
    planned: Plan,
    evaluation: Evaluation,
    trials: Sequence[Trial],
    top: Trial,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``summary.json`` and return what it holds.

    Args:
        folder: Of the run.
        state: "running", "interrupted" or "finished".
        planned: Layers, costs and budgets.
        evaluation: Its score of the float network is on record.
        trials: All so far.
        top: The trial whose policy is handed over.
        more: What is known at the end alone.
    """
    table, policy, metric = planned.table, top.policy, evaluation.metric
    summary = {
        "format": "haq-run/1",
        "state": state,
        "metric": metric.name,
        metric.key("float_val"): metric.of_score(evaluation.float_score.accuracy),
        "best_episode": top.episode,
        metric.key("episode_val"): metric.of_score(top.accuracy),
        **more,
        **_evaluations(trials),
        "best_uniform": best_uniform(planned, trials, metric),
        "budgets": _budgets(planned, policy),
        "cost": {quantity: total(table, policy, quantity) for quantity in table.units},
        "units": dict(table.units),
        "cost_origin": cost_origin(planned.target, table, policy, left_layers(planned, policy)),
        "layers": layer_rows(planned, policy),
        "floats": list(planned.graph.floats),
        "float_parameters": dict(planned.graph.float_parameters),
        "notes": [*planned.notes, *evaluation.notes, *notes_of_training(more)],
        "images": dict(planned.images),
        "threads": torch.get_num_threads(),
        "provenance": provenance(sys.argv),
    }
    write_json(folder / "summary.json", summary)
    return summary


def notes_of_training(more: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each training of the network chosen that was taken back.

    Args:
        more: As ``write_summary`` has it.

    >>> [*notes_of_training({"rounding": {"kept": True}})]
    []
    """
    for stage, said in (("rounding", "learning the rounding"), ("last_epochs", "the last epochs")):
        row = more.get(stage, {})
        if row.get("kept") is False:
            before, after = row["accuracy"]
            yield (
                f"{said} did the network no good beyond chance and had no effect on it: validation "
                f"accuracy {before:.2%} before, {after:.2%} after"
            )


def best_uniform(
    planned: Plan, trials: Sequence[Trial], metric: Metric = METRICS["top1"]
) -> dict[str, Any] | None:
    """Return what is known of the best uniform bits within the budgets: what a search must beat.

    Returns:
        None where no uniform bits keep the budgets. Else the average "weight_bits" and "act_bits"
        of the layers that are free to choose, and where they were tried the "episode" and its
        "val_accuracy".
    """
    table = planned.table
    policy = uniform_within(table, planned.budgets)
    if policy is None:
        return None
    free = [policy[name] for name in policy if len(table.choices[name]) > 1] or [*policy.values()]
    bits = {
        "weight_bits": sum(pair.weight for pair in free) / len(free),
        "act_bits": sum(pair.act for pair in free) / len(free),
    }
    tried = next((trial for trial in trials if trial.policy == policy and not trial.stopped), None)
    if tried is None:
        return bits
    value = metric.of_score(tried.accuracy)
    return bits | {"episode": tried.episode, metric.key("val"): value}


def _evaluations(trials: Sequence[Trial]) -> dict[str, Any]:
    evaluated = [trial.seconds for trial in trials if not trial.cached]
    return {
        "episodes": len(trials),
        "evaluations": len(evaluated),
        "evaluation_seconds": round(sum(evaluated), 1),
        "seconds_per_evaluation": round(sum(evaluated) / len(evaluated), 3),
    }


def _budgets(planned: Plan, policy: Policy) -> list[dict[str, Any]]:
    return [
        {
            "asked": text, "quantity": budget.quantity, "limit": budget.limit,
            "unit": planned.table.units[budget.quantity],
            "achieved": total(planned.table, policy, budget.quantity),
        }
        for text, budget in zip(planned.texts, planned.budgets, strict=True)
    ]  # fmt: skip


def layer_rows(planned: Plan, policy: Policy) -> list[dict[str, Any]]:
    """Return the per-layer table: what a layer is, its bits, its costs with them and at 8 bits."""
    table, costs = planned.table, _costs(planned, policy)
    left = {layer.name: layer for layer in left_layers(planned, policy)}
    rows = []
    for layer in table.layers:
        bits, now = policy[layer.name], left[layer.name]
        eight = {
            quantity: _at_8_bits(planned, layer, quantity)
            for quantity in table.units
            if quantity != "avg_weight_bits"
        }
        rows.append(
            {
                "name": layer.name, "kind": layer.kind, "params": now.weights + now.biases,
                "macs": now.macs, "weight_bits": bits.weight, "act_bits": bits.act,
                "cost": costs[layer.name], "cost_w8a8": eight,
                **({"zeros": now.zeros} if layer.zeros else {}),
            }
            | ({"block": bits.block, "dynamic": bits.dynamic} if bits.is_special else {})
            | (_channels(layer, now, bits) if planned.widths else {})
        )  # fmt: skip
    return rows


def left_layers(planned: Plan, policy: Policy) -> tuple[Layer, ...]:
    """Return the layers of a plan with the channels that a policy leaves them."""
    layers = planned.table.layers
    return narrowed_layers(layers, planned.widths.groups, policy) if planned.widths else layers


def _channels(layer: Layer, now: Layer, bits: Bits) -> dict[str, float]:
    return {"keep": bits.keep, "channels": now.c_out, "float_channels": layer.c_out}


def _costs(planned: Plan, policy: Policy) -> dict[str, dict[str, float]]:
    """Return what each layer costs with its bits, and with the channels that are left to it."""
    table = planned.table
    if planned.widths is None:
        at = {name: table.positions[name][bits] for name, bits in policy.items()}
        return {
            name: {q: float(row[name][place]) for q, row in table.rows.items()}
            for name, place in at.items()
        }
    layers = left_layers(planned, policy)
    choices = {name: (bits.with_keep(1.0),) for name, bits in policy.items()}
    own = tabulate(layers, choices, planned.target)
    return {
        layer.name: {q: float(own.rows[q][layer.name][0]) for q in table.rows} for layer in layers
    }


def _at_8_bits(planned: Plan, layer: Layer, quantity: str) -> float | None:
    if quantity == CODED:
        pairs = enumerate(planned.table.choices[layer.name])
        row = planned.table.rows[quantity][layer.name]
        return next((float(row[place]) for place, bits in pairs if bits.weight == 8), None)
    alone = [replace(layer, reads=layer.name)]
    try:
        return reference(alone, planned.target, quantity, Bits(8, 8))
    except TargetError:
        return None
