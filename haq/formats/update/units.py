"""What a packet codes one after another: tensors, then layers of codes, each in one of some modes.

======  ========================================================================================
mode    what is coded
======  ========================================================================================
``s``   nothing: the base has the same
``d``   the codes of a layer, or the bytes of a tensor, directly
``v``   the same, predicted by the base's values: codes by its weights in steps of the new one,
        the values of a tensor as integers by the base's
``q``   a float32 tensor in whole steps, directly: lossy
``l``   the difference to the base's tensor in whole steps: lossy
======  ========================================================================================

A capital letter says the same of codes of over 4 bits many of which are zero: zero has a symbol of
its own there, whatever was predicted.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError
from haq.formats.update import order
from haq.formats.update.contexts import CONTEXTS, UNIT, Ints, symbols
from haq.formats.update.field import Field
from haq.formats.update.network import ITEM_BYTES, SCALES, Network, Outline

MODES = "sdvqlDVQL"

LOSSY = "qlQL"

BASED = "svlVL"
"""Modes that need a base."""


class Unit(NamedTuple):
    """A tensor (bits 0), or the codes of a layer.

    Attributes:
        name: Of the tensor or the layer.
        shape: Of its values.
        bits: Of its codes; 0 for a tensor.
        dtype: Of a tensor; empty for codes.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    dtype: str

    @property
    def values(self) -> int:
        """How many values there are."""
        return int(np.prod(self.shape, dtype=np.int64))


class Part(NamedTuple):
    """Symbols that share a set of tables.

    Attributes:
        key: Of the set: ``c`` with bits and kind for codes, the kind a capital letter where zero
            has a symbol of its own; ``p`` with item bytes, place of the byte and kind for the bytes
            of tensors.
        symbols: (n,), uint8.
        contexts: (n,), uint16.
    """

    key: str
    symbols: NDArray[np.uint8]
    contexts: NDArray[np.uint16]


class Base(NamedTuple):
    """What a base predicts for the codes of a layer.

    Attributes:
        sixteenths: (K, out, in), in sixteenths of a step of the new codes.
        zero: Where the base is exactly zero.
    """

    sixteenths: Ints
    zero: NDArray[np.bool_]


def units(outline: Outline) -> list[Unit]:
    """Return the units of a network: tensors as in the file, but scales first; then codes.

    Codes that are predicted need their scales. They come before everything else.
    """
    tensors = [
        Unit(name, shape, 0, dtype) for name, (dtype, shape, size) in outline.tensors.items()
        if size and not (name == "codes" and outline.layers)
    ]  # fmt: skip
    tensors.sort(key=lambda unit: unit.name not in SCALES)
    return tensors + [
        Unit(layer.name, layer.shape, layer.bits, "") for layer in outline.layers.values()
    ]


def contexts_of(key: str) -> int:
    """Return how many contexts the tables of a set have."""
    return CONTEXTS if key[0] == "c" else 1


def symbols_of(key: str) -> int:
    """Return how many symbols the tables of a set have."""
    return 2 ** int(key[1]) if key[0] == "c" else 256


def keys_of(unit: Unit, mode: str, bits: int = 0) -> list[str]:
    """Return the sets of tables of a unit in a mode, one for each of its parts.

    Args:
        unit: The unit.
        mode: One of ``MODES``.
        bits: Of a lossy unit.
    """
    if mode == "s":
        return []
    if unit.bits or mode in LOSSY:
        return [f"c{unit.bits or bits}{mode}"]
    size = ITEM_BYTES[unit.dtype]
    return [f"p{size}{place}{mode}" for place in range(size)]


def predicted(network_steps: NDArray[np.float32], unit: Unit, base: Network) -> Base:
    """Return what a base predicts for the codes of a layer.

    Args:
        network_steps: The new step of every code, in the layer's shape.
        unit: The layer.
        base: Has values of this name and shape.

    Raises:
        UpdateError: The base lacks the layer, or has it in another shape.
    """
    values = base.values(unit.name)
    if values is None or values.shape != unit.shape:
        raise UpdateError(f"the base has no weights of layer {unit.name!r} in its shape")
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(values / network_steps, nan=0.0)
    top = 2 ** (unit.bits - 1) - 1
    limit = np.float32(UNIT * top)
    scaled = np.clip(np.rint(steps * np.float32(UNIT)), -limit, limit).astype(np.int32)
    return Base(
        order.to_planes(scaled.ravel(), unit.shape).astype(np.int32),
        order.to_planes((values == 0).ravel(), unit.shape).astype(np.bool_),
    )


def code_part(
    key: str, values: Ints, shape: Sequence[int], coefficients: Sequence[int], base: Base | None
) -> Part:
    """Return codes (n,) as symbols in contexts."""
    bits = int(key[1])
    field = Field(shape, bits, coefficients, *(base or (None, None)))
    whole = order.to_planes(values, shape).astype(np.int32)
    parts, contexts = [], []
    for one in field.passes:
        step = field.step(one)
        some = whole[one.part]
        parts.append(symbols(step, some, bits, key[2].isupper()).ravel().astype(np.uint8))
        contexts.append(step.context.ravel().astype(np.uint16))
        field.learn(one, some)
    return Part(key, np.concatenate(parts), np.concatenate(contexts))


def runs_of(shape: Sequence[int]) -> Iterator[int]:
    """Yield how many symbols each pass over a tensor has."""
    _, rows, columns = order.planes(shape)
    for one in order.passes(tuple(shape)):
        yield len(range(one.row, rows, one.stride)) * len(range(one.column, columns, one.stride))


def differences(unit: Unit, data: NDArray[np.uint8], base: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes of a tensor less the base's, as integers of the width of a value.

    Differences are modulo 2**width, and folded: 0, -1, 1, -2, 2, … become 0, 1, 2, 3, 4, ….
    """
    unsigned = np.dtype(f"<u{ITEM_BYTES[unit.dtype]}")
    apart = data.view(unsigned) - base.view(unsigned)
    negative = apart >> (8 * unsigned.itemsize - 1)
    folded = ((apart << 1) ^ np.negative(negative)).astype(unsigned)
    return np.asarray(folded.view(np.uint8))


def undifferences(
    unit: Unit, folded: NDArray[np.uint8], base: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the bytes of a tensor: ``differences`` backwards."""
    unsigned = np.dtype(f"<u{ITEM_BYTES[unit.dtype]}")
    values = folded.view(unsigned)
    apart = (values >> 1) ^ np.negative(values & 1)
    data = (apart + base.view(unsigned)).astype(unsigned)
    return np.asarray(data.view(np.uint8))


def same(unit: Unit, network: Network, base: Network | None) -> bool:
    """Return whether a base has the same unit."""
    if base is None:
        return False
    if unit.bits:
        layer = base.layers.get(unit.name)
        return (
            layer is not None
            and (layer.shape, layer.bits) == (unit.shape, unit.bits)
            and np.array_equal(base.codes(unit.name), network.codes(unit.name))
        )
    return alike(unit, base) and np.array_equal(
        base.tensors[unit.name].data, network.tensors[unit.name].data
    )


def alike(unit: Unit, base: Network) -> bool:
    """Return whether a base has a tensor of this name, type and shape."""
    tensor = base.tensors.get(unit.name)
    return tensor is not None and (tensor.dtype, tensor.shape) == (unit.dtype, unit.shape)
