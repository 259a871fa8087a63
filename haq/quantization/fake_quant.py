"""Put a policy into a copy of a model.

The copy computes with rounded values in floating point; its parameters stay float underneath, so
it can be fine-tuned, and rounding them is the last step of every forward.
"""

import copy
from collections.abc import Callable, Mapping, Set

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT, Bits, Dynamic, Policy, check_policy, readers
from haq.errors import PolicyError
from haq.network.graph import Graph
from haq.network.inputs import device_of
from haq.network.layers import EDGE_BITS, edges
from haq.network.modules import Matrix, along_weight, bias_of, plain
from haq.network.operators import is_lookup
from haq.network.sites import Point, insert
from haq.quantization.calibration import Clips
from haq.quantization.codebook import set_book
from haq.quantization.formats import GroupRows, round_input, set_grouped
from haq.quantization.kernel import Kernel
from haq.quantization.quantizer import BITS, codes, levels, step
from haq.quantization.quantizer import quantize as rounded


class Rounding(nn.Module):
    """Rounds activations of any shape to ``bits`` bits and clips them; 32 bits change nothing.

    Attributes:
        bits: 2 to 8, or 32 for float.
        clip: The highest value, a scalar.
        signed: Whether values can be negative.
        skew: How many codes are negative where the grid is not symmetric; None where it is.
        unit: What the sums are worth that an integer kernel rescales to this grid, in a shape that
            broadcasts; None where floats are rounded.
    """

    clip: Tensor
    unit: Tensor | None = None

    def __init__(self, bits: int, clip: Tensor, signed: bool, skew: int | None = None):
        super().__init__()
        self.bits, self.signed, self.skew = bits, signed, skew
        self.register_buffer("clip", clip)

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest code, counted from that of zero."""
        return levels(self.bits, self.signed, self.skew)

    @property
    def step(self) -> Tensor:
        """What a code is worth, a float32 scalar."""
        return step(self.bits, self.clip, self.signed, self.skew)

    @property
    def zero_point(self) -> int:
        """The code of zero where codes are unsigned; of symmetric ones the middle.

        With it no code is higher than the bits need, as 8-bit kernels that saturate want it.
        """
        if self.bits == FLOAT:
            return 0
        return (2 ** (self.bits - 1) if self.signed else 0) if self.skew is None else self.skew

    @property
    def top(self) -> int:
        """The highest code, where codes are unsigned."""
        return self.levels[1] + self.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, in x's shape and dtype."""
        if self.bits == FLOAT:
            return x
        if self.unit is not None:
            return self._rescaled(x, self.unit.to(x.device))
        return rounded(x, self.bits, self.clip, self.signed, self.skew)

    def _rescaled(self, x: Tensor, unit: Tensor) -> Tensor:
        sums = (x.double() / unit.double()).round().float()
        result = (sums * (unit / self.step)).round().clamp(*self.levels) * self.step
        return result.to(x.dtype)

    def extra_repr(self) -> str:
        """Describe the grid."""
        clip = f"clip={float(self.clip):.4g}"
        return f"bits={self.bits}, {clip}, signed={self.signed}, skew={self.skew}"


class Quantized(nn.Module):
    """A layer whose weights are rounded in every forward.

    Attributes:
        weight: Float underneath.
        weight_bits: 2 to 8.
        weight_clip: (scales,), or (1,) where the layer has one for all.
        kernels: How integers are computed with, once the network is converted: one for each grid
            that calls of the layer read.
    """

    weight: nn.Parameter
    weight_bits: int
    weight_clip: Tensor
    kernels: tuple[Kernel, ...] = ()

    def rounded_weight(self) -> Tensor:
        """Return the weights on their grid."""
        return rounded(self.weight, self.weight_bits, along_weight(self.weight_clip, self))

    def in_integers(
        self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor], kernel: Kernel, axis: int
    ) -> Tensor:
        """Return what an integer kernel gives: exact sums, rescaled in float32.

        Args:
            x: On the grid of the kernel's input.
            product: From codes of the input and of the weights to their sums.
            kernel: The layer's, or that of this call of it.
            axis: Of the channels.
        """
        kind = torch.float64 if kernel.wide else torch.float32
        clip = along_weight(self.weight_clip, self)
        weights = codes(self.weight.detach(), self.weight_bits, clip).to(kind)
        with torch.autocast(x.device.type, enabled=False):
            sums = product((x / kernel.step).round().to(kind), weights).double() * kernel.factor
        unit = kernel.unit.to(x.device)
        shape = [1] * sums.dim()
        shape[axis] = -1
        bias = bias_of(self)
        if bias is not None:
            sums += (bias.detach().double() / unit.double()).round().view(shape)
        result = sums.float() * unit.view(shape)
        return result.to(torch.promote_types(x.dtype, torch.float32))


class _QuantConvolution(Quantized):
    bias: Tensor | None
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, input: Tensor, grid: int = 0) -> Tensor:
        """Return the convolution of (N, c_in, ...) with the rounded weights."""
        if self.kernels:
            return self.in_integers(input, self._sums, self.kernels[grid], axis=1)
        return self._conv_forward(input, self.rounded_weight(), self.bias)

    def _sums(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, None)


class QuantConv1d(_QuantConvolution, nn.Conv1d):  # type: ignore[misc]
    """A Conv1d whose weights are rounded in every forward."""


class QuantConv2d(_QuantConvolution, nn.Conv2d):  # type: ignore[misc]
    """A Conv2d whose weights are rounded in every forward."""


class QuantConv3d(_QuantConvolution, nn.Conv3d):  # type: ignore[misc]
    """A Conv3d whose weights are rounded in every forward."""


class _QuantTransposed(Quantized):
    bias: Tensor | None
    compute: Callable[..., Tensor]

    def forward(self, input: Tensor, grid: int = 0) -> Tensor:
        """Return the transposed convolution of (N, c_in, ...) with the rounded weights.

        With a kernel sums of products of codes, which floats hold exactly, are rescaled.
        """
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        if not self.kernels:
            return self.compute(input, self.rounded_weight(), self.bias, *options)
        clip = along_weight(self.weight_clip, self)
        weight = codes(self.weight.detach(), self.weight_bits, clip).float()
        kernel = self.kernels[grid]
        with torch.autocast(input.device.type, enabled=False):
            whole = (input.float() / kernel.step).round()
            sums = self.compute(whole, weight, None, *options)
        column = (-1, *(1,) * (sums.dim() - 2))
        result = sums * kernel.unit.to(sums.device).view(column)
        result = result if self.bias is None else result + self.bias.view(column)
        return result.to(torch.promote_types(input.dtype, torch.float32))


class QuantConvTranspose1d(_QuantTransposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """A ConvTranspose1d whose weights are rounded in every forward."""

    compute = staticmethod(nn.functional.conv_transpose1d)


class QuantConvTranspose2d(_QuantTransposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """A ConvTranspose2d whose weights are rounded in every forward."""

    compute = staticmethod(nn.functional.conv_transpose2d)


class QuantConvTranspose3d(_QuantTransposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """A ConvTranspose3d whose weights are rounded in every forward."""

    compute = staticmethod(nn.functional.conv_transpose3d)


class QuantLinear(Quantized, nn.Linear):  # type: ignore[misc]
    """A Linear whose weights are rounded in every forward, and perhaps what it reads.

    Attributes:
        dynamic: How it rounds what it reads by itself; "" if not.
    """

    dynamic: Dynamic

    def forward(self, input: Tensor, grid: int = 0) -> Tensor:
        """Return the product of (N, ..., c_in) with the rounded weights."""
        if self.kernels:
            return self.in_integers(input, nn.functional.linear, self.kernels[grid], axis=-1)
        read = round_input(input, self.dynamic)
        return nn.functional.linear(read, self.rounded_weight(), self.bias)


class QuantEmbedding(Quantized, nn.Embedding):  # type: ignore[misc]
    """An Embedding whose rows are rounded where they are read."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the rounded rows (..., features) of integers (...)."""
        return _rounded_rows(self.weight, self.weight_clip, self.weight_bits, input)


class QuantMatrix(Quantized, Matrix):
    """A matrix that is rounded whenever it is read."""

    def forward(self) -> Tensor:
        """Return the rounded weights (outputs, inputs)."""
        return self.rounded_weight()


class Rows(nn.Module):
    """Reads rows of another layer's weights, rounded as that layer rounds them."""

    def __init__(self, layer: str, bits: int):
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, weight: Tensor, clip: Tensor, rows: Tensor) -> Tensor:
        """Return the rounded rows (..., features) of integers (...)."""
        return _rounded_rows(weight, clip, self.bits, rows)


def _rounded_rows(weight: Tensor, clip: Tensor, bits: int, rows: Tensor) -> Tensor:
    clips = clip[rows][..., None] if len(clip) > 1 else clip  # (..., 1)
    return rounded(nn.functional.embedding(rows, weight), bits, clips)


QUANTIZED: Mapping[type[nn.Module], type[Quantized]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.ConvTranspose3d: QuantConvTranspose3d,
    nn.Linear: QuantLinear,
    nn.Embedding: QuantEmbedding,
    Matrix: QuantMatrix,
}
"""Kind of a layer to the same with rounded weights."""


def set_plain(module: nn.Module) -> None:
    """Let a layer round its weights no more, in place."""
    module.__class__ = plain(module)


def quantize(graph: Graph, policy: Policy, clips: Clips) -> fx.GraphModule:
    """Return a quantized copy of the model that ``graph`` was traced from, in evaluation mode.

    Parameters keep their names; layers at 32 bits stay as they are. The copy is there to be
    trained: all its parameters take gradients, and modules that share one have one each, since
    their bits, scales and roundings differ.

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
    _separate(model)
    unread = {point.tensor for point in graph.points if not point.layers}
    insert(model, graph.points, lambda point: _rounding(point, policy, clips, unread))
    for layer in graph.layers:
        bits = policy[layer.name]
        if bits.weight != FLOAT:
            _round_weights(model.get_submodule(layer.name), layer.name, bits, clips)
            if not bits.is_book:  # whose weights are rounded wherever they are read
                _round_rows(model, layer.name, bits)
    model.recompile()
    return model.to(device_of(graph.traced)).eval()


def _round_rows(model: fx.GraphModule, layer: str, bits: Bits) -> None:
    """Let whatever looks up rows of a layer's weights read rounded ones."""
    for node in model.graph.find_nodes(op="get_attr", target=f"{layer}.weight"):
        for lookup in [user for user in node.users if is_lookup(user)]:
            name = f"quantizers.{lookup.name}"
            width, block = bits.weight, bits.block
            model.add_submodule(
                name, GroupRows(layer, width, block) if block else Rows(layer, width)
            )
            with model.graph.inserting_before(lookup):
                buffer = "weight_scale" if block else "weight_clip"
                clip = model.graph.create_node("get_attr", f"{layer}.{buffer}")
                rows = model.graph.call_module(name, (node, clip, lookup.args[1]))
            lookup.replace_all_uses_with(rows)
            model.graph.erase_node(lookup)


def _separate(model: nn.Module) -> None:
    """Give every module parameters and buffers of its own, the parameters free to be trained."""
    owned: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                shared = id(parameter) in owned
                own = nn.Parameter(parameter.detach().clone(), False) if shared else parameter
                own.requires_grad_(own.is_floating_point())
                module.register_parameter(name, own)
                owned.add(id(own))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and id(buffer) in owned:
                module._buffers[name] = buffer.clone()
            owned.add(id(module._buffers[name]))


def _check_grids(policy: Policy) -> None:
    for name, bits in policy.items():
        if not {*BITS, FLOAT}.issuperset(bits):
            raise PolicyError(
                f"layer {name!r} cannot have {bits.weight}-bit weights and {bits.act}-bit "
                "activations: one bit has no symmetric grid; give 2 to 8, or 32 for float"
            )


def _round_weights(module: nn.Module, name: str, bits: Bits, clips: Clips) -> None:
    if bits.is_book:
        set_book(module, bits.weight, clips.book(name, module, bits))
        return
    if bits.block:
        set_grouped(module, bits, clips.group_scales(name, module, bits))
        return
    module.__class__ = QUANTIZED[type(module)]
    module.weight_bits = bits.weight  # type: ignore[assignment]
    if isinstance(module, QuantLinear):
        module.dynamic = bits.dynamic
    module.register_buffer("weight_clip", clips.weights[name][bits.weight].clone())


def _rounding(point: Point, policy: Policy, clips: Clips, unread: Set[str]) -> Rounding:
    bits = policy[point.layers[0]].act if point.layers else _bits_unread(point, policy)
    if bits == FLOAT and point.source and point.tensor not in unread:
        # An integer kernel gives out integers, also where a float layer reads them.
        bits = FLOAT if policy[point.source].floats else EDGE_BITS
    if bits == FLOAT:
        return Rounding(bits, torch.ones(()), point.signed)
    clip, skew = clips.acts[point.tensor][bits], clips.skew(point.tensor, bits)
    return Rounding(bits, clip.clone(), point.signed, skew)


def _bits_unread(point: Point, policy: Policy) -> int:
    """Return the bits of what no layer reads: float where all layers that decide it are float."""
    deciding = {point.source, *point.joins} - {""} or set(policy)
    return FLOAT if all(policy[name].floats for name in deciding) else EDGE_BITS


def uniform(graph: Graph, weight: int, act: int, edge: int = EDGE_BITS) -> dict[str, Bits]:
    """Return the policy with the same bits everywhere but in the first and the last layer.

    Args:
        graph: Whose layers.
        weight: Bits of the weights.
        act: Bits of the activations.
        edge: Bits of both in the first and the last layer, and of the activations of any layer
            that reads the same tensor.
    """
    ends = set(edges(graph.layers))
    alone = {layer.name for layer in graph.layers if layer.weights_alone}
    return {
        name: Bits(weight, FLOAT) if name in alone
        else Bits(edge if name in ends else weight, act if ends.isdisjoint(group) else edge)
        for name, group in readers(graph.layers).items()
    }  # fmt: skip
