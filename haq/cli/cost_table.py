"""What a model costs on a target, without data."""

import csv
import io
from pathlib import Path
from typing import Any

from torch import nn

from haq.allocation.policy import Bits
from haq.compression.chain import as_in_file
from haq.errors import HaqError
from haq.hw_profiles import CostAnswer, ProfileTarget, load
from haq.hw_profiles.bitfusion import BitFusionFormula
from haq.hw_profiles.schema import weakest
from haq.models import build, input_shape
from haq.models.weights import load_weights
from haq.network.graph import inventory
from haq.network.layers import Layer
from haq.runs.encoded_cost import clipped_by, on_weights
from haq.runs.made_up import made_up


def cost_table(  # noqa: PLR0913 - one keyword an option
    model: str,
    target: str,
    *,
    batch: int | None = None,
    width: float = 1.0,
    size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    weights: Path | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """Return the cost of every layer at every pair of bits that the target runs.

    Args:
        model: A name, or package.module:factory.
        target: A name, a profile (.json) or a table (table:….csv).
        batch: Images computed at once; the target's own where None.
        width: Width multiplier.
        size: Height and width of an image; needed for a factory that takes images.
        classes: Outputs of the last layer; the model's own where None.
        channels: Of an image; what the model's first convolution takes where None.
        weights: File of weights whose transforms the network goes through first. Their values
            count where the target encodes weights.
        length: Tokens of an input of text; 128, or as many as the model takes, where None.

    Returns:
        ``{"target", "batch", "unit", "provenance": {"latency": "modelled"}, "layers": [{"name",
        "kind", "cost": {"8,8": ...}}]}``, with latency in ``cost``, in ``unit``, and the target's
        other quantities beside it, such as ``energy_nj``. Keys are "weight bits,activation bits".
        Where a model says more at these bits than at wider ones, the cost is the least of these,
        and what it says of these bits stands in ``raw`` and ``raw_energy_nj``. ``provenance`` is
        that of the weakest number.

    Raises:
        HaqError: There is no such model or target, or the target has no cost for some layer.
    """
    layers, hardware = _layers_and_target(
        model, target, batch, width, size, classes, channels, weights, length
    )
    main = _main(hardware)
    names = {name: "cost" if name == main else _column(name, hardware) for name in hardware.units}
    rows, every = [], []
    for layer in layers:
        row: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
        row |= {name: {} for name in names.values()}
        raw_names = {q: "raw" if q == main else f"raw_{names[q]}" for q in names}
        row |= {name: {} for name in raw_names.values() if _has_raw(hardware)}
        for bits in hardware.choices(layer):
            answers = hardware.how(layer, bits)
            every.append(answers)
            pair = f"{bits.weight},{bits.act}"
            for quantity, answer in answers.items():
                row[names[quantity]][pair] = _plain(answer.value)
            for quantity, value in _raw(hardware, layer, bits, answers).items():
                row[raw_names[quantity]][pair] = _plain(value)
        rows.append(row)
    provenance = {name: weakest(each[name].provenance for each in every) for name in names}
    return {
        "target": hardware.name, "batch": hardware.batch, "unit": hardware.units[main],
        "provenance": provenance, "layers": rows,
    }  # fmt: skip


def cost_csv(  # noqa: PLR0913 - one keyword an option
    model: str,
    target: str,
    *,
    batch: int | None = None,
    width: float = 1.0,
    size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    weights: Path | None = None,
    length: int | None = None,
) -> str:
    """Return the costs as CSV, a row for each layer and pair of bits.

    The columns are those that a target "table:….csv" is read from, so a spreadsheet may change the
    numbers. The arguments are those of ``cost_table``.
    """
    layers, hardware = _layers_and_target(
        model, target, batch, width, size, classes, channels, weights, length
    )
    clock = hardware.profile.clock_hz
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    costs = [_column(quantity, hardware) for quantity in hardware.units]
    clocks = ["clock_hz"] if clock else []
    writer.writerow([*_SHAPE, "weight_bits", "act_bits", "batch", *clocks, *costs])
    for layer in layers:
        shape = [getattr(layer, "name" if name == "layer" else name) for name in _SHAPE]
        cells = ["x".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in shape]
        for bits in hardware.choices(layer):
            values = [_plain(value) for value in hardware.cost(layer, bits).values()]
            rate = [_plain(clock)] if clock else []
            writer.writerow([*cells, bits.weight, bits.act, hardware.batch, *rate, *values])
    return text.getvalue()


CLIPPED = ("kl", True)
"""How weights are clipped where nothing else is asked for: by divergence, each channel apart."""

_SHAPE = (
    "layer", "kind", "c_in", "c_out", "groups", "kernel", "stride", "padding", "in_size",
    "out_size",
)  # fmt: skip


def _layers_and_target(  # noqa: PLR0913 - one argument an option
    model: str,
    target: str,
    batch: int | None,
    width: float,
    size: int | None,
    classes: int | None,
    channels: int | None,
    weights: Path | None,
    length: int | None,
) -> tuple[tuple[Layer, ...], ProfileTarget]:
    hardware = load(target, batch)
    shape = input_shape(model, size)
    if shape is not None and channels not in (None, shape[0]):
        raise HaqError(f"--channels {channels}: {model} takes images of {shape[0]}; leave it out")
    network = build(model, classes, width, size)
    sample = made_up(model, network, size, channels or _channels(network), length)
    if weights is not None:
        network = as_in_file(network, sample, weights)
    if hardware.encodes:
        if weights is not None:
            load_weights(network, weights)
        known = on_weights(hardware, network, clipped_by(network, *CLIPPED))
        assert isinstance(known, ProfileTarget)
        hardware = known
    return tuple(inventory(network, sample)), hardware


def _channels(network: nn.Module) -> int:
    """Return how many channels the first convolution takes; 3 of a network without one."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), 3)


def _main(hardware: ProfileTarget) -> str:
    return "latency" if "latency" in hardware.units else next(iter(hardware.units))


def _column(quantity: str, hardware: ProfileTarget) -> str:
    return f"{quantity}_{hardware.units[quantity].lower()}"


def _has_raw(hardware: ProfileTarget) -> bool:
    return isinstance(hardware.formula, BitFusionFormula)


def _raw(
    hardware: ProfileTarget, layer: Layer, bits: Bits, answers: dict[str, CostAnswer]
) -> dict[str, float]:
    """Return what the model says of exactly these bits, where the cost is less."""
    if not isinstance(hardware.formula, BitFusionFormula):
        return {}
    raw = {
        quantity: value + layer.calls * hardware.profile.quantities[quantity].per_call
        for quantity, value in hardware.formula.raw(layer, bits).items()
        if quantity in answers and answers[quantity].method == "model"
    }
    return {quantity: value for quantity, value in raw.items() if value > answers[quantity].value}


def _plain(value: float) -> float:
    """Return a whole number as one: cycles have no decimals."""
    return int(value) if float(value).is_integer() else value
