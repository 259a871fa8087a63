"""What a model costs on a target, without data or weights."""

from typing import Any

import torch

from haq.errors import HaqError
from haq.graph import inventory
from haq.hw_profiles import load
from haq.models import build, input_shape


def cost_table(
    model: str,
    target: str,
    *,
    batch: int | None = None,
    width: float = 1.0,
    size: int | None = None,
    classes: int | None = None,
) -> dict[str, Any]:
    """Return the cost of every layer at every pair of bits that the target runs.

    Args:
        model: A name, or package.module:factory.
        target: A name.
        batch: Images computed at once; the target's own where None.
        width: Width multiplier.
        size: Height and width of an image; needed for a factory (3 channels).
        classes: Outputs of the last layer; the model's own where None.

    Returns:
        ``{"unit", "layers": [{"name", "kind", "cost": {"8,8": ...}}]}``, with latency in ``cost``
        and the target's other quantities beside it, such as ``energy_nj``. Keys are "weight
        bits,activation bits".
    """
    shape = input_shape(model, size)
    if shape is None:
        if size is None:
            raise HaqError(f"model {model}: give --size, the height and width of its images")
        shape = (3, size, size)
    hardware = load(target, batch)
    layers = inventory(build(model, classes, width, size), torch.zeros(1, *shape))
    rows = []
    for layer in layers:
        row: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
        columns = {quantity: _column(quantity, unit) for quantity, unit in hardware.units.items()}
        row |= {column: {} for column in columns.values()}
        for bits in hardware.choices(layer):
            for quantity, value in hardware.cost(layer, bits).items():
                row[columns[quantity]][f"{bits.weight},{bits.act}"] = value
        rows.append(row)
    return {
        "target": hardware.name, "batch": hardware.batch, "unit": hardware.units["latency"],
        "layers": rows,
    }  # fmt: skip


def _column(quantity: str, unit: str) -> str:
    return "cost" if quantity == "latency" else f"{quantity}_{unit.lower()}"
