"""The tensors of a float network that can be rounded alone, and how."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.allocation.policy import FLOAT, Bits, Policy
from haq.allocation.sensitivities import Kind, Widths
from haq.errors import ModelError
from haq.network.graph import Graph
from haq.network.modules import LayerModule, along_weight
from haq.network.outputs import float_tensors
from haq.network.sites import module_name
from haq.quantization.calibration import Clips
from haq.quantization.dynamic import round_tokens
from haq.quantization.fake_quant import Rounding, quantize
from haq.quantization.formats import round_input
from haq.quantization.groups import round_groups
from haq.quantization.quantizer import quantize as rounded
from haq.training.numerics import has_bfloat16


def normalising(graph: Graph, clips: Clips) -> fx.GraphModule:
    """Return the float network, its BatchNorms with the statistics of what they are given."""
    model = quantize(graph, {layer.name: Bits(FLOAT, FLOAT) for layer in graph.layers}, clips)
    for module in model.modules():
        module.train(isinstance(module, _BatchNorm))
    return model


class Place(NamedTuple):
    """What can be rounded alone: the weights of a layer, what layers read, or what a format rounds.

    Attributes:
        kind: Which of the three.
        layers: The layer, or all that read the tensor.
        bits: Which ones are asked for; of formats the ``Bits``.
        nodes: The calls that compute something else then, in order of execution.
        round: From bits to a context in which the tensor is rounded.
    """

    kind: Kind
    layers: tuple[str, ...]
    bits: tuple[Any, ...]
    nodes: tuple[fx.Node, ...]
    round: Callable[[Any], AbstractContextManager[None]]


def places_of(graph: Graph, clips: Clips, model: fx.GraphModule, asked: Widths) -> list[Place]:
    """Return the tensors that can be rounded alone, those of weights first.

    Args:
        graph: Whose tensors.
        clips: Of the graph, at the bits that are asked for.
        model: From ``normalising`` on the graph; the places are its own.
        asked: Which bits.
    """
    calls, places = _calls(model), []
    for layer in graph.layers:
        bits = tuple(b for b in asked["weights"].get(layer.name, ()) if b != FLOAT)
        formats = tuple(asked.get("formats", {}).get(layer.name, ()))
        if bits or formats:
            module = model.get_submodule(layer.name)
            floats = model.get_parameter(f"{layer.name}.weight").data
            rounding = partial(_weights, module, floats, clips.weights.get(layer.name, {}))
            nodes = {*calls.get(module, ()), *_reads(model, layer.name)}
            ordered = tuple(node for node in model.graph.nodes if node in nodes)
            if bits:
                places.append(Place("weights", (layer.name,), bits, ordered, rounding))
            if formats:
                formatting = partial(_formatted, module, floats, clips, layer.name)
                places.append(Place("formats", (layer.name,), formats, ordered, formatting))
    for point in graph.points:
        wanted = {bits for name in point.layers for bits in asked["activations"].get(name, ())}
        bits = tuple(sorted(wanted - {FLOAT}))
        if bits:
            module = model.get_submodule(module_name(point.tensor, point.layers))
            assert isinstance(module, Rounding)
            rounding = partial(_activations, module, clips, point.tensor)
            places.append(Place("activations", point.layers, bits, tuple(calls[module]), rounding))
    return places


def _reads(model: fx.GraphModule, layer: str) -> set[fx.Node]:
    """Return what else reads the weights of a layer than its own calls: lookups in a tied table."""
    reads = model.graph.find_nodes(op="get_attr", target=f"{layer}.weight", sort=False)
    return {user for node in reads for user in node.users}


def _calls(model: fx.GraphModule) -> dict[nn.Module, list[fx.Node]]:
    """Return the calls of every module, under whichever of its names, in order of execution."""
    modules, calls = dict(model.named_modules(remove_duplicate=False)), dict[Any, list[fx.Node]]()
    for node in model.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(modules[str(node.target)], []).append(node)
    return calls


@contextmanager
def rounded_at(places: Sequence[Place], policy: Policy | None) -> Iterator[None]:
    """Round every place to the bits that a policy has there; without a policy none."""
    with ExitStack() as stack:
        for place in places if policy else ():
            assert policy is not None
            bits = policy[place.layers[0]]
            if place.kind == "formats":
                if bits.is_special:
                    stack.enter_context(place.round(bits))
                continue
            width = bits.weight if place.kind == "weights" else bits.act
            if width != FLOAT and not (bits.is_special and place.kind == "weights"):
                stack.enter_context(place.round(width))
        yield


@contextmanager
def _weights(
    module: nn.Module, floats: Tensor, clips: Mapping[int, Tensor], bits: int
) -> Iterator[None]:
    assert isinstance(module, LayerModule)
    before = module.weight.data
    clip = clips[bits].to(floats.device)
    module.weight.data = rounded(floats, bits, along_weight(clip, module))
    try:
        yield
    finally:
        module.weight.data = before


@contextmanager
def _formatted(
    module: nn.Module, floats: Tensor, clips: Clips, name: str, bits: Bits
) -> Iterator[None]:
    """Round the weights of a layer, and what it reads, by a format that is more than bits."""

    def reading(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        read = (
            round_tokens(inputs[0], bits.block)
            if bits.block
            else round_input(inputs[0], bits.dynamic)
        )
        return read, *inputs[1:]

    assert isinstance(module, LayerModule)
    before = module.weight.data
    if bits.is_book:
        module.weight.data = clips.book(name, module, bits).weight
    elif bits.block:
        scales = clips.group_scales(name, module, bits)
        module.weight.data = round_groups(floats, scales, bits.weight, bits.block)
    else:
        grid = along_weight(clips.weights[name][bits.weight], module)
        module.weight.data = rounded(floats, bits.weight, grid)
    hook = module.register_forward_pre_hook(reading) if bits.dynamic else None
    try:
        yield
    finally:
        module.weight.data = before
        if hook is not None:
            hook.remove()


@contextmanager
def _activations(module: Rounding, clips: Clips, tensor: str, bits: int) -> Iterator[None]:
    before = module.bits, module.clip, module.skew
    module.bits, module.clip = bits, clips.acts[tensor][bits]
    module.skew = clips.skew(tensor, bits)
    try:
        yield
    finally:
        module.bits, module.clip, module.skew = before


@contextmanager
def quickly(gradients: bool = False, bfloat16: bool | None = None) -> Iterator[None]:
    """Compute without gradients unless they are asked for, in bfloat16 or not.

    Without a word on ``bfloat16``, in bfloat16 where the CPU has it.
    """
    quick = has_bfloat16() if bfloat16 is None else bfloat16
    # Without the cache of autocast, which would go on with weights that were changed since.
    precision = torch.autocast("cpu", torch.bfloat16, quick, cache_enabled=False)
    with torch.set_grad_enabled(gradients), precision:
        yield


def float_answers(answer: object) -> list[Tensor]:
    """Return the tensors of floats in what a network gives.

    Raises:
        ModelError: There are none, or some of their values are not finite.
    """
    tensors = float_tensors(answer)
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ModelError("the network gives values that are not finite numbers")
    return tensors
