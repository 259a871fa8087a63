"""What changed from one network to another: ``haq diff``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.formats.update import network as networks
from haq.formats.update import packet
from haq.formats.update.network import Network, floats
from haq.formats.update.options import Coded
from haq.formats.update.packet import Sent
from haq.formats.update.plan import Plan, bits_of_part, plan
from haq.formats.update.units import Unit


class Change(NamedTuple):
    """What became of a layer, or of a tensor.

    Attributes:
        name: Of the layer or the tensor.
        weights: How many values it has.
        old_bits: Of the old codes; None where there are none.
        new_bits: Of the new ones.
        changed: The share of values that are not as they were; 1.0 where the old network has none.
        energy: Squared difference over squared new values; None where that says nothing.
        gain: Bits per value that the difference saves, as 1/2 log2(1 / energy) predicts.
        measured: Bits per value that it does save.
        mode: How it is sent, a letter of ``haq.formats.update.units.MODES``.
        sent: What it takes as a difference, in bytes, without its share of the tables.
        direct: What it takes alone.
    """

    name: str
    weights: int
    old_bits: int | None
    new_bits: int | None
    changed: float
    energy: float | None
    gain: float | None
    measured: float
    mode: str
    sent: float
    direct: float


@dataclass(frozen=True)
class Difference:
    """What changed from one network to another.

    Attributes:
        old: Id of the old network.
        new: Id of the new one.
        changes: Tensors, then layers.
        size: Of the packet with the difference, in bytes.
        direct: Of the packet with the new network alone.
        file: Of the new file.
    """

    old: str
    new: str
    changes: tuple[Change, ...]
    size: int
    direct: int
    file: int


def diff(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Difference:
    """Return what changed from one file to another, layer by layer, and what sending it takes.

    Args:
        old: A safetensors file.
        new: Another one.

    Raises:
        UpdateError: A file is missing, damaged, or cannot be packed.
    """
    return compared(networks.read(Path(old)), networks.read(Path(new)))


def compared(old: Network, new: Network) -> Difference:
    """Return what changed from one network to another."""
    sent, alone = plan([(new, old)]), plan([(new, None)])
    changes = (
        _change(coded, _size(coded, sent), _size(direct, alone), old, new)
        for coded, direct in zip(sent.members[0], alone.members[0], strict=True)
    )
    return Difference(
        old.id, new.id, tuple(changes), len(packet.write([Sent("new", new, old)])),
        len(packet.write([Sent("new", new)])), len(new.file()),
    )  # fmt: skip


def _size(coded: Coded, chosen: Plan) -> float:
    return sum(bits_of_part(part, chosen.sets) for part in coded.parts) / 8


def _change(coded: Coded, size: float, direct: float, old: Network, new: Network) -> Change:
    unit = coded.unit
    before, after = _values(unit, old), _values(unit, new)
    layer = old.layers.get(unit.name) if unit.bits else None
    changed, energy = 1.0, None
    if before is not None and after is not None and before.shape == after.shape:
        changed = float((before != after).mean())
        energy = _energy(before, after)
    return Change(
        unit.name, unit.values, layer.bits if layer else None, unit.bits or None, changed, energy,
        None if not energy else -0.5 * float(np.log2(energy)), 8 * (direct - size) / unit.values,
        coded.mode, size, direct,
    )  # fmt: skip


def _values(unit: Unit, network: Network) -> NDArray[np.generic] | None:
    if unit.bits:
        return network.values(unit.name)
    tensor = network.tensors.get(unit.name)
    if tensor is None or (tensor.dtype, tensor.shape) != (unit.dtype, unit.shape):
        return None
    return floats(tensor.data) if unit.dtype == "F32" else tensor.data


def _energy(before: NDArray[np.generic], after: NDArray[np.generic]) -> float | None:
    if before.dtype != np.float32:
        return None
    one, other = before.astype(np.float64), after.astype(np.float64)
    whole = float((other**2).sum())
    apart = float(((other - one) ** 2).sum())
    return apart / whole if whole and np.isfinite(apart) else None
