"""The section of a report that lists the layers, with the reasons for their bits."""

import math
from collections.abc import Mapping
from typing import Any

from haq.allocation.policy import CODEBOOK
from haq.allocation.sensitivities import Sensitivity
from haq.reports.charts.theme import amount, spoken
from haq.reports.page import Cell, Section, Table, number
from haq.reports.reasons import limits_of
from haq.reports.record import RunRecord, bits_of_row
from haq.reports.steps import REASONS, Step, steps_of


def layers_section(record: RunRecord) -> Section:
    """Return the section of layers: bits, costs, and why they are so."""
    summary, sensitivity = record.summary, record.sensitivity
    steps = steps_of(record)
    quantities = [q for q in ("latency", "energy", "size") if q in summary["units"]]
    columns = ["layer", "weight bits", "act. bits", *["held by"] * bool(steps)]
    columns += _columns_of_steps(record, steps)
    columns += [*quantities, "kind", *["divergence"] * bool(sensitivity)]
    columns += ["parameters", "MACs"]
    rows = []
    for layer in summary["layers"]:
        step = steps.get(layer["name"])
        row = [Cell(layer["name"]), number(layer["weight_bits"], _weights(layer))]
        row.append(number(layer["act_bits"], str(layer["act_bits"])))
        if steps:
            row.append(Cell(step.reason if step else ""))
            row += _cells_of_step(step, bool(sensitivity))
        row += [
            number(layer["cost"][q], amount(layer["cost"][q], summary["units"][q]))
            for q in quantities
        ]
        row.append(Cell(layer["kind"]))
        if sensitivity:
            row.append(number(_chosen_sensitivity(sensitivity, layer)))
        row += [number(layer["params"], f"{layer['params']:,}")]
        row += [number(layer["macs"], amount(layer["macs"], "MACs"))]
        rows.append(row)
    lead = "A click on a heading sorts the table."
    if steps:
        lead += (
            f" Held by: {_explained(steps)}. One step down is the next fewer bits of the weights "
            "(of the activations where the weights have none), all else left as it is."
        )
    table = Table("All layers, in order of execution", columns, rows, "layer-table")
    return Section("layers", "Layers", lead, tables=[table])


def _columns_of_steps(record: RunRecord, steps: Mapping[str, Step]) -> list[str]:
    if not steps:
        return []
    limits = limits_of(record)
    saved = spoken(limits[0].quantity) if limits else "cost"
    rises = ["…divergence times"] if record.sensitivity else []
    return ["one step down", f"…saves {saved}", *rises]


def _explained(steps: Mapping[str, Step]) -> str:
    """Return what the words of the column mean that stand in it."""
    met = {step.reason for step in steps.values()}
    return "; ".join(f"{word}: {more}" for word, more in REASONS.items() if word in met)


def _cells_of_step(step: Step | None, with_times: bool) -> list[Cell]:
    if step is None or step.lower is None:
        return [number(None)] * (2 + with_times)
    bits = f"{step.lower} bits" if step.what == "weights" else f"{step.lower} bits (act.)"
    saves = number(step.saves, None if step.saves is None else f"{step.saves:.1%}")
    times = [number(step.times, None if step.times is None else f"{step.times:.3g}")]
    return [number(step.lower, bits), saves, *(times if with_times else [])]


def _weights(layer: Mapping[str, Any]) -> str:
    """Return the bits of a layer's weights, and what shares a scale where no channel does."""
    block = layer.get("block", 0)
    shared = "codebook" if block == CODEBOOK else f"groups of {block}"
    return f"{layer['weight_bits']} ({shared})" if block else str(layer["weight_bits"])


def _chosen_sensitivity(known: Sensitivity, layer: Mapping[str, Any]) -> float | None:
    bits = bits_of_row(layer)
    if bits.is_special:
        return known.formats.get(layer["name"], {}).get(str(bits))
    pair = (
        known.weights.get(layer["name"], {}).get(layer["weight_bits"]),
        known.activations.get(layer["name"], {}).get(layer["act_bits"]),
    )
    values = [value for value in pair if value is not None]
    return math.fsum(values) if values else None
