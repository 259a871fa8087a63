"""The header of a checkpoint: its metadata, and where each tensor lies."""

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from haq.allocation.policy import Dynamic
from haq.errors import CheckpointError
from haq.network.inputs import Inputs, InputShape, like_record

FORMAT = "haq-checkpoint/1"
"""What the field "format" of the metadata says."""

TENSORS = {
    "codes": "U8", "scales": "F32", "act_scales": "F32", "multipliers": "F32", "biases": "F32",
    "floats": "F32",
}  # fmt: skip
"""The tensors of every file, and their types."""

OPTIONAL = {"others": "U8", "group_scales": "F16", "books": "F32"}
"""The tensors of files that need them, and their types."""

KINDS = TENSORS | OPTIONAL


HEADER = 2**22
"""The longest header that is read, in bytes: that of some 50 000 layers."""

BYTES = {"U8": 1, "F16": 2, "F32": 4}


class Origin(BaseModel):
    """Where a network comes from and what it is fed with.

    Attributes:
        model: A name in ``haq.models.MODELS``, "package.module:factory", or any other word for a
            module of the caller's own.
        shape: Of one input, without the batch.
        tokens: How many values inputs of tokens (int64) may have at least, from 0 up; None where
            inputs are floats.
        inputs: Where one forward takes several tensors with names: name to shape and tokens.
        classes: Outputs; None where nobody knows.
        width: Width multiplier.
        transforms: What changed the model before it was quantized, in order; see
            ``haq.compression.chain``.
        data: Name of the data set; None where there was none.
        mean: To be subtracted from the pixels in [0, 1], per channel; empty where nobody knows.
        std: What they are divided by then.
        accuracy: What was measured ("final_test_accuracy", …), as shares.
        versions: Of the packages that made the network.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    model: str
    shape: tuple[int, ...]
    tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    inputs: dict[str, InputShape] = {}
    classes: int | None = None
    width: float = 1.0
    transforms: tuple[dict[str, Any], ...] = ()
    data: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    accuracy: dict[str, float] = {}
    versions: dict[str, str] = {}

    def made_up(self, count: int = 1) -> Inputs:
        """Return inputs as the network takes them, made of random numbers."""
        inputs = {name: one._asdict() for name, one in self.inputs.items()}
        return like_record({"shape": self.shape, "tokens": self.tokens, "inputs": inputs}, count)


class LayerRecord(NamedTuple):
    """A layer in the file: 32 bits and no scales where it is float."""

    name: str
    shape: tuple[int, ...]
    weight_bits: int
    act_bits: int
    scales: int


class Content(Origin):
    """All metadata of a file.

    Attributes:
        format: ``FORMAT``.
        zero_point: Of every scale of weights.
        skews: Quantizer of activations to how many of its codes are negative, where its grid is not
            symmetric.
        formats: Layer whose weights are in groups or have a codebook, or that rounds what it reads
            as it runs, to the size of the groups (0 without, ``CODEBOOK`` for a codebook) and how
            it rounds ("" if not), as in ``haq.allocation.policy.Bits``.
        codings: Layer whose codes are not packed whole, to their format in ``haq.formats.sparse``
            and their bytes.
        integers: Whether the network was converted, so that it computes with integers.
        layout: Memory format of the weights, which decides in which order sums are taken.
        layers: In order of execution; each with name, shape of the weights, bits of the weights and
            of the activations it reads (together the policy), and how many scales it has.
    """

    format: str = FORMAT
    zero_point: Literal[0] = 0
    skews: dict[str, int] = {}
    formats: dict[str, tuple[int, Dynamic]] = {}
    codings: dict[str, tuple[str, int]] = {}
    integers: bool = False
    layout: Literal["contiguous", "channels_last"]
    layers: tuple[LayerRecord, ...] = Field(min_length=1)


def read_header(stream: BinaryIO, size: int) -> tuple[Content, dict[str, tuple[int, int]]]:
    """Return the metadata, and where each tensor begins and ends, counted from the file's start."""
    if size < 8:
        raise CheckpointError(f"not a safetensors file: it has {size} bytes")
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > HEADER:
        raise CheckpointError(
            f"not a safetensors file of HAQ: its header is said to have {length} bytes, "
            f"and none has more than {HEADER}"
        )
    if length > size - 8:
        raise CheckpointError(
            f"cut short: its header is said to have {length} bytes, and {size - 8} are there"
        )
    header = _json(stream.read(length), "header")
    content = _content(header.pop("__metadata__", None))
    _check_names(header)
    spans, end = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda item: _begin(*item)):
        begin, end = end, end + _bytes_of(name, entry)
        if entry["data_offsets"] != [begin - 8 - length, end - 8 - length]:
            raise CheckpointError(
                f"tensor {name!r} takes bytes {entry['data_offsets']}; with its shape and behind "
                f"the one before it, it must be {[begin - 8 - length, end - 8 - length]}"
            )
        spans[name] = begin, end
    if end > size:
        raise CheckpointError(f"cut short: it needs {end} bytes, and {size} are there")
    if end < size:
        raise CheckpointError(f"{size - end} bytes follow the last tensor")
    return content, spans


def _json(text: bytes | str, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise CheckpointError(f"{name[:80]!r} stands {count} times in its {what}")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its {what} is not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"its {what} is not a JSON object")
    return value


def _content(metadata: Any) -> Content:
    text = metadata.get("haq") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            'not a checkpoint of HAQ: its metadata has no "haq"; haq export writes one'
        )
    fields = _json(text, "metadata")
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"its format is {str(fields.get('format'))[:80]!r}, and this version of HAQ reads "
            f"{FORMAT!r}; export it again, or install the version that wrote it"
        )
    try:
        return Content.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"its metadata is wrong at {field[:80]!r}: {first['msg']}") from error


def _check_names(header: Mapping[str, Any]) -> None:
    missing, unknown = TENSORS.keys() - header.keys(), header.keys() - KINDS.keys()
    if missing or unknown:
        raise CheckpointError(
            f"its tensors must be {', '.join(TENSORS)}; "
            + (f"{min(missing)} is missing" if missing else f"{min(unknown)[:80]!r} is not one")
        )
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"tensor {name!r} has no dtype, shape and data_offsets")
        if entry["dtype"] != KINDS[name]:
            raise CheckpointError(
                f"tensor {name!r} is {str(entry['dtype'])[:80]!r}, and must be {KINDS[name]}"
            )
        if not _counts(entry["shape"], 1) or not _counts(entry["data_offsets"], 2):
            raise CheckpointError(
                f"tensor {name!r} must have one dimension, a beginning and an end"
            )


def _counts(value: Any, length: int) -> bool:
    """Return whether a value is a list of that many numbers a file can have bytes."""
    numbers = isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
    return numbers and len(value) == length


def _begin(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    return begin, end


def _bytes_of(name: str, entry: Mapping[str, Any]) -> int:
    return int(entry["shape"][0]) * BYTES[KINDS[name]]


def times(shape: Sequence[int]) -> str:
    """Return a shape as people write it: 3x32x32."""
    return "x".join(map(str, shape))


def first_line(error: BaseException) -> str:
    """Return what an error says, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def reason(error: OSError) -> str:
    """Return why the system could not do something."""
    return (error.strerror or str(error)).lower()
