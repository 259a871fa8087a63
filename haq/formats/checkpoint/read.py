"""From a checkpoint to the network that was saved."""

import copy
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import BLOCKS, CODEBOOK, FLOAT, Bits
from haq.compression.chain import replayed
from haq.errors import CheckpointError, HaqError
from haq.formats import sparse
from haq.formats.checkpoint.header import (
    BYTES,
    KINDS,
    Content,
    LayerRecord,
    read_header,
    reason,
    times,
)
from haq.formats.checkpoint.state import COUNT, merge_norms, shares
from haq.formats.packing import packed_size, unpack
from haq.models import MODELS, build, input_shape
from haq.network.constants import constants, count_broken
from haq.network.graph import Graph, trace
from haq.network.inputs import Inputs, blank_input
from haq.network.modules import along_weight
from haq.quantization.calibration import Clips
from haq.quantization.codebook import Book, Booked
from haq.quantization.fake_quant import Rounding, quantize
from haq.quantization.formats import Grouped
from haq.quantization.groups import along_columns, ends
from haq.quantization.integer_forward import compute_exactly
from haq.quantization.quantizer import BITS, levels, step
from haq.training.numerics import in_channels_last

SAMPLE = 2**22
"""The most values of one input on which a network that has no name is traced."""


def about(path: str | os.PathLike[str]) -> Content:
    """Return the metadata of a file that ``save`` wrote.

    Raises:
        CheckpointError: As ``load``, so far as metadata and sizes tell.
    """
    with _opened(Path(path)) as (stream, size):
        return read_header(stream, size)[0]


def load(path: str | os.PathLike[str], model: nn.Module | str | None = None) -> fx.GraphModule:
    """Return the network in a file that ``save`` wrote: the same logits, bit for bit, on the CPU.

    A file is data: nothing that it names is imported, and no more memory is taken than its tensors
    and the network they belong to need.

    Args:
        path: Of the file.
        model: For a network that is not in ``haq.models.MODELS``: a module of the same kind, which
            is left as it is and whose weights do not matter, or its name, such as "hf:DIR" or
            "package.module:factory".

    Returns:
        The quantized network, in evaluation mode. ``about`` tells how to normalise its images.

    Raises:
        CheckpointError: The file is missing, damaged, of another format or version, or holds
            another network, or ``model`` cannot be had or traced.
    """
    with _opened(Path(path)) as (stream, size):
        content, spans = read_header(stream, size)
        network = _empty(content, model)
        network = fill(network, content, read_tensors(stream, spans, network, content))
        if content.integers:
            compute_exactly(network)
        return network


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
        raise CheckpointError(f"cannot read {file}: {reason(error)}") from error


def _empty(content: Content, model: nn.Module | str | None) -> fx.GraphModule:
    """Return the network of a file with merged norms, and whatever values."""
    module, sample = _module(content, model)
    graph = trace(replayed(module, sample, content.transforms), sample)
    _check_layers(content, graph)
    policy = {
        row.name: Bits(row.weight_bits, row.act_bits, *content.formats.get(row.name, ()))
        for row in content.layers
    }
    ones = torch.ones(())
    clips = Clips(
        {row.name: {row.weight_bits: ones.expand(row.scales)} for row in content.layers},
        {point.tensor: dict.fromkeys(BITS, ones) for point in graph.points},
    )
    for row in content.layers:
        block = policy[row.name].block
        if block == CODEBOOK:
            values = torch.zeros(2**row.weight_bits)
            labels = torch.zeros(row.shape, dtype=torch.uint8)
            clips.books[row.name, row.weight_bits] = Book(values, labels)
        elif block:
            key = row.name, row.weight_bits, block
            clips.scales[key] = torch.ones(row.shape[0], row.scales // row.shape[0])
    network = quantize(graph, policy, clips)
    _skew(network, content.skews)
    return merge_norms(network)


def _skew(network: fx.GraphModule, skews: Mapping[str, int]) -> None:
    """Give the quantizers that a file names their negative codes."""
    quantizers = {
        name: module for name, module in network.named_modules()
        if isinstance(module, Rounding) and module.bits != FLOAT
    }  # fmt: skip
    for name, skew in skews.items():
        if name not in quantizers:
            raise CheckpointError(f"it has a quantizer {name[:80]!r}, and the model has not")
        bits = quantizers[name].bits
        if not 0 <= skew <= 2**bits - 2:
            raise CheckpointError(
                f"quantizer {name!r} cannot have {skew} negative codes of {bits} bits"
            )
        quantizers[name].skew = skew


def _module(content: Content, model: nn.Module | str | None) -> tuple[nn.Module, Inputs]:
    """Return a module of the file's architecture, and an input to trace it with."""
    shape, name = content.shape, content.model if model is None else model
    if isinstance(name, str) and name in MODELS:
        size = shape[-1] if shape else None
        if shape != input_shape(name, size):
            raise CheckpointError(f"{name} does not take inputs of {times(shape)}")
        # Without memory: whoever wrote the file chose width and classes.
        with torch.device("meta"):
            return build(name, content.classes, content.width, size), torch.zeros(1, *shape)
    if model is None:
        raise CheckpointError(
            f"it holds a network of {content.model[:80]!r}, which is not imported because a file "
            "says so; give haq.load the module, or its name, as model="
        )
    for one in (shape, *(kind.shape for kind in content.inputs.values())):
        # One of several may be a number for each row, such as a length.
        if math.prod(one) > SAMPLE or min(one, default=len(content.inputs)) < 1:
            raise CheckpointError(f"inputs of {times(one)} are not taken")
    size = shape[-1] if len(shape) == 3 else None
    if isinstance(model, str):
        module = build(model, content.classes, size=size)
    else:
        module = copy.deepcopy(model).cpu()
    if content.inputs:
        return module, content.made_up()
    return module, blank_input(shape, content.tokens)


def _check_layers(content: Content, graph: Graph) -> None:
    rows = content.layers
    known = [layer.name for layer in graph.layers]
    given = [row.name for row in rows]
    missing = [name for name in known if name not in given]
    extra = [name[:80] for name in given if name not in known]
    if missing:
        raise CheckpointError(f"layer {missing[0]!r} of the model is not in it")
    if extra:
        raise CheckpointError(f"it has a layer {extra[0]!r}, and the model has not")
    strange = [name[:80] for name in content.formats if name not in known]
    if strange:
        raise CheckpointError(f"it has a format for layer {strange[0]!r}, and the model has not")
    if given != known:
        raise CheckpointError("its layers are not in the model's order")
    for row, layer in zip(rows, graph.layers, strict=True):
        shape = tuple(graph.traced.get_parameter(f"{row.name}.weight").shape)
        if row.shape != shape:
            raise CheckpointError(
                f"layer {row.name!r} is {times(row.shape)} in it and {times(shape)} in the model"
            )
        block = content.formats.get(row.name, (0, ""))[0]
        _check_block(row, block)
        if row.scales not in _scales_of(row, block, layer.scales):
            raise CheckpointError(
                f"layer {row.name!r} with {row.weight_bits}-bit weights cannot have "
                f"{row.scales} scales"
            )


def _check_block(row: LayerRecord, block: int) -> None:
    if block not in (CODEBOOK, 0, *BLOCKS):
        raise CheckpointError(f"layer {row.name!r} cannot have groups of {block} weights")
    if block == CODEBOOK and row.weight_bits not in BITS:
        raise CheckpointError(
            f"layer {row.name!r} cannot have a codebook of {row.weight_bits} bits"
        )


def _scales_of(row: LayerRecord, block: int, channels: int) -> tuple[int, ...]:
    """Return how many scales a layer may have."""
    if row.weight_bits == FLOAT or block == CODEBOOK:
        return (0,)
    return (row.shape[0] * -(-row.shape[-1] // block),) if block else (1, channels)


def read_tensors(
    stream: BinaryIO,
    spans: Mapping[str, tuple[int, int]],
    network: fx.GraphModule,
    content: Content,
) -> dict[str, dict[str, Tensor]]:
    """Return the stored values of each tensor, by their names in the network's state."""
    state = network.state_dict()
    parts = {}
    for tensor, keys in shares(network).items():
        sizes = [_stored_size(network, tensor, key, state[key], content) for key in keys]
        begin, end = spans.get(tensor, (0, 0))
        if tensor == "multipliers" and begin == end:
            parts[tensor] = {key: torch.ones(size) for key, size in zip(keys, sizes, strict=True)}
            continue
        if end - begin != sum(sizes) * BYTES[KINDS[tensor]]:
            raise CheckpointError(
                f"tensor {tensor!r} has {(end - begin) // BYTES[KINDS[tensor]]} values, "
                f"and the model needs {sum(sizes)}"
            )
        stream.seek(begin)
        data = np.frombuffer(stream.read(end - begin), _TYPES[KINDS[tensor]])
        values = torch.from_numpy(data.astype(data.dtype.newbyteorder("="), copy=True))
        parts[tensor] = dict(zip(keys, values.split(sizes), strict=True))
    return parts


_TYPES = {"U8": "<u1", "F16": "<f2", "F32": "<f4"}


def _stored_size(
    network: fx.GraphModule, tensor: str, key: str, value: Tensor, content: Content
) -> int:
    if tensor == "codes":
        name = key.rpartition(".")[0]
        if name in content.codings:
            size = content.codings[name][1]
            if not 0 <= size <= packed_size(value.numel(), 8):
                raise CheckpointError(f"codes of layer {name!r} cannot have {size} bytes")
            return size
        bits = network.get_submodule(name).weight_bits
        return packed_size(value.numel(), int(bits))  # type: ignore[arg-type]
    return value.nbytes if tensor == "others" else value.numel()


def fill(
    network: fx.GraphModule, content: Content, parts: Mapping[str, Mapping[str, Tensor]]
) -> fx.GraphModule:
    """Put stored values into a network, in place."""
    state = {
        key: torch.zeros((), dtype=torch.int64) if key.endswith(COUNT) else value
        for key, value in network.state_dict().items()
    }
    constant = constants(network)
    for name in ("multipliers", "biases", "floats"):
        for key, value in parts[name].items():
            if count_broken(key, value, constant):
                raise CheckpointError(f"{name} has a value in {key} that is not a finite number")
            state[key] = value.view(state[key].shape)
    for key, value in parts["others"].items():
        state[key] = _buffer(key, value, state[key])
    for key, scales in parts["act_scales"].items():
        module = network.get_submodule(key.rpartition(".")[0])
        assert isinstance(module, Rounding)
        state[key] = _clips(key, scales, module.bits, module.signed, module.skew).view(())
    for key, scales in parts["group_scales"].items():
        _fill_groups(network, state, key, parts["codes"], scales)
    for key, values in parts["books"].items():
        _fill_book(network, state, key, parts["codes"], values)
    _fill_layers(network, content, state, parts)
    network.load_state_dict(state, assign=True)
    if content.layout == "channels_last":
        in_channels_last(network)
    return network


def _fill_layers(
    network: fx.GraphModule,
    content: Content,
    state: dict[str, Tensor],
    parts: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Put codes and scales of layers with neither groups nor codebooks into a network's state."""
    others = {key.removesuffix("_scale") for key in parts["group_scales"]}
    others |= {key.removesuffix("book") + "labels" for key in parts["books"]}
    plain = {key: data for key, data in parts["codes"].items() if key not in others}
    for (key, data), scales in zip(plain.items(), parts["scales"].values(), strict=True):
        name, shape = key.rpartition(".")[0], state[key].shape
        bits = int(network.get_submodule(name).weight_bits)  # type: ignore[arg-type]
        state[f"{name}.weight_clip"] = _clips(f"{name}.weight", scales, bits, signed=True)
        try:
            coding, _ = content.codings.get(name, ("dense", 0))
            whole = sparse.decode(coding, data.numpy().tobytes(), bits, shape.numel())
            weight = torch.from_numpy(whole).view(shape).float()
        except ValueError as error:
            raise CheckpointError(f"codes of layer {name!r}: {error}") from error
        state[key] = weight * along_weight(scales, network.get_submodule(name))


def _fill_groups(
    network: fx.GraphModule,
    state: dict[str, Tensor],
    key: str,
    stored: Mapping[str, Tensor],
    scales: Tensor,
) -> None:
    """Put codes and scales of a layer with weights in groups into a network's state."""
    name = key.removesuffix(".weight_scale")
    module = network.get_submodule(name)
    assert isinstance(module, Grouped)
    shape, bits = state[f"{name}.weight"].shape, module.weight_bits
    wide = scales.float()
    if not (wide.isfinite().all() and (wide != 0).all()):
        raise CheckpointError(f"a scale of {name}.weight is not a finite number other than 0")
    state[key] = wide.view(state[key].shape)
    try:
        data = stored[f"{name}.weight"].numpy().tobytes()
        whole = torch.from_numpy(unpack(data, bits, shape.numel(), lowest=ends(bits)[0]))
    except ValueError as error:
        raise CheckpointError(f"codes of layer {name!r}: {error}") from error
    scale = along_columns(state[key], module.block, shape[-1])
    state[f"{name}.weight"] = whole.view(shape).float() * scale


def _fill_book(
    network: fx.GraphModule,
    state: dict[str, Tensor],
    key: str,
    stored: Mapping[str, Tensor],
    values: Tensor,
) -> None:
    """Put the values and the labels of a layer with a codebook into a network's state."""
    name = key.removesuffix(".book")
    module = network.get_submodule(name)
    assert isinstance(module, Booked)
    if not values.isfinite().all():
        raise CheckpointError(f"books has a value in {key} that is not a finite number")
    state[key] = values
    shape, bits = module.labels.shape, module.weight_bits
    try:
        data = stored[f"{name}.labels"].numpy().tobytes()
        signed = torch.from_numpy(unpack(data, bits, shape.numel(), lowest=-(2**bits)))
    except ValueError as error:
        raise CheckpointError(f"codes of layer {name!r}: {error}") from error
    state[f"{name}.labels"] = (signed.view(torch.uint8) & (2**bits - 1)).view(shape)


def _buffer(key: str, data: Tensor, like: Tensor) -> Tensor:
    """Return the buffer that has these bytes, in the type and shape of the model's own."""
    if like.dtype == torch.bool and (data > 1).any():
        raise CheckpointError(f"others has a value in {key} that is neither true nor false")
    value = data.clone().view(like.dtype).view(like.shape)
    if value.isnan().any():
        raise CheckpointError(f"others has a value in {key} that is not a finite number")
    return value


def _clips(key: str, scales: Tensor, bits: int, signed: bool, skew: int | None = None) -> Tensor:
    """Return the clips that have these steps."""
    wrong = scales[~((scales > 0) & scales.isfinite())]
    if len(wrong):
        raise CheckpointError(
            f"a scale of {key} is {wrong[0].item():g}; scales are positive and finite"
        )
    clips = scales * levels(bits, signed, skew)[1]
    if not (clips.isfinite().all() and torch.equal(step(bits, clips, signed, skew), scales)):
        raise CheckpointError(f"a scale of {key} is not the step of any clip")
    return clips
