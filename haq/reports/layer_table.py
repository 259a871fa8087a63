"""The section of a report that lists the layers, with the reasons for their bits."""

import math
from collections.abc import Mapping
from typing import Any

from haq.allocation.policy import CODEBOOK
from haq.allocation.sensitivities import Sensitivity
from haq.reports.charts.theme import amount
from haq.reports.page import Cell, Section, Table, number
from haq.reports.reasons import why
from haq.reports.record import RunRecord, bits_of_row


def layers_section(record: RunRecord) -> Section:
    """Return the section of layers: bits, costs, and why they are so."""
    summary = record.summary
    reasons, sensitivity = why(record), record.sensitivity
    quantities = [q for q in ("latency", "energy", "size") if q in summary["units"]]
    columns = ["layer", "weight bits", "activation bits", *["why"] * bool(reasons), "kind"]
    columns += [f"{quantity} ({summary['units'][quantity]})" for quantity in quantities]
    columns += ["sensitivity"] * bool(sensitivity) + ["parameters", "MACs"]
    rows = []
    for layer in summary["layers"]:
        row = [Cell(layer["name"])]
        row += [number(layer["weight_bits"], _weights(layer))]
        row += [number(layer["act_bits"], str(layer["act_bits"]))]
        if reasons:
            row.append(Cell(reasons[layer["name"]]))
        row.append(Cell(layer["kind"]))
        row += [number(layer["cost"][q], amount(layer["cost"][q])) for q in quantities]
        if sensitivity:
            row.append(number(_chosen_sensitivity(sensitivity, layer)))
        row += [number(layer[key], f"{layer[key]:,}") for key in ("params", "macs")]
        rows.append(row)
    lead = "A click on a heading sorts the table."
    if reasons:
        lead += " Why: what the next fewer bits would save and cost, all else left as it is."
    notes = [] if reasons else [record.missing.get("plan", "")]
    return Section(
        "layers", "Layers", lead, notes=notes,
        tables=[Table("All layers, in order of execution", columns, rows, "layer-table")],
    )  # fmt: skip


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
