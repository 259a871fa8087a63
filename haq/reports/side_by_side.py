"""What a run costs beside the float network and 8 bits everywhere."""

import math

from haq.allocation.costs import WITHOUT_TARGET, reference
from haq.allocation.policy import FLOAT, Bits
from haq.errors import TargetError
from haq.reports.record import RunRecord
from haq.runs.plan import Plan

Three = tuple[float | None, float | None, float | None]
"""A quantity of the float network, of 8 bits everywhere and of the run."""


def side_by_side(record: RunRecord) -> dict[str, Three]:
    """Return each quantity of the float network, of 8 bits everywhere and of the run."""
    summary = record.summary
    layers = summary["layers"]
    costs: dict[str, Three] = {}
    for quantity in summary["units"]:
        # What is in no layer stays float in every column.
        rest = summary["cost"][quantity] - math.fsum(layer["cost"][quantity] for layer in layers)
        if quantity == "avg_weight_bits":
            eight = 8.0 * (1 - rest / FLOAT) + rest
            costs[quantity] = (float(FLOAT), eight, summary["cost"][quantity])
            continue
        eights = [layer["cost_w8a8"].get(quantity) for layer in layers]
        rest = rest if quantity in WITHOUT_TARGET else 0.0
        eight = None if None in eights else math.fsum([*eights, rest])
        full = _float_cost(record, quantity, rest)
        if record.planned and quantity not in WITHOUT_TARGET:
            full = _reference(record.planned, quantity, Bits(FLOAT, FLOAT))
            eight = _reference(record.planned, quantity, Bits(8, 8))
        costs[quantity] = (full, eight, summary["cost"][quantity])
    return costs


def _float_cost(record: RunRecord, quantity: str, rest: float) -> float | None:
    """Return what all channels cost in float; None where the layers do not tell it."""
    rows = [(layer["params"], layer["macs"]) for layer in record.summary["layers"]]
    if record.planned is not None:
        rows = [(layer.weights + layer.biases, layer.macs) for layer in record.planned.table.layers]
    elif any(layer.get("keep", 1.0) < 1 for layer in record.summary["layers"]):
        return None  # its readers keep all of theirs, and yet have fewer weights
    whole = {"size": math.fsum(4 * params for params, _ in rows) + rest,
             "bops": math.fsum(macs * FLOAT**2 for _, macs in rows)}  # fmt: skip
    return whole.get(quantity)


def _reference(planned: Plan, quantity: str, bits: Bits) -> float | None:
    try:
        return reference(planned.graph.layers, planned.target, quantity, bits)
    except TargetError:
        return None
