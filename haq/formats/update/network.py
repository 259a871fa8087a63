"""A safetensors file as a packet sees it: its header as it stands, tensors, and layers of codes.

Any safetensors file can be packed. In a checkpoint of HAQ the tensor "codes" is taken apart into
the layers' codes; everything else is bytes of tensors.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import CODEBOOK
from haq.errors import UpdateError
from haq.formats import sparse
from haq.formats.packing import packed_size, unpack

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""The types of safetensors that can be packed, and the bytes of a value."""

HEADER = 2**24
"""The longest header that is read, in bytes."""

MOST_BYTES = 2**33
"""The largest network that is read or decoded, in bytes: what a packet says is not believed."""

FREE_BYTES = 2**26
"""So large may a network be, expanded, whatever the size of what it is read from."""

EXPANSION = 1024
"""Beyond that, so many times what it is read from."""

CHECKPOINT = "haq-checkpoint/"

SCALES = {"scales": "F32", "group_scales": "F16"}
"""The tensors of a checkpoint with the scales of its codes, and their types."""


class Tensor(NamedTuple):
    """A tensor of a file: its type, shape, and little-endian bytes (n,), uint8."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class Layer(NamedTuple):
    """A layer whose codes lie in the tensor "codes" of a checkpoint.

    Attributes:
        name: Of the layer.
        shape: Of its weights.
        bits: Of its codes.
        coding: A format in ``haq.formats.sparse``.
        place: Where they lie in "codes", in bytes.
        scales: The tensor with its scales.
        some: Which of its values they are.
        block: Weights of a row that share a scale; 0 where scales are for as many weights each;
            ``CODEBOOK`` where there are none, and codes are places in a codebook, from half of its
            size below zero up.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    coding: str
    place: slice
    scales: str
    some: slice
    block: int

    @property
    def values(self) -> int:
        """How many codes there are."""
        return math.prod(self.shape)

    def codes(self, data: bytes) -> NDArray[np.int8]:
        """Return its codes from their bytes, in its shape.

        Raises:
            UpdateError: The bytes are not as HAQ writes them.
        """
        try:
            if self.block == CODEBOOK:
                signed = unpack(data, self.bits, self.values, -(2 ** (self.bits - 1)))
                codes = _turned(signed, self.bits)
            elif self.coding == "dense":
                codes = unpack(data, self.bits, self.values, -(2 ** (self.bits - 1)))
            else:
                codes = sparse.decode(self.coding, data, self.bits, self.values)
        except ValueError as error:
            raise UpdateError(f"the codes of layer {self.name!r}: {error}") from None
        return codes.reshape(self.shape)

    def bytes(self, codes: NDArray[np.int8]) -> bytes:
        """Return its codes as they lie in "codes"."""
        turned = _turned(codes, self.bits) if self.block == CODEBOOK else codes
        return sparse.FORMATS[self.coding].write(turned.ravel(), self.bits)

    def steps(self, scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the step of each code, in its shape, from the values of the tensor ``scales``."""
        own = scales[self.some]
        if self.block:
            rows = np.repeat(own.reshape(self.shape[0], -1), self.block, 1)
            return rows[:, : self.shape[1]]
        return np.repeat(own, self.values // len(own)).reshape(self.shape)


@dataclass(frozen=True)
class Network:
    """A file taken apart.

    Attributes:
        header: The text between its length and the data, as bytes.
        tensors: In the order in which their data lies in the file.
    """

    header: bytes
    tensors: Mapping[str, Tensor]

    @cached_property
    def outline(self) -> "Outline":
        """What the header says."""
        return outline(self.header)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The layers with codes, by name; none where this is not a checkpoint of HAQ."""
        return self.outline.layers

    @cached_property
    def id(self) -> str:
        """The SHA-256 of words and then all data by name, as 64 hexadecimal digits.

        Neither the order of the tensors in the file nor the spelling of its header counts.
        """
        digest = hashlib.sha256(self.outline.words)
        for name in sorted(self.tensors):
            digest.update(self.tensors[name].data.tobytes())
        return digest.hexdigest()

    def codes(self, name: str) -> NDArray[np.int8]:
        """Return the codes of a layer, in its shape."""
        layer = self.layers[name]
        return layer.codes(self.tensors["codes"].data[layer.place].tobytes())

    def steps(self, name: str) -> NDArray[np.float32]:
        """Return the step of every code of a layer, in its shape."""
        layer = self.layers[name]
        return layer.steps(scale_values(layer.scales, self.tensors[layer.scales].data))

    def values(self, name: str) -> NDArray[np.float32] | None:
        """Return the weights of a layer as float32, from its codes or from a float tensor.

        None where the network has none under this name, or a codebook there instead of scales.
        """
        if name in self.layers:
            if self.layers[name].block == CODEBOOK:
                return None
            return self.codes(name).astype(np.float32) * self.steps(name)
        for known in (f"{name}.weight", name):
            tensor = self.tensors.get(known)
            if tensor is not None and tensor.dtype == "F32":
                return floats(tensor.data).reshape(tensor.shape)
        return None

    def file(self) -> bytes:
        """Return the bytes of the file."""
        data = (tensor.data.tobytes() for tensor in self.tensors.values())
        return b"".join([struct.pack("<Q", len(self.header)), self.header, *data])


class Outline(NamedTuple):
    """What a header says, without the data.

    Attributes:
        tensors: Name to type, shape, and how many bytes; in the order of the data.
        metadata: Key to text.
        layers: As ``Network.layers``.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...], int]]
    metadata: Mapping[str, str]
    layers: Mapping[str, Layer]

    @property
    def words(self) -> bytes:
        """Metadata, types and shapes as JSON, sorted by name: whatever the header looks like."""
        tensors = {name: [dtype, shape] for name, (dtype, shape, _) in self.tensors.items()}
        fields = {"metadata": dict(self.metadata), "tensors": tensors}
        return json.dumps(fields, sort_keys=True).encode()

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(size for _, _, size in self.tensors.values())

    @property
    def expanded(self) -> int:
        """Bytes of all tensors, and of the codes of layers that are not written whole."""
        return self.bytes + sum(
            layer.values for layer in self.layers.values() if layer.coding != "dense"
        )


def read(path: Path) -> Network:
    """Return the network in a safetensors file.

    Raises:
        UpdateError: The file is missing, damaged, or of a kind that cannot be packed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UpdateError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        return parse(data)
    except UpdateError as error:
        raise UpdateError(f"{path}: {error}") from None


def parse(data: bytes) -> Network:
    """Return the network in the bytes of a safetensors file.

    Raises:
        UpdateError: As ``read``.
    """
    if len(data) < 8:
        raise UpdateError(f"not a safetensors file: it has {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(HEADER, len(data) - 8):
        raise UpdateError(
            f"not a safetensors file: its header is said to have {length} bytes, and "
            f"{len(data) - 8} are there; give a file that ends in .safetensors"
        )
    header = data[8 : 8 + length]
    known = outline(header)
    if known.bytes != len(data) - 8 - length:
        raise UpdateError(
            f"its tensors need {known.bytes} bytes, and {len(data) - 8 - length} are there"
        )
    tensors, at = {}, 8 + length
    for name, (dtype, shape, size) in known.tensors.items():
        tensors[name] = Tensor(dtype, shape, np.frombuffer(data, np.uint8, size, at))
        at += size
    return Network(header, tensors)


def outline(header: bytes) -> Outline:
    """Return what the header of a safetensors file says.

    Raises:
        UpdateError: It is not one, or has types or layers that cannot be packed.
    """
    try:
        fields = json.loads(header.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UpdateError(f"its header is not JSON ({str(error)[:80]})") from None
    if not isinstance(fields, dict):
        raise UpdateError("its header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UpdateError("its metadata are not texts")
    tensors = _tensors(fields)
    return Outline(tensors, metadata, _layers(tensors, metadata))


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise UpdateError("a name stands twice in its header")
    return dict(pairs)


def _tensors(fields: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    rows = []
    for name, entry in fields.items():
        wrong = UpdateError(f"tensor {name[:80]!r} has no type, shape and place")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise wrong
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not _whole(shape) or not _whole(place) or len(place) != 2:
            raise wrong
        if dtype not in ITEM_BYTES:
            raise UpdateError(
                f"tensor {name[:80]!r} is {str(dtype)[:20]!r}; only {', '.join(ITEM_BYTES)} are "
                "packed"
            )
        rows.append((place[0], place[1], name, dtype, tuple(shape)))
    tensors, at = {}, 0
    for begin, end, name, dtype, shape in sorted(rows):
        size = math.prod(shape) * ITEM_BYTES[dtype]
        if begin != at or end != at + size or end > MOST_BYTES:
            raise UpdateError(
                f"tensor {name[:80]!r} takes bytes {begin} to {end}; with its shape and behind the "
                f"one before it, it must be {at} to {at + size}, and at most {MOST_BYTES}"
            )
        tensors[name] = (dtype, shape, size)
        at = end
    return tensors


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _layers(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> dict[str, Layer]:
    """Return the layers with codes; none where codes and scales lie otherwise than they say."""
    try:
        fields = json.loads(metadata.get("haq", "{}"))
        if not str(fields.get("format")).startswith(CHECKPOINT):
            return {}
        layers, ends = _laid_out(
            fields["layers"], dict(fields.get("codings", {})), dict(fields.get("formats", {}))
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return {}
    for name, (dtype, end) in ends.items():
        if tensors.get(name, (dtype, (0,)))[:2] != (dtype, (end,)):
            return {}
    others = sum(layer.values for layer in layers.values() if layer.coding != "dense")
    return layers if others <= FREE_BYTES + EXPANSION * ends["codes"][1] else {}


def _laid_out(
    rows: Sequence[Sequence[Any]], codings: Mapping[str, Any], formats: Mapping[str, Any]
) -> tuple[dict[str, Layer], dict[str, tuple[str, int]]]:
    """Return layers one behind the other, and the type and the length of tensors they lie in.

    Raises:
        ValueError: A layer is none.
    """
    layers: dict[str, Layer] = {}
    ends = {"codes": ("U8", 0)} | {name: (dtype, 0) for name, dtype in SCALES.items()}

    def following(tensor: str, count: int) -> slice:
        dtype, begin = ends[tensor]
        ends[tensor] = dtype, begin + count
        return slice(begin, begin + count)

    for name, shape, bits, _, scales, *_ in rows:
        if bits > 8:
            continue
        count, block = math.prod(shape), formats.get(name, (0, ""))[0]
        coding, size = codings.get(name, ("dense", packed_size(count, bits)))
        if name in layers or not _is_layer(shape, bits, scales, block):
            raise ValueError(name)
        if coding not in sparse.FORMATS or not 0 <= size <= packed_size(count, 8):
            raise ValueError(coding)
        if block == CODEBOOK and coding != "dense":
            raise ValueError(coding)
        tensor = "group_scales" if block > 0 else "scales"
        layers[str(name)] = Layer(
            str(name), tuple(shape), bits, coding, following("codes", size), tensor,
            following(tensor, scales), block,
        )  # fmt: skip
    return layers, ends


def _is_layer(shape: Sequence[int], bits: int, scales: int, block: int) -> bool:
    if not all(type(n) is int for n in (*shape, bits, scales, block)):
        return False
    count = math.prod(shape)
    if min(shape, default=0) < 1 or bits < 2 or count > MOST_BYTES:
        return False
    if block == CODEBOOK:
        return scales == 0
    if scales < 1 or block < 0:
        return False
    if block:
        return len(shape) == 2 and scales == shape[0] * -(-shape[1] // block)
    return count % scales == 0


def _turned(codes: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Return codes with their highest bit flipped: signed ones as places in a codebook, and back.

    >>> _turned(np.array([0, 1, -2, -1], np.int8), 2)
    array([-2, -1,  0,  1], dtype=int8)
    """
    half = 2 ** (bits - 1)
    wide = codes.astype(np.int16)
    turned: NDArray[np.int8] = np.where(wide < 0, wide + half, wide - half).astype(np.int8)
    return turned


def scale_values(tensor: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the numbers in the bytes of a tensor of ``SCALES``."""
    kind = "<f2" if SCALES[tensor] == "F16" else "<f4"
    return np.frombuffer(data.tobytes(), kind).astype(np.float32)


def floats(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float32 numbers in little-endian bytes."""
    return np.frombuffer(data.tobytes(), "<f4").astype(np.float32)
