"""From a quantized network to its checkpoint."""

import copy
import dataclasses
import io
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialize
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from haq.allocation.policy import FLOAT, Policy
from haq.compression.chain import sparse_layers
from haq.errors import CheckpointError
from haq.files import write_bytes
from haq.formats import sparse
from haq.formats.checkpoint.header import (
    TENSORS,
    Content,
    LayerRecord,
    Origin,
    first_line,
    read_header,
    reason,
    times,
)
from haq.formats.checkpoint.read import fill, read_tensors
from haq.formats.checkpoint.state import (
    called,
    dtype,
    formats,
    merge_norms,
    shares,
    skews,
)
from haq.formats.packing import pack
from haq.formats.stand_in import stand_in
from haq.network.constants import constants, count_broken
from haq.network.graph import Graph
from haq.network.inputs import InputShape, call
from haq.network.modules import LayerModule, along_weight
from haq.quantization.codebook import Booked
from haq.quantization.fake_quant import Quantized, Rounding
from haq.quantization.formats import Grouped
from haq.quantization.groups import group_codes
from haq.quantization.integer_forward import is_exact
from haq.quantization.quantizer import codes, step


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
        CheckpointError: The network's parameters are not in float32, it holds NaN or infinity,
            would not give the same results when loaded, or the file cannot be written.
        ValueError: The policy is not that of the network.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}: the name must end in .safetensors")
    content, data = encode(network, policy, origin)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, data)
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {reason(error)}") from error
    return content


def encode(network: fx.GraphModule, policy: Policy, origin: Origin) -> tuple[Content, bytes]:
    """Return the metadata and the bytes of the file that ``save`` writes.

    Raises:
        CheckpointError: As ``save``.
        ValueError: As ``save``.
    """
    network = copy.deepcopy(network).cpu().eval()
    rows = tuple(_rows(network, policy))
    written = _sparse(network, origin)
    content = Content(
        **origin.model_dump(),
        layout=_layout(network),
        layers=rows,
        skews=skews(network),
        formats=formats(network),
        codings={name: (coding, len(data)) for name, (coding, data) in written.items()},
        integers=is_exact(network),
    )
    merged = merge_norms(copy.deepcopy(network))
    # Left out where there are none, as versions before them wrote it.
    optional = (
        "skews",
        "tokens",
        "inputs",
        "transforms",
        "codings",
        "integers",
        "formats",
    )
    absent = {name for name in optional if not getattr(content, name)}
    text = content.model_dump_json(exclude=absent)
    data = serialize(_tensors(merged, written), {"haq": text})
    _check_results(data, network, merged, origin)
    return content, data


def _sparse(network: fx.GraphModule, origin: Origin) -> dict[str, tuple[str, bytes]]:
    """Return the codes of pruned layers, for which another format takes less than packing them."""
    written = {}
    for name in sparse_layers(origin.transforms):
        module = dict(network.named_modules()).get(name)
        if isinstance(module, Quantized) and not getattr(module, "weight_block", 0):
            coding, data = sparse.encode(_codes(module).numpy(), module.weight_bits)
            if coding != "dense":
                written[name] = coding, data
    return written


def _codes(module: Quantized) -> Tensor:
    clips = along_weight(module.weight_clip, module)
    return codes(module.weight.detach(), module.weight_bits, clips)


def check_savable(
    graph: Graph,
    shape: Sequence[int],
    tokens: int | None = None,
    inputs: Mapping[str, InputShape] | None = None,
) -> None:
    """Say so, before anything is searched, if the networks of a graph cannot be saved.

    Args:
        graph: Of the float network.
        shape: Of one input, without the batch.
        tokens: As in ``Origin``, as are the inputs.
        inputs: As above.

    Raises:
        CheckpointError: As ``save``.
    """
    network, policy = stand_in(graph)
    origin = Origin(model="", shape=tuple(shape), tokens=tokens, inputs=dict(inputs or {}))
    encode(network, policy, origin)


def _rows(network: fx.GraphModule, policy: Policy) -> Iterator[LayerRecord]:
    for name, module in called(network).items():
        if isinstance(module, LayerModule) and name in policy:
            bits, scales = FLOAT, 0
            if isinstance(module, Quantized):
                bits, scales = module.weight_bits, module.weight_clip.numel()
            if isinstance(module, Grouped):
                bits, scales = module.weight_bits, module.weight_scale.numel()
            if isinstance(module, Booked):
                bits = module.weight_bits
            if policy[name].weight != bits:
                raise ValueError(f"layer {name!r} has {bits} bits, not {policy[name].weight}")
            yield LayerRecord(name, tuple(module.weight.shape), bits, policy[name].act, scales)


def _layout(network: nn.Module) -> Literal["contiguous", "channels_last"]:
    weights = [value for value in network.state_dict().values() if value.dim() == 4]
    last = weights and all(
        # Only the strides tell: a 1x1 kernel is contiguous in both formats.
        w.stride() == torch.empty_like(w, memory_format=torch.channels_last).stride()
        for w in weights
    )
    return "channels_last" if last else "contiguous"


def _tensors(
    network: fx.GraphModule, written: Mapping[str, tuple[str, bytes]]
) -> dict[str, Tensor]:
    """Return the tensors of the file; the codes of some layers are written already."""
    state = network.state_dict()
    parts: dict[str, list[Tensor]] = {}
    constant = constants(network)
    for tensor, keys in shares(network).items():
        for key in keys:
            _check_state(tensor, key, state[key], constant)
        parts[tensor] = [_stored(network, tensor, key, state[key]) for key in keys]
        if tensor == "codes":
            for place, key in enumerate(keys):
                if key.removesuffix(".weight") in written:
                    data = written[key.removesuffix(".weight")][1]
                    parts[tensor][place] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    tensors = {name: torch.cat(part) for name, part in parts.items() if part}
    if (tensors.get("multipliers", torch.ones(0)) == 1).all():
        tensors.pop("multipliers", None)
    return {name: torch.empty(0, dtype=dtype(name)) for name in TENSORS} | tensors


def _check_state(tensor: str, key: str, value: Tensor, constant: Container[str]) -> None:
    is_labels = tensor == "codes" and value.dtype == torch.uint8
    if tensor != "others" and value.dtype != torch.float32 and not is_labels:
        raise CheckpointError(f"{key} is {value.dtype}; only parameters in float32 can be kept")
    if value.is_quantized or value.layout != torch.strided:
        raise CheckpointError(f"{key} is quantized or sparse; only dense tensors can be kept")
    if count_broken(key, value, constant):
        raise CheckpointError(f"{key} has values that are not finite numbers")


def _stored(network: fx.GraphModule, tensor: str, key: str, value: Tensor) -> Tensor:
    module = network.get_submodule(key.rpartition(".")[0])
    if tensor == "act_scales":
        assert isinstance(module, Rounding)
        return module.step.flatten()
    if isinstance(module, Booked) and tensor == "codes":
        data = pack(value.numpy(), module.weight_bits)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if isinstance(module, Grouped) and tensor == "codes":
        whole = group_codes(value, module.weight_scale, module.weight_bits, module.block)
        packed = pack(whole.numpy(), module.weight_bits)
        return torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    if tensor == "group_scales":
        return value.half().flatten()
    if isinstance(module, Quantized) and tensor == "codes":
        data = pack(_codes(module).numpy(), module.weight_bits)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if isinstance(module, Quantized) and tensor == "scales":
        return step(module.weight_bits, value, signed=True).flatten()
    flat = value.contiguous().flatten()
    return flat.view(torch.uint8) if tensor == "others" else flat


def _check_results(
    data: bytes, network: fx.GraphModule, merged: fx.GraphModule, origin: Origin
) -> None:
    """Read the file again and see that it is the same network."""
    stream = io.BytesIO(data)
    content, spans = read_header(stream, len(data))
    twin = copy.deepcopy(merged)
    fill(twin, content, read_tensors(stream, spans, twin, content))
    inputs = origin.made_up(2)
    # Floats may stand for indices.
    images = inputs.abs() if isinstance(inputs, Tensor) and not origin.tokens else inputs
    with torch.no_grad():
        try:
            expected = call(network, images)
        except Exception as error:
            raise CheckpointError(
                f"the network does not run on inputs of {times(origin.shape)}: {first_line(error)}"
            ) from error
        try:
            torch.testing.assert_close(
                _leaves(call(twin, images)), _leaves(expected), rtol=0, atol=0, equal_nan=True
            )
        except AssertionError as error:
            raise CheckpointError(
                "the network would not give the same logits when loaded; "
                "bring all its weights to one memory format first"
            ) from error


def _leaves(results: Any) -> list[Tensor]:
    """Return the tensors among a network's results: in tuples, dicts, dataclasses or alone."""
    if dataclasses.is_dataclass(results) and not isinstance(results, type):
        results = [getattr(results, field.name) for field in dataclasses.fields(results)]
    leaves = tree_leaves(results)
    if len(leaves) == 1 and leaves[0] is results:
        return [results] if isinstance(results, Tensor) else []
    return [tensor for leaf in leaves for tensor in _leaves(leaf)]
