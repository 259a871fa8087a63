"""Where each tensor is clipped at each bit-width, from the float network's own values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT, Bits
from haq.errors import ModelError, RunError
from haq.files import write_bytes
from haq.network.capture import Sample, evaluating
from haq.network.graph import Graph
from haq.network.inputs import arguments, as_inputs, beside
from haq.network.layers import SPARSE
from haq.network.modules import outputs_first
from haq.quantization.clipping import activation_clips, weight_clips
from haq.quantization.codebook import Book, codebook
from haq.quantization.groups import group_scales
from haq.quantization.quantizer import BITS
from haq.quantization.skewed import is_skewed, skewed_grids

SAMPLED = 200_000
"""How many values of each activation tensor the calibration looks at."""

WHOLE_BYTE = 128
"""Negative codes of a grid of 8 bits that reaches about as far down as up. It has all codes of a
byte, -128 too: there bytes saturate by themselves, and a file needs no Clip."""


@dataclass(frozen=True)
class Clips:
    """Where every tensor is clipped at every bit-width, chosen once before the search.

    Attributes:
        weights: Layer to bits to clip (channels,), one value where clipped per tensor. A layer
            whose weights no choice rounds so, such as one with groups alone, is not there.
        acts: Tensor of the graph to bits to clip, a scalar: the highest value. None are there
            where no choice rounds a tensor once for all its readers.
        skews: Tensor of the graph to bits to how many codes are negative, a whole number, where the
            grid is not symmetric.
        scales: Scales of weights in groups, as far as they were asked for.
        books: Codebooks of layers at some bits, likewise.
    """

    weights: Mapping[str, Mapping[int, Tensor]]
    acts: Mapping[str, Mapping[int, Tensor]]
    skews: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)

    scales: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, compare=False)
    books: dict[tuple[str, int], Book] = field(default_factory=dict, compare=False)

    def group_scales(self, layer: str, module: nn.Module, bits: Bits) -> Tensor:
        """Return the scales of a layer's weights in groups, worked out once: (rows, groups).

        Args:
            layer: Its name.
            module: It, with the float weights it has in the graph.
            bits: Of its weights, and the size of the groups.
        """
        key = layer, bits.weight, bits.block
        if key not in self.scales:
            weight = module.get_parameter("weight").cpu()
            self.scales[key] = group_scales(weight, bits.weight, bits.block)
        return self.scales[key]

    def book(self, layer: str, module: nn.Module, bits: Bits) -> Book:
        """Return the codebook of a layer, worked out once; where it was pruned, zeros stay zeros.

        Args:
            layer: Its name.
            module: It, with the float weights it has in the graph.
            bits: Of its weights.
        """
        key = layer, bits.weight
        if key not in self.books:
            weight = module.get_parameter("weight").detach().cpu()
            pruned = float((weight == 0).float().mean()) >= SPARSE
            self.books[key] = codebook(weight, bits.weight, zero=pruned)
        return self.books[key]

    def skew(self, tensor: str, bits: int) -> int | None:
        """Return how many codes of a tensor are negative; None where its grid is symmetric."""
        skew = self.skews.get(tensor, {}).get(bits)
        return None if skew is None else int(skew)


def calibrate(
    graph: Graph,
    batches: Iterable[Sample],
    method: str = "kl",
    per_channel: bool = True,
    on_tensor: Callable[[int, int], None] | None = None,
    choices: Mapping[str, Sequence[Bits]] | None = None,
) -> Clips:
    """Return where to clip every tensor at 2 to 8 bits, from the float network.

    Args:
        graph: The model's, with the weights it has now.
        batches: Calibration inputs, as the model takes them; a few hundred images.
        method: A name in ``haq.quantization.clipping.CLIPPING``.
        per_channel: One clip per output channel of the weights, or one per layer.
        on_tensor: Called with (done, total) as tensors are finished.
        choices: Layer to the bits that it may have: what none of them rounds is not looked at.
            None: any pair of 2 to 8 bits.

    Returns:
        The clips; activations in the unit of the tensor they clip.

    Raises:
        ModelError: A weight or an activation is not a finite number; the message names it.
    """
    check_weights(graph)
    signs = {point.tensor: point.signed for point in graph.points}
    if choices is not None and not rounds_tensors(choices):
        signs = {}
    finished = _counter(len(_clipped_layers(graph, choices)) + len(signs), on_tensor)
    weights = calibrate_weights(graph, method, per_channel, finished, choices)
    if not signs:
        return Clips(weights, {})
    acts, skews = {}, {}
    for tensor, values in _activations(graph, batches, list(signs)).items():
        _check_finite(values, f"tensor {tensor!r} has activations")
        if signs[tensor] and is_skewed(values):
            grids = skewed_grids(values, BITS, method)
            skews[tensor] = {bits: torch.tensor(grid.skew) for bits, grid in grids.items()}
            clips = {bits: grid.clip for bits, grid in grids.items()}
        else:
            clips = activation_clips(values, BITS, signs[tensor], method)
            if signs[tensor]:
                skews[tensor] = {8: torch.tensor(WHOLE_BYTE)}
        acts[tensor] = {bits: torch.tensor(clip) for bits, clip in clips.items()}
        finished()
    return Clips(weights, acts, skews)


def calibrate_weights(
    graph: Graph,
    method: str = "kl",
    per_channel: bool = True,
    on_layer: Callable[[], None] | None = None,
    choices: Mapping[str, Sequence[Bits]] | None = None,
) -> dict[str, dict[int, Tensor]]:
    """Return where to clip the weights of every layer at 2 to 8 bits; see ``calibrate``."""
    clips = {}
    for name in _clipped_layers(graph, choices):
        weight = graph.traced.get_parameter(f"{name}.weight").detach().float().cpu()
        rows = outputs_first(weight, graph.traced.get_submodule(name))
        clips[name] = weight_clips(rows, BITS, method, per_channel)
        if on_layer:
            on_layer()
    return clips


def rounds_tensors(choices: Mapping[str, Sequence[Bits]]) -> bool:
    """Return whether some choice rounds what a layer reads once for all its readers."""
    return any(bits.act != FLOAT for pairs in choices.values() for bits in pairs)


def _clipped_layers(graph: Graph, choices: Mapping[str, Sequence[Bits]] | None) -> list[str]:
    """Return the layers whose weights some choice rounds with a clip for each channel."""
    return [
        layer.name
        for layer in graph.layers
        if choices is None
        or any(bits.weight != FLOAT and not bits.block for bits in choices[layer.name])
    ]


def check_weights(graph: Graph) -> None:
    """Say so if some layer of a graph cannot be quantized, whatever its inputs are.

    Raises:
        ModelError: A weight is not a finite number; the message names the layer.
    """
    for layer in graph.layers:
        weight = graph.traced.get_parameter(f"{layer.name}.weight").detach()
        _check_finite(weight, f"layer {layer.name!r} has weights")


def _counter(total: int, on_tensor: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Return a function to be called whenever a tensor is finished."""
    numbers = count(1)

    def finished() -> None:
        done = next(numbers)
        if on_tensor:
            on_tensor(done, total)

    return finished


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ModelError(f"{what} that are not finite numbers")


class _Collector(fx.Interpreter):
    """Collects evenly spaced values, and the extremes, of chosen tensors while it runs a graph."""

    def __init__(self, module: fx.GraphModule, tensors: Sequence[str]):
        super().__init__(module)
        self.samples: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}
        self.ends: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.samples:
            assert isinstance(result, Tensor)
            # A stride that shares no factor with the sizes of feature maps sees every channel.
            stride = max(1, result.numel() // (SAMPLED // 4)) | 1
            values = result.detach().flatten()
            # A copy: an operation in place may change the tensor before the run ends.
            self.samples[n.name].append(values[::stride].to("cpu", torch.float32, copy=True))
            self.ends[n.name] += [end.float().cpu() for end in values.aminmax()]
        return result


def _activations(
    graph: Graph, batches: Iterable[Sample], tensors: Sequence[str]
) -> dict[str, Tensor]:
    collector = _Collector(graph.traced, tensors)
    with torch.no_grad(), evaluating(graph.traced):
        for batch in batches:
            inputs = beside(graph.traced, as_inputs(batch))
            collector.run(*arguments(graph.traced.graph, inputs))
    samples = {tensor: _thinned(torch.cat(parts)) for tensor, parts in collector.samples.items()}
    ends = {tensor: torch.stack(parts).aminmax() for tensor, parts in collector.ends.items()}
    return {tensor: torch.cat([samples[tensor], torch.stack(ends[tensor])]) for tensor in tensors}


def _thinned(values: Tensor) -> Tensor:
    return values[:: max(1, -(-len(values) // SAMPLED))]


def save_clips(clips: Clips, path: Path) -> None:
    """Write clips as safetensors, atomically."""
    tensors = {f"weight/{n}/{b}": c for n, row in clips.weights.items() for b, c in row.items()}
    tensors |= {f"act/{n}/{b}": c for n, row in clips.acts.items() for b, c in row.items()}
    tensors |= {f"skew/{n}/{b}": c for n, row in clips.skews.items() for b, c in row.items()}
    write_bytes(path, save(tensors))


def load_clips(path: Path) -> Clips:
    """Read clips that ``save_clips`` wrote.

    Raises:
        RunError: The file is missing or damaged.
    """
    kinds: dict[str, dict[str, dict[int, Tensor]]] = {"weight": {}, "act": {}, "skew": {}}
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}); take it away and resume") from error
    for key, clip in tensors.items():
        kind, rest = key.split("/", 1)
        name, bits = rest.rsplit("/", 1)
        kinds[kind].setdefault(name, {})[int(bits)] = clip
    return Clips(kinds["weight"], kinds["act"], kinds["skew"])
