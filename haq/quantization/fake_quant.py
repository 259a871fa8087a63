"""Put a policy into a copy of a model.

The copy computes with rounded values in floating point; its parameters stay float underneath, so
it can be fine-tuned, and rounding them is the last step of every forward.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT, Bits, Policy, check_policy, readers
from haq.errors import ModelError, PolicyError, RunError
from haq.files import write_bytes
from haq.network.graph import Graph, LayerModule, Point, Sample, evaluating, insert
from haq.network.layers import EDGE_BITS
from haq.quantization.calibration import activation_clips, weight_clips
from haq.quantization.quantizer import BITS
from haq.quantization.quantizer import quantize as rounded

SAMPLED = 200_000
"""How many values of each activation tensor the calibration keeps."""


@dataclass(frozen=True)
class Clips:
    """Where every tensor is clipped at every bit-width, chosen once before the search.

    Attributes:
        weights: Layer to bits to clip (channels,), one value where clipped per tensor.
        acts: Tensor of the graph to bits to clip, a scalar.
    """

    weights: Mapping[str, Mapping[int, Tensor]]
    acts: Mapping[str, Mapping[int, Tensor]]


class Rounding(nn.Module):
    """Rounds activations of any shape to ``bits`` bits and clips them; 32 bits change nothing."""

    clip: Tensor

    def __init__(self, bits: int, clip: Tensor, signed: bool):
        super().__init__()
        self.bits, self.signed = bits, signed
        self.register_buffer("clip", clip)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, in x's shape and dtype."""
        return x if self.bits == FLOAT else rounded(x, self.bits, self.clip, self.signed)

    def extra_repr(self) -> str:
        """Describe the grid."""
        return f"bits={self.bits}, clip={float(self.clip):.4g}, signed={self.signed}"


class QuantConv2d(nn.Conv2d):
    """A Conv2d whose weights are rounded in every forward."""

    weight_bits: int
    weight_clip: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of (N, c_in, H, W) with the rounded weights."""
        output: Tensor = self._conv_forward(input, _weights(self), self.bias)
        return output


class QuantLinear(nn.Linear):
    """A Linear whose weights are rounded in every forward."""

    weight_bits: int
    weight_clip: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of (N, ..., c_in) with the rounded weights."""
        return nn.functional.linear(input, _weights(self), self.bias)


def _weights(layer: QuantConv2d | QuantLinear) -> Tensor:
    clip = layer.weight_clip.view(-1, *(1,) * (layer.weight.dim() - 1))  # (out or 1, 1, ...)
    return rounded(layer.weight, layer.weight_bits, clip)


def quantize(graph: Graph, policy: Policy, clips: Clips) -> fx.GraphModule:
    """Return a quantized copy of the model that ``graph`` was traced from, in evaluation mode.

    Parameters keep their names; layers at 32 bits stay as they are.

    Args:
        graph: The model's, with the weights it has now.
        policy: Bits of every layer, equal activation bits for layers that read one tensor.
        clips: From ``calibrate`` on the same graph.

    Returns:
        A module that takes what the model takes, on the model's device and with gradients that
        pass straight through the rounding.

    Raises:
        PolicyError: The policy does not suit the layers, or has 1 bit somewhere.
    """
    check_policy(policy, graph.layers)
    _check_grids(policy)
    model = copy.deepcopy(graph.traced)
    kept = {point.tensor for point in graph.points if not point.layers}
    insert(model, graph.points, lambda point: _rounding(point, policy, clips, kept))
    for layer in graph.layers:
        bits = policy[layer.name].weight
        if bits != FLOAT:
            _round_weights(model.get_submodule(layer.name), bits, clips.weights[layer.name][bits])
    return model.eval()


def _check_grids(policy: Policy) -> None:
    for name, bits in policy.items():
        if not {*BITS, FLOAT}.issuperset(bits):
            raise PolicyError(
                f"layer {name!r} cannot have {bits.weight}-bit weights and {bits.act}-bit "
                "activations: one bit has no symmetric grid; give 2 to 8, or 32 for float"
            )


def _round_weights(module: nn.Module, bits: int, clip: Tensor) -> None:
    assert isinstance(module, LayerModule)
    module.__class__ = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    module.weight_bits = bits  # type: ignore[assignment]
    module.register_buffer("weight_clip", clip.clone())


def _rounding(point: Point, policy: Policy, clips: Clips, kept: Set[str]) -> Rounding:
    bits = policy[point.layers[0]].act if point.layers else _kept_bits(point, policy)
    if bits == FLOAT and point.source and point.tensor not in kept:
        # An integer kernel gives out integers, also where a float layer reads them.
        bits = FLOAT if FLOAT in policy[point.source] else EDGE_BITS
    clip = clips.acts[point.tensor][bits] if bits != FLOAT else torch.ones(())
    return Rounding(bits, clip.clone(), point.signed)


def _kept_bits(point: Point, policy: Policy) -> int:
    """Return the bits of what no layer reads: float where all layers that decide it are float."""
    deciding = {point.source, *point.joins} - {""} or set(policy)
    return FLOAT if all(FLOAT in policy[name] for name in deciding) else EDGE_BITS


def uniform(graph: Graph, weight: int, act: int, edge: int = EDGE_BITS) -> dict[str, Bits]:
    """Return the policy with the same bits everywhere but in the first and the last layer.

    Args:
        graph: Whose layers.
        weight: Bits of the weights.
        act: Bits of the activations.
        edge: Bits of both in the first and the last layer, and of the activations of any layer
            that reads the same tensor.
    """
    ends = {graph.layers[0].name, graph.layers[-1].name}
    return {
        name: Bits(edge if name in ends else weight, act if ends.isdisjoint(group) else edge)
        for name, group in readers(graph.layers).items()
    }


def calibrate(
    graph: Graph,
    batches: Iterable[Sample],
    method: str = "kl",
    per_channel: bool = True,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Clips:
    """Return where to clip every tensor at 2 to 8 bits, from the float network.

    Args:
        graph: The model's, with the weights it has now.
        batches: Calibration inputs, as the model takes them; a few hundred images.
        method: A name in ``haq.quantization.calibration.CLIPPING``.
        per_channel: One clip per output channel of the weights, or one per layer.
        on_tensor: Called with (done, total) as tensors are finished.

    Returns:
        The clips; activations in the unit of the tensor they clip.

    Raises:
        ModelError: A weight or an activation is not a finite number; the message names it.
    """
    total = len(graph.layers) + len({point.tensor for point in graph.points})
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if on_tensor:
            on_tensor(done, total)

    weights = {}
    for layer in graph.layers:
        weight = graph.traced.get_parameter(f"{layer.name}.weight").detach().float()
        _check_finite(weight, f"layer {layer.name!r} has weights")
        weights[layer.name] = weight_clips(weight, BITS, method, per_channel)
        finished()
    acts = {}
    signs = {point.tensor: point.signed for point in graph.points}
    for tensor, values in _activations(graph, batches, list(signs)).items():
        _check_finite(values, f"tensor {tensor!r} has activations")
        clips = activation_clips(values, BITS, signs[tensor], method)
        acts[tensor] = {bits: torch.tensor(clip) for bits, clip in clips.items()}
        finished()
    return Clips(weights, acts)


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ModelError(f"{what} that are not finite numbers")


class _Collector(fx.Interpreter):
    """Keeps evenly spaced values, and the extremes, of chosen tensors while it runs a graph."""

    def __init__(self, module: fx.GraphModule, tensors: Sequence[str]):
        super().__init__(module)
        self.kept: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}
        self.ends: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.kept:
            assert isinstance(result, Tensor)
            # A stride that shares no factor with the sizes of feature maps sees every channel.
            stride = max(1, result.numel() // (SAMPLED // 4)) | 1
            values = result.detach().flatten()
            # A copy: an operation in place may change the tensor before the run ends.
            self.kept[n.name].append(values[::stride].to(torch.float32, copy=True))
            self.ends[n.name] += [end.float() for end in values.aminmax()]
        return result


def _activations(
    graph: Graph, batches: Iterable[Sample], tensors: Sequence[str]
) -> dict[str, Tensor]:
    collector = _Collector(graph.traced, tensors)
    with torch.no_grad(), evaluating(graph.traced):
        for batch in batches:
            collector.run(*(batch if isinstance(batch, tuple) else (batch,)))
    samples = {tensor: _thinned(torch.cat(parts)) for tensor, parts in collector.kept.items()}
    ends = {tensor: torch.stack(parts).aminmax() for tensor, parts in collector.ends.items()}
    return {tensor: torch.cat([samples[tensor], torch.stack(ends[tensor])]) for tensor in tensors}


def _thinned(values: Tensor) -> Tensor:
    return values[:: max(1, -(-len(values) // SAMPLED))]


def save_clips(clips: Clips, path: Path) -> None:
    """Write clips as safetensors, atomically."""
    tensors = {f"weight/{n}/{b}": c for n, row in clips.weights.items() for b, c in row.items()}
    tensors |= {f"act/{n}/{b}": c for n, row in clips.acts.items() for b, c in row.items()}
    write_bytes(path, save(tensors))


def load_clips(path: Path) -> Clips:
    """Read clips that ``save_clips`` wrote.

    Raises:
        RunError: The file is missing or damaged.
    """
    kinds: dict[str, dict[str, dict[int, Tensor]]] = {"weight": {}, "act": {}}
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}); take it away and resume") from error
    for key, clip in tensors.items():
        kind, rest = key.split("/", 1)
        name, bits = rest.rsplit("/", 1)
        kinds[kind].setdefault(name, {})[int(bits)] = clip
    return Clips(kinds["weight"], kinds["act"])
