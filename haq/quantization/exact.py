"""Float operations whose results do not depend on who adds up, and in which order.

A quantized network and its file agree to the last bit where integers are added. LayerNorm, softmax
and products of two activations are no integers: two libraries give them in float32 with last digits
that differ, a few of which fall on the other side of a border between two codes, and from layer to
layer these become many. So they are computed here, and in the file, as follows:

- a product of two tensors that have codes from these codes, whose sums are whole numbers that
  float32 holds exactly;
- the softmax of attention, whose shares are codes of 2**-15, by operations of float32 that every
  library rounds alike, and powers of e that are whole numbers whoever works them out: see
  ``share_codes``;
- LayerNorms over the last axis from sums that are whole numbers or in float64, one value for each
  row, and the rest value by value in float32;
- other norms, softmaxes, means and sums in float64, from which float32 results are rounded; so are
  sigmoid and its like where their values meet others before they are rounded, as those of a gate do
  (where they do not, ``steady`` keeps them off the borders of codes); GELU, for which ONNX Runtime
  has no float64, is looked up there in a table of its values for all codes.

What is done value by value (a multiplication, an addition, a rounding) IEEE 754 fixes to the last
bit, in float32 as in float64, and float32 takes a fraction of the time.

Each function takes what the operation takes that ``computes`` names.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from haq.allocation.policy import FLOAT
from haq.models.onnx.network import Origin
from haq.network.naming import ORIGIN
from haq.network.operators import first_input, kind_of, selects
from haq.quantization.fake_quant import Rounding
from haq.quantization.steady import is_settled
from haq.quantization.widened import WIDE, WIDE_GATES, in_float64

aten = torch.ops.aten

SHARE = 2.0**-15
"""What a code of a share in attention is worth."""

POWERS = 2.0**-8
"""Differences of scores are rounded to multiples of this before their powers of e are taken."""

SNAP = 1.5 * 2**23 * POWERS
"""A float32 to which others are added to be rounded so, and from which it is then taken away."""

TALLEST = 10678.75
"""What the power of e of the highest score counts before it is rounded to a whole number: with it
no power of a multiple of ``POWERS`` is nearer to the border of two than 1.8e-6 of itself, which is
15 times what libraries may err by."""

ADDED_UP = int(2**24 / (TALLEST + 1))
"""The most powers whose sum float32 holds exactly."""

TOP = 255
"""The highest code of an activation."""

WIDEST = 2**24 // TOP**2
"""The most products of two activations' codes that float32 adds up exactly, whatever they are."""


class Grid(NamedTuple):
    """Where the codes of a tensor come from.

    Attributes:
        rounding: Name of the quantizer; empty for the shares of a softmax.
        factor: By which its values were multiplied since.
    """

    rounding: str
    factor: float


def grid_of(node: fx.Node) -> Grid | None:
    """Return where the codes of a node's value come from; None where it has none."""
    factor = 1.0
    while True:
        if node.op == "call_module" and kind_of(node) is Rounding:
            return Grid(str(node.target), factor)
        if kind_of(node) in ("softmax", "_softmax") and factor == 1.0:
            return Grid("", SHARE)
        number = node.args[1] if len(node.args) == 2 else None
        if kind_of(node) in ("mul", "div") and isinstance(number, int | float) and number > 0:
            factor = factor * number if kind_of(node) == "mul" else factor / number
        elif not selects(node):
            return None
        node = first_input(node)


def grids_of(node: fx.Node) -> tuple[Grid, Grid] | None:
    """Return the grids of the two tensors that a node multiplies; None if one has none."""
    operands = node.args[:2]
    grids = [grid_of(operand) if isinstance(operand, fx.Node) else None for operand in operands]
    left, right = grids
    return None if left is None or right is None else (left, right)


def fits(grid: Grid, width: int) -> bool:
    """Return whether float32 adds up so many products of codes exactly, the left ones of a grid."""
    return not grid.rounding or width <= WIDEST


def _wide(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True, *, step: float | None = None,
) -> Tensor:  # fmt: skip
    """Return ``functional.layer_norm``, over the last axis of codes from sums of these.

    Their sums and those of their squares are whole numbers that float32 holds; those of other
    values are taken in float64. What is made of these, one value for each row, is worked out in
    float64, and all else value by value in float32.
    """
    if len(shape) > 1:
        result = functional.layer_norm(x.double(), [*shape], _wide(weight), _wide(bias), eps)
        return result.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        whole = x.float() if step is None else _whole(x, step)
        summed = whole.double()
        total, squares = (one.sum(-1, keepdim=True) for one in (summed, summed.square()))
        width = shape[-1]
        mean, least = total * (1 / width), width * (eps / (step or 1) ** 2)
        size: Tensor = width**0.5 / (squares - total * mean + least).sqrt()
        result = (whole - mean.float()) * size.float()
        result = result if weight is None else result * weight
        return (result if bias is None else result + bias).to(x.dtype)


def step_of_norm(network: nn.Module, grid: Grid, width: int) -> float | None:
    """Return what a code is worth of which so many are normalised; None where that is not exact."""
    size = _step(network, grid)
    if size is None:
        return None
    module = network.get_submodule(grid.rounding)
    assert isinstance(module, Rounding)
    return size if width * max(map(abs, module.levels)) ** 2 <= 2**24 else None


def softmax(
    x: Tensor, dim: int, dtype: torch.dtype | None = None, *, shares: bool = False
) -> Tensor:
    """Return ``functional.softmax``, as codes of ``SHARE`` over the last axis where asked."""
    result = share_codes(x) * SHARE if shares else functional.softmax(x.double(), dim)
    return result.to(dtype or x.dtype)


def share_codes(scores: Tensor, masked: bool = True) -> Tensor:
    """Return ``functional.softmax`` over the last axis in multiples of 2**-15, whole numbers.

    By operations alone that every library rounds alike::

        d = (score - highest score of the row), rounded to multiples of 2**-8
        power = round(10678.75 * exp(d))        a whole number up to 10679
        code = round(power * (2**15 / sum of the row's powers))

    A power has at most as many values as d has multiples, and none of them is close to the border
    of two whole numbers, so that any library's exp gives the same. An error of d is an error of
    1/512 of a share at most (of 1/256 without a mask: the highest score is rounded too, which
    saves a pass over the scores).

    Args:
        scores: (..., columns), floats.
        masked: Whether all scores of a row may be lower than -2**14, as behind a mask.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.float()
        highest = scores.amax(-1, keepdim=True)
        snapped = (scores - highest) + SNAP if masked else scores + (SNAP - highest)
        steps = snapped - SNAP
        powers = (steps.exp() * TALLEST).round()
        total = powers.double().sum(-1, keepdim=True).float()
        return (powers * (1 / SHARE / total)).round()


def mean(
    x: Tensor, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``torch.mean``."""
    return x.double().mean(dim, keepdim).to(dtype or x.dtype)


def total(
    x: Tensor, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``torch.sum``."""
    if not x.is_floating_point():
        return x.sum(dim, keepdim, dtype=dtype)
    return x.double().sum(dim, keepdim).to(dtype or x.dtype)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    """Return ``functional.group_norm``."""
    result = functional.group_norm(x.double(), groups, _wide(weight), _wide(bias), eps)
    return result.to(x.dtype)


def bilinear(
    x: Tensor, output_size: Any = None, align_corners: bool = False, scale_factors: Any = None
) -> Tensor:
    """Return ``functional.interpolate`` of feature maps."""
    wide: Tensor = aten.upsample_bilinear2d.vec(
        x.double(), output_size, align_corners, scale_factors
    )
    return wide.to(x.dtype)


def einsum(equation: str, operands: Sequence[Tensor], *, path: Any = None) -> Tensor:
    """Return ``torch.einsum``."""
    return torch.einsum(equation, [x.double() for x in operands]).to(operands[0].dtype)


def _floats(x: Tensor) -> torch.dtype:
    """Return the type of what is computed from a tensor in floats."""
    return x.dtype if x.is_floating_point() else torch.float32


def sigmoid(x: Tensor) -> Tensor:
    """Return ``torch.sigmoid``."""
    return x.double().sigmoid().to(_floats(x))


def tanh(x: Tensor) -> Tensor:
    """Return ``torch.tanh``."""
    return x.double().tanh().to(_floats(x))


def exp(x: Tensor) -> Tensor:
    """Return ``torch.exp``."""
    return x.double().exp().to(_floats(x))


def silu(x: Tensor) -> Tensor:
    """Return ``functional.silu``."""
    return (x.double() * x.double().sigmoid()).to(x.dtype)


def gelu(
    x: Tensor, approximate: str = "none", *, grid: tuple[float, int, int] | None = None
) -> Tensor:
    """Return ``functional.gelu``, of a tensor of codes from a table.

    Args:
        x: Any shape.
        approximate: As there.
        grid: What a code is worth, that of zero and the highest; None where there are none.
    """
    if grid is None:
        return functional.gelu(x, approximate=approximate)
    size, zero, top = grid
    places = (x.float() / size).round().long() + zero
    return gelu_table(size, zero, top, approximate)[places].to(x.dtype)


def gelu_table(size: float, zero: int, top: int, approximate: str) -> Tensor:
    """Return GELU of what the codes from 0 to the highest stand for, (codes,) float32."""
    values = (torch.arange(top + 1, dtype=torch.float64) - zero) * size
    return functional.gelu(values, approximate=approximate).float()


def hardswish(x: Tensor) -> Tensor:
    """Return ``functional.hardswish``, which is exact in any library that computes it so."""
    return x * (x + 3).clamp(0, 6) / 6


def matmul(left: Tensor, right: Tensor, *, steps: tuple[float, float] | None = None) -> Tensor:
    """Return ``torch.matmul``, from codes where both tensors have steps."""
    if steps is None or (steps[0] != SHARE and left.shape[-1] > WIDEST):
        if not left.is_floating_point():
            return left @ right
        return (left.double() @ right.double()).to(left.dtype)
    unit = torch.tensor(steps[0], dtype=torch.float32) * torch.tensor(steps[1])
    with torch.autocast(left.device.type, enabled=False):
        return (_whole(left, steps[0]) @ _whole(right, steps[1])) * unit.to(left.device)


def _whole(x: Tensor, step: float) -> Tensor:
    return (x.float() / step).round()


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, **more: Any,
) -> Tensor:  # fmt: skip
    """Return ``functional.scaled_dot_product_attention``, from codes where tensors have steps."""
    steps: tuple[float | None, ...] = more.get("steps", (None, None, None))
    if more.get("enable_gqa"):
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
    width = query.shape[-1]
    scale = width**-0.5 if more.get("scale") is None else more["scale"]
    if steps[0] is None or steps[1] is None or width > WIDEST:
        scores = (query.double() @ key.double().transpose(-2, -1) * scale).float()
    else:
        with torch.autocast(query.device.type, enabled=False):
            sums = _whole(query, steps[0]) @ _whole(key, steps[1]).transpose(-2, -1)
        scores = sums * torch.tensor(steps[0] * steps[1] * scale, dtype=torch.float32)
    masked_by_caller = attn_mask is not None
    if is_causal:  # every row keeps a score
        rows, columns = scores.shape[-2:]
        attn_mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = scores.masked_fill(~attn_mask, -1e30) if attn_mask.dtype == torch.bool else None
        scores = scores + attn_mask.float() if masked is None else masked
    codes = share_codes(scores, masked_by_caller)
    shares = (codes * SHARE).to(query.dtype)
    return matmul(shares, value, steps=None if steps[2] is None else (SHARE, steps[2]))


EXACT: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "layer_norm": (layer_norm, aten.layer_norm.default),
    "softmax": (softmax, aten.softmax.int),
    "mean": (mean, aten.mean.dim),
    "sum": (total, aten.sum.dim_IntList),
    "matmul": (matmul, aten.matmul.default),
    "bmm": (matmul, aten.matmul.default),
    "scaled_dot_product_attention": (attention, aten.scaled_dot_product_attention.default),
    "group_norm": (group_norm, aten.group_norm.default),
    "upsample_bilinear2d": (bilinear, aten.upsample_bilinear2d.vec),
    "einsum": (einsum, aten.einsum.default),
    "sigmoid": (sigmoid, aten.sigmoid.default),
    "tanh": (tanh, aten.tanh.default),
    "exp": (exp, aten.exp.default),
    "silu": (silu, aten.silu.default),
    "gelu": (gelu, aten.gelu.default),
    "hardswish": (hardswish, aten.hardswish.default),
}
"""Name of an operation to the function that computes it and the operation whose arguments that has.
"""

GATES = ("sigmoid", "tanh", "exp", "silu", "gelu", "hardswish")
"""Those that are computed so only where steps are not chosen for them, which is for nothing."""

for _function, _operation in EXACT.values():
    _function.computes = _operation  # type: ignore[attr-defined]


def computed_exactly(node: fx.Node) -> bool:
    """Return whether a node of a quantized network is computed as above."""
    kind = kind_of(node) if node.op == "call_function" else None
    if kind not in (*EXACT, *WIDE, *WIDE_GATES) or not _is_float(node):
        return False
    if kind == "pow" and node.args[1] == 2:  # a product, which is rounded alike everywhere
        return False
    if kind_of(node) == "upsample_bilinear2d":  # dear, and for nothing where an answer is resized
        whole = node.target in (bilinear, aten.upsample_bilinear2d.vec)
        return whole and is_rounded_later(node)
    return kind not in (*GATES, *WIDE_GATES) or not is_settled(node)


def is_rounded_later(node: fx.Node) -> bool:
    """Return whether some tensor that depends on a node's value is rounded."""
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if kind_of(user) is Rounding:
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def make_exact(network: fx.GraphModule) -> None:
    """Let the float operations of a quantized network be computed as above, in place.

    What codes are worth is taken from its quantizers as they are now. The nodes of a network of an
    ONNX file stay as they are, in float64: those of a file are.
    """
    plain = isinstance(network.meta.get(ORIGIN), Origin)
    for node in network.graph.nodes:
        if not computed_exactly(node):
            continue
        kind = kind_of(node)
        if kind not in EXACT:
            node.target = in_float64(getattr(node.target, "computes", node.target))
            continue
        node.target = EXACT[kind][0]
        if kind in ("matmul", "bmm"):
            grids = None if plain else grids_of(node)
            steps = grids and tuple(_step(network, grid) for grid in grids)
            node.kwargs = {"steps": None if steps is None or None in steps else steps}
        elif kind == "scaled_dot_product_attention":
            each = [None if plain else grid_of(operand) for operand in node.args[:3]]
            steps = tuple(grid and _step(network, grid) for grid in each)
            node.kwargs = {**node.kwargs, "steps": steps}
        elif kind == "layer_norm":
            read = None if plain else codes_normalised(node)
            width = node.args[1][-1]
            step = read and step_of_norm(network, read, int(width))
            node.kwargs = {**node.kwargs, "step": step}
        elif kind == "softmax":
            node.kwargs = {**node.kwargs, "shares": not plain and gives_shares(node)}
        elif kind == "gelu":
            grid = None if plain else _codes_read(network, node)
            node.kwargs = {**node.kwargs, "grid": grid}
    network.recompile()


def gives_shares(node: fx.Node) -> bool:
    """Return whether all that reads a softmax over the last axis multiplies its codes."""
    if node.args[1] != -1:
        return False
    waiting = [node]
    while waiting:
        for user in waiting.pop().users:
            if kind_of(user) in ("matmul", "bmm") and grids_of(user) is not None:
                continue
            if not selects(user):
                return False
            waiting.append(user)
    return True


def codes_normalised(node: fx.Node) -> Grid | None:
    """Return where the codes come from that a LayerNorm over the last axis reads."""
    grid, shape = grid_of(first_input(node)), node.args[1]
    return grid if grid and grid.rounding and len(shape) == 1 else None  # type: ignore[arg-type]


def _codes_read(network: nn.Module, node: fx.Node) -> tuple[float, int, int] | None:
    """Return what the codes are worth that a GELU reads, that of zero and the highest."""
    grid = grid_of(first_input(node))
    size = _step(network, grid) if grid and grid.rounding else None
    if grid is None or size is None:
        return None
    module = network.get_submodule(grid.rounding)
    assert isinstance(module, Rounding)
    return size, module.zero_point, module.top


def _step(network: nn.Module, grid: Grid) -> float | None:
    """Return what a code is worth; None where the quantizer rounds nothing."""
    if not grid.rounding:
        return grid.factor
    module = network.get_submodule(grid.rounding)
    assert isinstance(module, Rounding)
    return None if module.bits == FLOAT else float(module.step) * grid.factor


def _is_float(node: fx.Node) -> bool:
    return node.kwargs.get("dtype") is None
