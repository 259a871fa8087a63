"""The ways in which a unit can be coded: its modes, and in each its symbols."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import CODEBOOK
from haq.errors import UpdateError
from haq.formats.update import order, quantizer
from haq.formats.update.coefficients import Fit, Key
from haq.formats.update.contexts import SMALL, UNIT, Ints
from haq.formats.update.network import Network, floats
from haq.formats.update.units import (
    Base,
    Part,
    Unit,
    alike,
    code_part,
    differences,
    keys_of,
    predicted,
    same,
    units,
)

APART = 0.25
"""The share of zeros from which on they are tried with a symbol of their own."""


class Lossy(NamedTuple):
    """How a tensor is rounded: its codes' bits, and the step they count in."""

    bits: int
    step: np.float32


class Coded(NamedTuple):
    """A unit in a mode.

    Attributes:
        unit: The unit.
        mode: One of ``units.MODES``.
        parts: Its symbols.
        lossy: Its rounding; None where it is exact.
    """

    unit: Unit
    mode: str
    parts: tuple[Part, ...]
    lossy: Lossy | None = None


class Whole(NamedTuple):
    """A unit in a mode of codes, before it is cut into symbols."""

    unit: Unit
    mode: str
    codes: Ints
    base: Base | None = None
    lossy: Lossy | None = None


def ways_of(network: Network, base: Network | None, bits: int | None) -> list[list[Whole | Coded]]:
    """Return for each unit of a network the modes it may be coded in.

    Directly comes first, but for what the base has too.

    Args:
        network: To be sent.
        base: What it is predicted from.
        bits: As for ``plan.plan``.

    Raises:
        UpdateError: A tensor that is to be rounded is not finite.
    """
    return [_wholes(unit, network, base, bits) for unit in units(network.outline)]


def fitted(wholes: Sequence[Whole | Coded], around: bool) -> dict[Key, list[int]]:
    """Return the coefficients with which places of kernels, and the base's, predict each other.

    Args:
        wholes: What is to be coded.
        around: Whether the base's places may do so; where not, their coefficients are 0.
    """
    fit = Fit()
    for whole in wholes:
        if isinstance(whole, Whole):
            base = whole.base.sixteenths * np.int32(around) if whole.base else None
            fit.add(_u(whole), base, whole.unit.shape, whole.mode.lower())
    return fit.solved()


def _u(whole: Whole) -> Ints:
    u = order.to_planes(whole.codes, whole.unit.shape).astype(np.int32) * UNIT
    return u if whole.base is None else u - whole.base.sixteenths


def _wholes(
    unit: Unit, network: Network, base: Network | None, bits: int | None
) -> list[Whole | Coded]:
    """Return the modes a unit may be coded in, directly first but for what the base has too."""
    if same(unit, network, base):
        return [Coded(unit, "s", ())]
    if unit.bits:
        return list(_of_layer(unit, network, base))
    if bits is not None and is_lossy(unit):
        return list(_of_weights(unit, network, base, bits))
    data = network.tensors[unit.name].data
    options: list[Whole | Coded] = [Coded(unit, "d", _byte_parts(unit, "d", data))]
    if base is not None and alike(unit, base):
        apart = differences(unit, data, base.tensors[unit.name].data)
        options.append(Coded(unit, "v", _byte_parts(unit, "v", apart)))
    return options


def is_lossy(unit: Unit) -> bool:
    """Return whether a lossy packet rounds a unit: float32, with at least two dimensions."""
    return not unit.bits and unit.dtype == "F32" and len(unit.shape) > 1


def _of_layer(unit: Unit, network: Network, base: Network | None) -> list[Whole]:
    codes = network.codes(unit.name).ravel().astype(np.int32)
    options = ways("d", unit, codes, unit.bits)
    if base is not None and network.layers[unit.name].block != CODEBOOK:
        try:
            prediction = predicted(network.steps(unit.name), unit, base)
        except UpdateError:  # the base has no such layer
            return options
        options += ways("v", unit, codes, unit.bits, prediction)
    return options


def ways(
    mode: str,
    unit: Unit,
    codes: Ints,
    bits: int,
    base: Base | None = None,
    lossy: Lossy | None = None,
) -> list[Whole]:
    """Return codes in a mode, and with zeros apart where these are many."""
    few = bits <= SMALL or (codes == 0).sum() < APART * codes.size
    letters = mode if few else mode + mode.upper()
    return [Whole(unit, letter, codes, base, lossy) for letter in letters]


def _of_weights(unit: Unit, network: Network, base: Network | None, bits: int) -> list[Whole]:
    values = floats(network.tensors[unit.name].data)
    if not np.isfinite(values).all():
        raise UpdateError(f"tensor {unit.name!r} has values that are not finite; send it exactly")
    lossy = Lossy(bits, quantizer.step_of(values, bits))
    top = 2 ** (bits - 1) - 1
    options: list[Whole] = []
    if base is not None and alike(unit, base):
        apart = values - floats(base.tensors[unit.name].data)
        # A base that is not finite, or is far away, predicts nothing.
        if np.isfinite(apart).all():
            # To the nearest: what a wider zero would hold back, no later difference makes up for.
            z = quantizer.quantize(apart, float(lossy.step), 0.5, top + 1)
            if np.abs(z).max(initial=0) <= top:
                options = ways("l", unit, z, bits, None, lossy)
    step = float(lossy.step)
    z = quantizer.quantize(values, step, quantizer.offset_for(values, step, bits), top)
    return [*ways("q", unit, z, bits, None, lossy), *options]


def _byte_parts(unit: Unit, mode: str, data: NDArray[np.uint8]) -> tuple[Part, ...]:
    keys = keys_of(unit, mode)
    planes = data.reshape(-1, len(keys)).T
    zeros = np.zeros(planes.shape[1], np.uint16)
    return tuple(
        Part(key, np.ascontiguousarray(plane), zeros)
        for key, plane in zip(keys, planes, strict=True)
    )


def coded(whole: Whole | Coded, coefficients: Mapping[Key, Sequence[int]]) -> Coded:
    """Return codes as symbols in contexts."""
    if isinstance(whole, Coded):
        return whole
    unit, mode, codes, base, lossy = whole
    near = coefficients.get((unit.shape[2:], mode.lower()), ())
    (key,) = keys_of(unit, mode, lossy.bits if lossy else 0)
    return Coded(unit, mode, (code_part(key, codes, unit.shape, near, base),), lossy)
