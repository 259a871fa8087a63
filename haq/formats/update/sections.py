"""Sections: some units of a network as bytes, and back.

A section is three little-endian 32-bit numbers (lanes of the coder, words, stashed bytes), the
lanes' states (32 bits each), the words (16 bits each), then the bytes that are sent as they are.
The last ones of those, as many as are stashed, lie in the lanes' first states instead.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import CODEBOOK
from haq.errors import UpdateError
from haq.formats.coder import rans, tables
from haq.formats.update import order
from haq.formats.update.contexts import Ints
from haq.formats.update.contexts import codes as codes_of
from haq.formats.update.field import Field
from haq.formats.update.manifest import Manifest
from haq.formats.update.network import SCALES, Layer, Network, floats, scale_values
from haq.formats.update.options import Coded, Lossy
from haq.formats.update.plan import Tables
from haq.formats.update.units import (
    LOSSY,
    Base,
    Unit,
    alike,
    keys_of,
    predicted,
    runs_of,
    undifferences,
)

FIXED = struct.Struct("<III")

MOST_LANES = 4096

SECTION = 2**20
"""A section ends with the unit with which it has so many values: what reading one costs."""

PER_LANE = 2048
"""Symbols of a lane at least, where its first state has nothing else to send."""


def cut(member: Sequence[Coded]) -> list[Sequence[Coded]]:
    """Return the units of a network by sections; a section of its own where there is none."""
    sections: list[list[Coded]] = [[]]
    for coded in member:
        if sum(one.unit.values for one in sections[-1]) >= SECTION:
            sections.append([])
        sections[-1].append(coded)
    return list(sections)


def encode(section: Sequence[Coded], sets: Mapping[str, Tables]) -> bytes:
    """Return the bytes of a section."""
    numbers: dict[str, int] = {}
    shares: list[NDArray[np.int64]] = []
    for key, known in sets.items():
        numbers[key] = len(shares)
        shares += [tables.frequencies(row) for row in known.levels]
    runs: list[rans.Run] = []
    raw: list[bytes] = []
    late = 0  # bytes sent as they are that no code waits for
    for coded in section:
        for part in coded.parts:
            if part.key not in sets:
                raw.append(part.symbols.tobytes())
                late += len(part.symbols) if coded.unit.name not in SCALES else 0
                continue
            table = sets[part.key].context[part.contexts].astype(np.int64) + numbers[part.key]
            lengths = list(runs_of(coded.unit.shape)) if part.key[0] == "c" else [len(table)]
            at = np.cumsum(lengths)[:-1]
            runs += zip(np.split(part.symbols, at), np.split(table, at), strict=True)
    whole = b"".join(raw)
    count = sum(len(symbols) for symbols, _ in runs)
    lanes = min(max(late // 2, count // PER_LANE, 1), max(count // 64, 1), MOST_LANES)
    lanes = lanes if count else 0
    stashed = min(2 * lanes, late)
    rest, stash = whole[: len(whole) - stashed], whole[len(whole) - stashed :]
    states, words = rans.encode(runs, shares, lanes, stash)
    fixed = FIXED.pack(lanes, len(words), stashed)
    return fixed + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + rest


class Reader:
    """Decodes the sections of one member, in order.

    Args:
        manifest: Of the packet.
        base: The network it is predicted from; None where it needs none.
    """

    def __init__(self, manifest: Manifest, base: Network | None) -> None:
        self.sets, self.near, self.base = manifest.sets, manifest.coefficients, base
        self.entries: dict[str, NDArray[np.uint32]] = {}

    def decode(
        self, data: bytes, asked: Sequence[tuple[Unit, str, Lossy | None]], steps: "Steps"
    ) -> dict[Unit, NDArray[np.generic]]:
        """Return the values of the units of a section: bytes of tensors, or codes (n,).

        Args:
            data: The section.
            asked: Its units, each with its mode and rounding.
            steps: Gives the step of every code of a layer, from the scales of the network.

        Raises:
            UpdateError: The section is damaged, or does not fit the base.
        """
        block = _Block(data)
        parts: dict[Unit, list[NDArray[np.uint8] | slice]] = {}
        result: dict[Unit, NDArray[np.generic]] = {}
        for unit, mode, lossy in asked:
            if mode == "s":
                result[unit] = self._skipped(unit)
            elif unit.bits or mode in LOSSY:
                result[unit] = self._codes(block.coder, unit, mode, lossy, steps)
            else:
                parts[unit] = self._bytes(block, unit, mode)
            if unit.name in SCALES and not unit.bits:
                if unit in parts:
                    result[unit] = self._tensor(block, unit, mode, parts.pop(unit))
                steps.add(unit, result[unit].view(np.uint8))
        block.end()
        modes = {unit: mode for unit, mode, _ in asked}
        for unit, planes in parts.items():
            result[unit] = self._tensor(block, unit, modes[unit], planes)
        return result

    def _skipped(self, unit: Unit) -> NDArray[np.generic]:
        assert self.base is not None
        if unit.bits:
            layer = self.base.layers.get(unit.name)
            if layer is None or (layer.shape, layer.bits) != (unit.shape, unit.bits):
                raise UpdateError(f"the base has no layer {unit.name!r} of these bits and shape")
            return self.base.codes(unit.name).ravel().astype(np.int32)
        self._check(unit)
        return self.base.tensors[unit.name].data

    def _check(self, unit: Unit) -> None:
        if self.base is None or not alike(unit, self.base):
            raise UpdateError(f"the base has no tensor {unit.name!r} of this type and shape")

    def _codes(
        self, coder: rans.Decoder, unit: Unit, mode: str, lossy: Lossy | None, steps: "Steps"
    ) -> NDArray[np.generic]:
        (key,) = keys_of(unit, mode, lossy.bits if lossy else 0)
        base = None
        if mode in "vV":
            assert self.base is not None
            base = predicted(steps.of(unit.name), unit, self.base)
        z = self._field(coder, key, unit, base)
        if lossy is None:
            return z
        weights = z.astype(np.float32) * lossy.step
        if mode in "lL":
            self._check(unit)
            assert self.base is not None
            weights = floats(self.base.tensors[unit.name].data) + weights
        return weights.astype("<f4").view(np.uint8)

    def _field(self, coder: rans.Decoder, key: str, unit: Unit, base: Base | None) -> Ints:
        known, entries = self._set(key)
        near = self.near.get((unit.shape[2:], key[2].lower()), ())
        bits = int(key[1])
        field = Field(unit.shape, bits, near, *(base or (None, None)))
        whole = np.zeros(order.planes(unit.shape), np.int32)
        for one in field.passes:
            step = field.step(one)
            table = known.context[step.context.ravel()]
            values = coder.run(table, entries).astype(np.int32).reshape(step.context.shape)
            z = codes_of(step, values, bits, key[2].isupper())
            field.learn(one, z)
            whole[one.part] = z
        return order.from_planes(whole).astype(np.int32)

    def _bytes(self, block: "_Block", unit: Unit, mode: str) -> list[NDArray[np.uint8] | slice]:
        planes: list[NDArray[np.uint8] | slice] = []
        for key in keys_of(unit, mode):
            if key in self.sets:
                known, entries = self._set(key)
                table = np.broadcast_to(known.context, unit.values)
                planes.append(block.coder.run(table, entries))
            else:
                planes.append(block.take(unit.values))
        return planes

    def _tensor(
        self, block: "_Block", unit: Unit, mode: str, planes: Sequence[NDArray[np.uint8] | slice]
    ) -> NDArray[np.generic]:
        columns = [block.read(p) if isinstance(p, slice) else p for p in planes]
        data = np.ascontiguousarray(np.stack(columns, 1)).ravel()
        if mode == "d":
            return data
        self._check(unit)
        assert self.base is not None
        base = np.frombuffer(self.base.tensors[unit.name].data.tobytes(), np.uint8)
        return undifferences(unit, data, base)

    def _set(self, key: str) -> tuple[Tables, NDArray[np.uint32]]:
        known = self.sets.get(key)
        if known is None:
            raise UpdateError(f"the packet has no tables {key!r}, and codes that need them")
        if key not in self.entries:
            self.entries[key] = tables.expanded([tables.frequencies(row) for row in known.levels])
        return known, self.entries[key]


class Steps:
    """The step of every code of the layers of a network that is being decoded."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = layers
        self.scales: dict[str, NDArray[np.float32]] = {}

    def add(self, unit: Unit, data: NDArray[np.uint8]) -> None:
        """Take in the bytes of a tensor with scales."""
        if unit.dtype == SCALES[unit.name]:
            self.scales[unit.name] = scale_values(unit.name, data)

    def of(self, name: str) -> NDArray[np.float32]:
        """Return the steps of a layer, in its shape."""
        layer = self.layers[name]
        if layer.block == CODEBOOK:
            raise UpdateError(f"layer {name!r} has a codebook, whose places nothing predicts")
        return layer.steps(self.scales[layer.scales])


class _Block:
    """The bytes of a section, taken apart."""

    def __init__(self, data: bytes) -> None:
        if len(data) < FIXED.size:
            raise UpdateError(f"a section of {len(data)} bytes is too short")
        lanes, words, self.stashed = FIXED.unpack(data[: FIXED.size])
        end = FIXED.size + 4 * lanes + 2 * words
        if lanes > MOST_LANES or end > len(data) or self.stashed > 2 * lanes:
            raise UpdateError("a section is shorter than its coder needs")
        states = np.frombuffer(data, "<u4", lanes, FIXED.size).astype(np.uint32)
        stream = np.frombuffer(data, "<u2", words, FIXED.size + 4 * lanes).astype(np.uint16)
        self.coder = rans.Decoder(states, stream)
        self.raw, self.taken, self.ended = data[end:], 0, False

    def take(self, count: int) -> slice:
        self.taken += count
        return slice(self.taken - count, self.taken)

    def read(self, place: slice) -> NDArray[np.uint8]:
        if place.stop > len(self.raw):
            raise UpdateError("a section ends before its last bytes")
        return np.frombuffer(self.raw, np.uint8)[place]

    def end(self) -> None:
        stash = self.coder.end()
        if any(stash[self.stashed :]):
            raise UpdateError("a lane of the coder does not end where encoders begin")
        self.raw += stash[: self.stashed]
        if self.taken != len(self.raw):
            raise UpdateError(
                f"a section has {len(self.raw)} bytes as they are, and its tensors {self.taken}"
            )
