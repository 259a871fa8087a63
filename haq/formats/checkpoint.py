"""A quantized network in one small file: integer codes at their bit-width, and what else it needs.

The file is safetensors with six tensors of one dimension. In each lie, one after another, the
values of all modules, in the order in which the forward first calls them::

    codes        U8   weights as two's complement of their layer's bit-width, the first code in the
                      lowest bits of the first byte; every layer begins with a new byte
    scales       F32  steps of the weights, one per output channel or one per layer
    act_scales   F32  steps of the activations, one per quantizer
    multipliers  F32  of BatchNorms that follow a layer, one per channel; empty where all are 1
    biases       F32  of layers, and of those BatchNorms
    floats       F32  parameters and buffers of all else, after those of the layers left in float

and one entry of metadata, "haq", a JSON object with the fields of ``Content``. Zero points are all
0: weights are symmetric and lack the most negative code, activations count from zero where they
cannot be negative and are symmetric where they can.

What is loaded gives the logits of what was saved, bit for bit, on the CPU. That is why saving folds
no BatchNorm into the weights: their products with its multiplier would be rounded once more, and an
activation that is near the border of two levels would now and then fall on the other side. Instead
its four vectors become the two that PyTorch makes of them itself before it sees an image, a
multiplier and a bias. (A BatchNorm that does not follow a layer stays as it is: for an input that
is not contiguous PyTorch computes otherwise.) A network whose last step was
``bn_folding.fold_norms`` has multipliers of 1, and its file is as large as the cost "size" says,
but for the header and the scales of the activations.

What was loaded is made to be run. To train a network further take the weights of its run.
"""

import copy
import io
import json
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save as serialize
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT, Bits, Policy
from haq.errors import CheckpointError, HaqError
from haq.files import write_bytes
from haq.models import MODELS, build, input_shape
from haq.network.graph import Graph, trace
from haq.network.operators import LayerModule
from haq.quantization.bn_folding import Norm, affine, norms_of
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import QuantConv2d, QuantLinear, Rounding, quantize
from haq.quantization.quantizer import BITS, codes, levels, step

FORMAT = "haq-checkpoint/1"
"""What the field "format" of the metadata says."""

TENSORS = {
    "codes": "U8", "scales": "F32", "act_scales": "F32", "multipliers": "F32", "biases": "F32",
    "floats": "F32",
}  # fmt: skip
"""The tensors of a file, and their types."""

HEADER = 2**22
"""The longest header that is read, in bytes: that of some 50 000 layers."""

SAMPLE = 2**22
"""The most values of one input on which a network that has no name is traced."""

_BYTES = {"U8": 1, "F32": 4}
_QUANTIZED = (QuantConv2d, QuantLinear)
_COUNT = "num_batches_tracked"


class Origin(BaseModel):
    """Where a network comes from and what it is fed with.

    Attributes:
        model: A name in ``haq.models.MODELS``, "package.module:factory", or any other word for a
            module of the caller's own.
        shape: Of one input, without the batch.
        classes: Outputs; None where nobody knows.
        width: Width multiplier.
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
    classes: int | None = None
    width: float = 1.0
    data: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    accuracy: dict[str, float] = {}
    versions: dict[str, str] = {}


class Row(NamedTuple):
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
        zero_point: Of every scale.
        layout: Memory format of the weights, which decides in which order sums are taken.
        layers: In order of execution; each with name, shape of the weights, bits of the weights and
            of the activations it reads (together the policy), and how many scales it has.
    """

    format: str = FORMAT
    zero_point: Literal[0] = 0
    layout: Literal["contiguous", "channels_last"]
    layers: tuple[Row, ...] = Field(min_length=1)


def pack(values: Tensor, bits: int) -> bytes:
    """Return codes as ``bits`` bits each, without a gap; the last byte is filled up with zeros.

    Args:
        values: int8, of any shape, each from ``levels(bits, signed=True)``.
        bits: From 2 to 8.

    >>> pack(torch.tensor([-3, 0, 1, 2, 3], dtype=torch.int8), 3).hex()  # 5 + 1<<6 + 2<<9 + 3<<12
    '4534'
    """
    column = values.contiguous().flatten().numpy().view(np.uint8)[:, None]
    digits = np.unpackbits(column, axis=1, count=bits, bitorder="little")  # (values, bits)
    return np.packbits(digits, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> Tensor:
    """Return the codes (count,), int8, that ``pack`` packed.

    Raises:
        ValueError: The data has another length than ``count`` codes take, or does not end with
            zeros, or holds the code that ``levels`` leaves out.
    """
    if len(data) != _packed_size(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are not {len(data)} bytes")
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stream[count * bits :].any():
        raise ValueError("the last byte is not filled up with zeros")
    digits = stream[: count * bits].reshape(count, bits)
    sign = np.repeat(digits[:, -1:], 8 - bits, axis=1)
    filled = np.concatenate([digits, sign], axis=1)  # (count, 8)
    found = np.packbits(filled, axis=1, bitorder="little").view(np.int8)[:, 0]
    lowest = levels(bits, signed=True)[0]
    if count and found.min() < lowest:
        raise ValueError(f"a code is {found.min()}, the lowest of {bits} bits is {lowest}")
    return torch.from_numpy(found)


def _packed_size(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def save(
    path: str | os.PathLike[str], network: fx.GraphModule, policy: Policy, origin: Origin
) -> Content:
    """Write a quantized network to ``path``, which is never seen half-written.

    Args:
        path: Ends in .safetensors; folders that are missing are made, an old file is replaced.
        network: From ``fake_quant.quantize``, fine-tuned or not, in float32; left as it is.
        policy: With which it was quantized.
        origin: Kept as metadata. What it says of the model must be true, or the file cannot be
            loaded.

    Returns:
        The metadata of the file.

    Raises:
        CheckpointError: The network is not in float32, holds NaN, infinity or state that is not
            made of floats, would not give the same logits when loaded, or the file cannot be
            written.
        ValueError: The policy is not that of the network.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}: the name must end in .safetensors")
    network = copy.deepcopy(network).cpu().eval()
    rows = tuple(_rows(network, policy))
    content = Content(**origin.model_dump(), layout=_layout(network), layers=rows)
    merged = _merge_norms(copy.deepcopy(network))
    data = serialize(_tensors(merged), {"haq": content.model_dump_json()})
    _check_logits(data, network, merged, origin.shape)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, data)
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {_reason(error)}") from error
    return content


def _rows(network: fx.GraphModule, policy: Policy) -> Iterator[Row]:
    for name, module in _called(network).items():
        if isinstance(module, LayerModule) and name in policy:
            bits, scales = FLOAT, 0
            if isinstance(module, _QUANTIZED):
                bits, scales = module.weight_bits, module.weight_clip.numel()
            if policy[name].weight != bits:
                raise ValueError(f"layer {name!r} has {bits} bits, not {policy[name].weight}")
            yield Row(name, tuple(module.weight.shape), bits, policy[name].act, scales)


def _called(network: fx.GraphModule) -> dict[str, nn.Module]:
    """Return the modules that the forward calls, in the order of their first calls."""
    names = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    return {name: network.get_submodule(name) for name in names}


def _layout(network: nn.Module) -> Literal["contiguous", "channels_last"]:
    weights = [value for value in network.state_dict().values() if value.dim() == 4]
    last = weights and all(
        # Only the strides tell: a 1x1 kernel is contiguous in both formats.
        w.stride() == torch.empty_like(w, memory_format=torch.channels_last).stride()
        for w in weights
    )
    return "channels_last" if last else "contiguous"


def _merge_norms(network: fx.GraphModule) -> fx.GraphModule:
    """Leave a multiplier and a bias of each BatchNorm that follows a layer, in place."""
    for name in norms_of(network).values():
        norm = network.get_submodule(name)
        assert isinstance(norm, Norm)
        multiplier, offset = affine(norm)
        # PyTorch refuses to train with an eps of 0, which is as well.
        merged = type(norm)(norm.num_features, eps=0.0)
        merged.weight, merged.bias = nn.Parameter(multiplier), nn.Parameter(offset)
        network.set_submodule(name, merged.eval())
    return network


def _shares(network: fx.GraphModule) -> dict[str, list[str]]:
    """Return which names of the state of a network with merged norms lie in which tensor."""
    shares: dict[str, list[str]] = {name: [] for name in TENSORS}
    state = network.state_dict()
    for name, module in _called(network).items():
        if isinstance(module, Rounding):
            shares["act_scales"] += [f"{name}.clip"] if module.bits != FLOAT else []
            state.pop(f"{name}.clip")
        elif isinstance(module, _QUANTIZED):
            shares["codes"].append(f"{name}.weight")
            shares["scales"].append(f"{name}.weight_clip")
        elif _is_merged(module):
            shares["multipliers"].append(f"{name}.weight")
            state.pop(f"{name}.running_mean")
            state.pop(f"{name}.running_var")
        elif isinstance(module, LayerModule):
            shares["floats"].append(f"{name}.weight")
        else:
            continue
        if f"{name}.bias" in state:
            shares["biases"].append(f"{name}.bias")
    placed = {key for share in shares.values() for key in share}
    shares["floats"] += [key for key in state if key not in placed and not key.endswith(_COUNT)]
    return shares


def _is_merged(module: nn.Module) -> bool:
    return isinstance(module, Norm) and module.eps == 0


def _tensors(network: fx.GraphModule) -> dict[str, Tensor]:
    """Return the tensors of the file."""
    state = network.state_dict()
    parts: dict[str, list[Tensor]] = {}
    for tensor, keys in _shares(network).items():
        for key in keys:
            _check_state(key, state[key])
        parts[tensor] = [_stored(network, tensor, key, state[key]) for key in keys]
    empty = {name: torch.empty(0, dtype=_dtype(name)) for name in TENSORS}
    tensors = {name: torch.cat(part) if part else empty[name] for name, part in parts.items()}
    if (tensors["multipliers"] == 1).all():
        tensors["multipliers"] = empty["multipliers"]
    return tensors


def _dtype(tensor: str) -> torch.dtype:
    return torch.uint8 if TENSORS[tensor] == "U8" else torch.float32


def _check_state(key: str, value: Tensor) -> None:
    if value.dtype != torch.float32:
        raise CheckpointError(f"{key} is {value.dtype}; only networks in float32 can be kept")
    if not value.isfinite().all():
        raise CheckpointError(f"{key} has values that are not finite numbers")


def _stored(network: fx.GraphModule, tensor: str, key: str, value: Tensor) -> Tensor:
    module = network.get_submodule(key.rpartition(".")[0])
    if tensor == "act_scales":
        assert isinstance(module, Rounding)
        return step(module.bits, value, module.signed).flatten()
    if isinstance(module, _QUANTIZED) and tensor == "codes":
        found = codes(value, module.weight_bits, _along(module.weight_clip, value))
        return torch.frombuffer(bytearray(pack(found, module.weight_bits)), dtype=torch.uint8)
    if isinstance(module, _QUANTIZED) and tensor == "scales":
        return step(module.weight_bits, value, signed=True).flatten()
    return value.contiguous().flatten()


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.view(-1, *(1,) * (weight.dim() - 1))  # (out or 1, 1, ...)


def _check_logits(
    data: bytes, network: fx.GraphModule, merged: fx.GraphModule, shape: Sequence[int]
) -> None:
    """Read the file again and see that it is the same network."""
    stream = io.BytesIO(data)
    content, spans = _read_header(stream, len(data))
    twin = copy.deepcopy(merged)
    _fill(twin, content.layout, _read_tensors(stream, spans, twin))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            expected = network(images)
        except Exception as error:
            raise CheckpointError(
                f"the network does not run on floats of {_times(shape)}: {_first_line(error)}"
            ) from error
        try:
            torch.testing.assert_close(twin(images), expected, rtol=0, atol=0, equal_nan=True)
        except AssertionError as error:
            raise CheckpointError(
                "the network would not give the same logits when loaded; "
                "bring all its weights to one memory format first"
            ) from error


def about(path: str | os.PathLike[str]) -> Content:
    """Return the metadata of a file that ``save`` wrote.

    Raises:
        CheckpointError: As ``load``, so far as metadata and sizes tell.
    """
    with _opened(Path(path)) as (stream, size):
        return _read_header(stream, size)[0]


def load(path: str | os.PathLike[str], model: nn.Module | str | None = None) -> fx.GraphModule:
    """Return the network in a file that ``save`` wrote: the same logits, bit for bit, on the CPU.

    A file is data: nothing that it names is imported, and no more memory is taken than its tensors
    and the network they belong to need.

    Args:
        path: Of the file.
        model: For a network that is not in ``haq.models.MODELS``: a module of the same kind, which
            is left as it is and whose weights do not matter, or its "package.module:factory".

    Returns:
        The quantized network, in evaluation mode. ``about`` tells how to normalise its images.

    Raises:
        CheckpointError: The file is missing, damaged, of another format or version, or holds
            another network, or ``model`` cannot be had or traced.
    """
    with _opened(Path(path)) as (stream, size):
        content, spans = _read_header(stream, size)
        network = _empty(content, model)
        return _fill(network, content.layout, _read_tensors(stream, spans, network))


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file to read, and put its name before what turns out to be wrong with it."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a folder, or a pipe on which one would wait
            raise CheckpointError(f"cannot read {file}: it is not a file")
        with file.open("rb") as stream:
            try:
                yield stream, status.st_size
            except HaqError as error:
                raise CheckpointError(f"{file}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {_reason(error)}") from error


def _read_header(stream: BinaryIO, size: int) -> tuple[Content, dict[str, tuple[int, int]]]:
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
        begin, end = end, end + _stored_bytes(name, entry)
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
        raise CheckpointError(f"its {what} is not JSON ({_first_line(error)})") from error
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
    missing, unknown = TENSORS.keys() - header.keys(), header.keys() - TENSORS.keys()
    if missing or unknown:
        raise CheckpointError(
            f"its tensors must be {', '.join(TENSORS)}; "
            + (f"{min(missing)} is missing" if missing else f"{min(unknown)[:80]!r} is not one")
        )
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"tensor {name!r} has no dtype, shape and data_offsets")
        if entry["dtype"] != TENSORS[name]:
            raise CheckpointError(
                f"tensor {name!r} is {str(entry['dtype'])[:80]!r}, and must be {TENSORS[name]}"
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


def _stored_bytes(name: str, entry: Mapping[str, Any]) -> int:
    return int(entry["shape"][0]) * _BYTES[TENSORS[name]]


def _empty(content: Content, model: nn.Module | str | None) -> fx.GraphModule:
    """Return the network of a file with merged norms, and whatever values."""
    module, sample = _module(content, model)
    graph = trace(module, sample)
    _check_layers(content.layers, graph)
    policy = {row.name: Bits(row.weight_bits, row.act_bits) for row in content.layers}
    ones = torch.ones(())
    clips = Clips(
        {row.name: {row.weight_bits: ones.expand(row.scales)} for row in content.layers},
        {point.tensor: dict.fromkeys(BITS, ones) for point in graph.points},
    )
    return _merge_norms(quantize(graph, policy, clips))


def _module(content: Content, model: nn.Module | str | None) -> tuple[nn.Module, Tensor]:
    """Return a module of the file's architecture, and an input to trace it with."""
    shape, name = content.shape, content.model if model is None else model
    if isinstance(name, str) and name in MODELS:
        size = shape[-1] if shape else None
        if shape != input_shape(name, size):
            raise CheckpointError(f"{name} does not take inputs of {_times(shape)}")
        # Without memory: whoever wrote the file chose width and classes.
        with torch.device("meta"):
            return build(name, content.classes, content.width, size), torch.zeros(1, *shape)
    if model is None:
        raise CheckpointError(
            f"it holds a network of {content.model[:80]!r}, which is not imported because a file "
            "says so; give haq.load the module, or its package.module:factory, as model="
        )
    if math.prod(shape) > SAMPLE or min(shape, default=0) < 1:
        raise CheckpointError(f"inputs of {_times(shape)} are not taken")
    made = build(model, content.classes) if isinstance(model, str) else copy.deepcopy(model).cpu()
    return made, torch.zeros(1, *shape)


def _check_layers(rows: Sequence[Row], graph: Graph) -> None:
    known = [layer.name for layer in graph.layers]
    given = [row.name for row in rows]
    missing = [name for name in known if name not in given]
    extra = [name[:80] for name in given if name not in known]
    if missing:
        raise CheckpointError(f"layer {missing[0]!r} of the model is not in it")
    if extra:
        raise CheckpointError(f"it has a layer {extra[0]!r}, and the model has not")
    if given != known:
        raise CheckpointError("its layers are not in the model's order")
    for row in rows:
        shape = tuple(graph.traced.get_parameter(f"{row.name}.weight").shape)
        if row.shape != shape:
            raise CheckpointError(
                f"layer {row.name!r} is {_times(row.shape)} in it and {_times(shape)} in the model"
            )
        if row.scales not in ((0,) if row.weight_bits == FLOAT else (1, shape[0])):
            raise CheckpointError(
                f"layer {row.name!r} with {row.weight_bits}-bit weights cannot have "
                f"{row.scales} scales"
            )


def _read_tensors(
    stream: BinaryIO, spans: Mapping[str, tuple[int, int]], network: fx.GraphModule
) -> dict[str, dict[str, Tensor]]:
    """Return the stored values of each tensor, by their names in the network's state."""
    state = network.state_dict()
    parts = {}
    for tensor, keys in _shares(network).items():
        sizes = [_stored_size(network, tensor, key, state[key]) for key in keys]
        begin, end = spans[tensor]
        if tensor == "multipliers" and begin == end:
            parts[tensor] = {key: torch.ones(size) for key, size in zip(keys, sizes, strict=True)}
            continue
        if end - begin != sum(sizes) * _BYTES[TENSORS[tensor]]:
            raise CheckpointError(
                f"tensor {tensor!r} has {(end - begin) // _BYTES[TENSORS[tensor]]} values, "
                f"and the model needs {sum(sizes)}"
            )
        stream.seek(begin)
        data = np.frombuffer(stream.read(end - begin), "<u1" if tensor == "codes" else "<f4")
        values = torch.from_numpy(data.astype(data.dtype.newbyteorder("="), copy=True))
        parts[tensor] = dict(zip(keys, values.split(sizes), strict=True))
    return parts


def _stored_size(network: fx.GraphModule, tensor: str, key: str, value: Tensor) -> int:
    if tensor == "codes":
        bits = network.get_submodule(key.rpartition(".")[0]).weight_bits
        return _packed_size(value.numel(), int(bits))  # type: ignore[arg-type]
    return value.numel()


def _fill(
    network: fx.GraphModule, layout: str, parts: Mapping[str, Mapping[str, Tensor]]
) -> fx.GraphModule:
    """Put stored values into a network, in place."""
    state = {
        key: torch.zeros((), dtype=torch.int64) if key.endswith(_COUNT) else value
        for key, value in network.state_dict().items()
    }
    for name in ("multipliers", "biases", "floats"):
        for key, value in parts[name].items():
            if not value.isfinite().all():
                raise CheckpointError(f"{name} has a value in {key} that is not a finite number")
            state[key] = value.view(state[key].shape)
    for key, scales in parts["act_scales"].items():
        module = network.get_submodule(key.rpartition(".")[0])
        assert isinstance(module, Rounding)
        state[key] = _clips(key, scales, module.bits, module.signed).view(())
    for (key, data), scales in zip(parts["codes"].items(), parts["scales"].values(), strict=True):
        name, shape = key.rpartition(".")[0], state[key].shape
        bits = int(network.get_submodule(name).weight_bits)  # type: ignore[arg-type]
        state[f"{name}.weight_clip"] = _clips(f"{name}.weight", scales, bits, signed=True)
        try:
            found = unpack(data.numpy().tobytes(), bits, shape.numel())
        except ValueError as error:
            raise CheckpointError(f"codes of layer {name!r}: {error}") from error
        weight = found.view(shape).float()
        state[key] = weight * _along(scales, weight)
    network.load_state_dict(state, assign=True)
    if layout == "channels_last":
        network.to(memory_format=torch.channels_last)
    return network


def _clips(key: str, scales: Tensor, bits: int, signed: bool) -> Tensor:
    """Return the clips that have these steps."""
    wrong = scales[~((scales > 0) & scales.isfinite())]
    if len(wrong):
        raise CheckpointError(
            f"a scale of {key} is {wrong[0].item():g}; scales are positive and finite"
        )
    clips = scales * levels(bits, signed)[1]
    if not (clips.isfinite().all() and torch.equal(step(bits, clips, signed), scales)):
        raise CheckpointError(f"a scale of {key} is not the step of any clip")
    return clips


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
