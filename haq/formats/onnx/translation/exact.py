"""Float operations as ``haq.quantization.exact`` computes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation import elementwise, products, reductions, sampling
from haq.formats.onnx.translation.draft import Draft, Known, arguments, axis_of
from haq.formats.onnx.translation.elementwise import Rule
from haq.network.operators import kind_of
from haq.quantization.exact import (
    ADDED_UP,
    SHARE,
    SNAP,
    TALLEST,
    WIDEST,
    Grid,
    codes_normalised,
    computed_exactly,
    fits,
    gives_shares,
    grid_of,
    grids_of,
)

DOMAIN = "haq"
"""Of the markers."""

WIDE = torch.float64


def _wide(draft: Draft, value: Any) -> str:
    return draft.cast(draft.tensor(value), WIDE)


def _layer_norm(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    shape, weight, bias = given["normalized_shape"], given["weight"], given["bias"]
    if len(shape) == 1:
        grid = codes_normalised(node) or Grid("", 1.0)
        affine = [draft.tensor(part) for part in (weight, bias) if part is not None]
        return str(draft.emit(
            "layer_norm", draft.tensor(given["input"]), *affine, domain=DOMAIN, name=grid.rounding,
            factor=grid.factor, width=int(shape[-1]), epsilon=float(given["eps"]),
        ))  # fmt: skip
    scale = (
        draft.constant(torch.ones(shape).numpy(), WIDE) if weight is None else _wide(draft, weight)
    )
    inputs = [_wide(draft, given["input"]), scale]
    inputs += [] if bias is None else [_wide(draft, bias)]
    eps = float(given["eps"])
    result = draft.emit("LayerNormalization", *inputs, axis=-len(shape), epsilon=eps)
    return draft.cast(result, draft.of(node).dtype)


def _softmax(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    if gives_shares(node):
        width = draft.of(node).shape[-1]
        draft.shares[node] = _share_codes(draft, draft.tensor(given["self"]), width)
        return str(draft.emit("Mul", draft.shares[node], draft.constant(SHARE, torch.float32)))
    result = draft.emit("Softmax", _wide(draft, given["self"]), axis=int(given["dim"]))
    return draft.cast(result, draft.of(node).dtype)


def _share_codes(draft: Draft, scores: str, columns: int | None, masked: bool = True) -> str:
    """Write ``haq.quantization.exact.share_codes`` of scores in float32."""
    axes = draft.constant([-1])
    snap, tallest, whole = (
        draft.constant(value, torch.float32) for value in (SNAP, TALLEST, 1 / SHARE)
    )
    highest = draft.emit("ReduceMax", scores, axes, keepdims=1)
    if masked:
        snapped = draft.emit("Add", draft.emit("Sub", scores, highest), snap)
    else:
        snapped = draft.emit("Add", scores, draft.emit("Sub", snap, highest))
    steps = draft.emit("Sub", snapped, snap)
    powers = draft.emit("Round", draft.emit("Mul", draft.emit("Exp", steps), tallest))
    if columns is not None and columns <= ADDED_UP:
        total = draft.emit("ReduceSum", powers, axes, keepdims=1)
    else:
        wide = draft.emit("ReduceSum", draft.cast(powers, WIDE), axes, keepdims=1)
        total = draft.cast(wide, torch.float32)
    return str(draft.emit("Round", draft.emit("Mul", powers, draft.emit("Div", whole, total))))


def _reduced(kind: str, plain: Rule) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        given, dtype = arguments(node), draft.of(node).dtype
        if not dtype.is_floating_point or (kind == "ReduceMean" and _is_pooling(draft, node)):
            return plain(draft, node)
        rank, dims = draft.of(given["self"]).rank, given.get("dim")
        axes = [dims] if isinstance(dims, int) else dims or range(rank)
        kept, places = int(given.get("keepdim") or 0), [axis_of(axis, rank) for axis in axes]
        x = _wide(draft, given["self"])
        return draft.cast(draft.emit(kind, x, draft.constant(places), keepdims=kept), dtype)

    return rule


def _group_norm(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    return _normalised(draft, node, given["input"], given["num_groups"])


def _normalised(draft: Draft, node: fx.Node, value: fx.Node, groups: int) -> str:
    """Write a norm of groups of channels, whose weights are applied to what comes out."""
    given, dtype = arguments(node), draft.of(node).dtype
    known = draft.of(value)
    flat = draft.emit("Reshape", _wide(draft, value), draft.constant([0, groups, -1]))
    axes = draft.constant([2])
    away = draft.emit("Sub", flat, draft.emit("ReduceMean", flat, axes, keepdims=1))
    power = draft.emit("ReduceMean", draft.emit("Mul", away, away), axes, keepdims=1)
    eps = draft.constant(float(given["eps"]), WIDE)
    whole = draft.emit("Div", away, draft.emit("Sqrt", draft.emit("Add", power, eps)))
    x = draft.emit("Reshape", whole, draft.emit("Shape", draft.tensor(value)))
    column = draft.constant([-1, *[1] * (known.rank - 2)])
    for kind, name in (("Mul", "weight"), ("Add", "bias")):
        if given[name] is not None:
            x = draft.emit(kind, x, draft.emit("Reshape", _wide(draft, given[name]), column))
    return draft.cast(x, dtype)


def _einsum(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    ranks = [draft.of(operand).rank for operand in given["tensors"]]
    equation = products.with_letters(given["equation"], ranks)
    if equation is None:
        return None
    operands = (_wide(draft, operand) for operand in given["tensors"])
    return draft.cast(draft.emit("Einsum", *operands, equation=equation), draft.of(node).dtype)


def _gate(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        if not computed_exactly(node):
            return elementwise.RULES[kind_of(node)](draft, node)
        result = draft.emit(kind, _wide(draft, node.args[0]))
        return draft.cast(result, draft.of(node).dtype)

    return rule


def _in_float64(wide: Rule, plain: Rule | None = None) -> Rule:
    """Return the rule of an operation that is computed in float64, where it is computed exactly.

    Args:
        wide: Writes it so, in the type that its operands are said to have.
        plain: Writes it elsewhere; the same without.
    """

    def rule(draft: Draft, node: fx.Node) -> Any:
        dtype = draft.of(node).dtype
        if not computed_exactly(node) or not dtype.is_floating_point:
            return (plain or wide)(draft, node)
        operands = [one for one in node.all_input_nodes if draft.of(one).dtype.is_floating_point]
        known, names = dict(draft.known), dict(draft.names)
        wide_names = {one: _wide(draft, one) for one in operands}
        draft.names |= wide_names
        draft.known = {
            **known, **{one: Known(known[one].shape, WIDE) for one in (*operands, node)}
        }  # fmt: skip
        try:
            result = wide(draft, node)
        finally:
            draft.known, draft.names = known, names
        return None if result is None else draft.cast(str(result), dtype)

    return rule


def _instance_norm(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    if not given["use_input_stats"]:
        return None
    return _normalised(draft, node, given["input"], draft.of(given["input"]).shape[1] or 0)


_SELU = {"alpha": 1.6732632423543772, "scale": 1.0507009873554805}


def _elu(draft: Draft, node: fx.Node) -> str:
    """Write ELU and its like: scale * (x or, below zero, alpha * (exp(x * input scale) - 1))."""
    given, dtype, kind = arguments(node), draft.of(node).dtype, kind_of(node)
    given = {**given, **(_SELU if kind == "selu" else {})}
    alpha, scale = float(given["alpha"]), float(given.get("scale", 1))
    inner = 1 / alpha if kind == "celu" else float(given.get("input_scale", 1))
    x, zero = draft.tensor(given["self"]), draft.constant(0.0, dtype)
    below = draft.emit("Min", x, zero)
    below = below if inner == 1 else draft.emit("Mul", below, draft.constant(inner, dtype))
    below = draft.emit("Sub", draft.emit("Exp", below), draft.constant(1.0, dtype))
    below = draft.emit("Mul", below, draft.constant(alpha, dtype))
    both = draft.emit("Where", draft.emit("Greater", x, zero), x, below)
    return str(both if scale == 1 else draft.emit("Mul", both, draft.constant(scale, dtype)))


def _softplus_of(draft: Draft, x: str, beta: float, dtype: torch.dtype) -> str:
    """Write log(1 + exp(beta x)) / beta so that nothing overflows."""
    one, zero, factor = (draft.constant(value, dtype) for value in (1.0, 0.0, beta))
    x = x if beta == 1 else draft.emit("Mul", x, factor)
    small = draft.emit("Exp", draft.emit("Neg", draft.emit("Abs", x)))
    rest = draft.emit("Log", draft.emit("Add", small, one))
    result = draft.emit("Add", draft.emit("Max", x, zero), rest)
    return str(result if beta == 1 else draft.emit("Div", result, factor))


def _softplus(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    x = draft.tensor(given["self"])
    return _softplus_of(draft, x, float(given["beta"]), draft.of(node).dtype)


def _mish(draft: Draft, node: fx.Node) -> str:
    x = draft.tensor(node.args[0])
    soft = _softplus_of(draft, x, 1.0, draft.of(node).dtype)
    return str(draft.emit("Mul", x, draft.emit("Tanh", soft)))


def _silu(draft: Draft, node: fx.Node) -> Any:
    if not computed_exactly(node):
        return elementwise.RULES["silu"](draft, node)
    x = _wide(draft, node.args[0])
    return draft.cast(draft.emit("Mul", x, draft.emit("Sigmoid", x)), draft.of(node).dtype)


def _gelu(draft: Draft, node: fx.Node) -> Any:
    """Write a marker of a table, which is that of the quantizer before."""
    grid = grid_of(node.args[0]) if computed_exactly(node) else None  # type: ignore[arg-type]
    if grid is None or not grid.rounding:
        return elementwise.RULES["gelu"](draft, node)
    how = arguments(node)["approximate"]
    more = {"name": grid.rounding, "factor": grid.factor, "approximate": how}
    return draft.emit("table", draft.tensor(node.args[0]), domain=DOMAIN, **more)


def _hardswish(draft: Draft, node: fx.Node) -> Any:
    if not computed_exactly(node):
        return elementwise.RULES["hardswish"](draft, node)
    x, dtype = draft.tensor(node.args[0]), draft.of(node).dtype
    zero, three, six = (draft.constant(value, dtype) for value in (0.0, 3.0, 6.0))
    cut = draft.emit("Clip", draft.emit("Add", x, three), zero, six)
    return draft.emit("Div", draft.emit("Mul", x, cut), six)


def _is_pooling(draft: Draft, node: fx.Node) -> bool:
    """Return whether a mean is that of feature maps with codes, which has an integer kernel."""
    given = arguments(node)
    known = draft.of(given["self"])
    dims = given.get("dim")
    if known.rank != 4 or not isinstance(dims, Sequence) or grid_of(given["self"]) is None:
        return False
    return sorted(axis_of(axis, 4) for axis in dims) == [2, 3]


def _matmul(draft: Draft, node: fx.Node) -> str:
    left, right = node.args[:2]
    grids = grids_of(node)
    width, dtype = draft.of(left).shape[-1], draft.of(node).dtype
    if grids is None or width is None or not fits(grids[0], width):
        product = draft.emit("MatMul", _wide(draft, left), _wide(draft, right))
        return draft.cast(product, dtype)
    sums = draft.emit("MatMul", *map(_whole, [draft] * 2, node.args[:2], grids))
    return _times(draft, sums, grids, draft.of(node).shape[-1])


def _whole(draft: Draft, value: Any, grid: Grid) -> str:
    """Write a marker of the codes of a tensor, as floats; those of shares are written already."""
    x = draft.tensor(value)
    known = {draft.names[node]: codes for node, codes in draft.shares.items()}
    if not grid.rounding and x in known:
        return known[x]
    more = {"name": grid.rounding, "factor": grid.factor}
    return str(draft.emit("whole", x, domain=DOMAIN, **more))  # type: ignore[arg-type]


def _times(
    draft: Draft, sums: str, grids: Sequence[Grid], width: int | None, wide: float = 0.0
) -> str:
    """Write a marker of sums of products of codes times what these are worth."""
    more = {
        "names": [grid.rounding for grid in grids], "factors": [grid.factor for grid in grids],
        "width": width or 0, "scale": wide,
    }  # fmt: skip
    return str(draft.emit("unit", sums, domain=DOMAIN, **more))  # type: ignore[arg-type]


def _attention(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if given.get("enable_gqa"):
        products.repeat_heads(draft, query, key, value)
    width = draft.of(query).shape[-1]
    assert width is not None
    scale = width**-0.5 if given["scale"] is None else float(given["scale"])
    grids = [grid_of(operand) for operand in (query, key, value)]
    scores = _scores(draft, query, key, grids, scale)
    scores, masked = (
        products.masked(draft, scores, given, torch.float32),
        given["attn_mask"] is not None,
    )
    shares = _share_codes(draft, scores, draft.of(key).shape[-2], masked)
    if grids[2] is None:
        real = draft.emit("Mul", draft.cast(shares, WIDE), draft.constant(SHARE, WIDE))
        product = draft.emit("MatMul", real, _wide(draft, value))
        return draft.cast(product, draft.of(node).dtype)
    sums = draft.emit("MatMul", shares, _whole(draft, value, grids[2]))
    return _times(draft, sums, (Grid("", SHARE), grids[2]), draft.of(value).shape[-1])


def _scores(
    draft: Draft, query: fx.Node, key: fx.Node, grids: Sequence[Grid | None], scale: float
) -> str:
    """Write the products of queries and keys, scaled, in float32."""
    order = [*range(draft.of(key).rank)]
    order[-2:] = order[:-3:-1]
    width = draft.of(query).shape[-1] or 0
    left, right = grids[:2]
    if left is None or right is None or not 0 < width <= WIDEST:
        turned = draft.emit("Transpose", _wide(draft, key), perm=order)
        scores = draft.emit("MatMul", _wide(draft, query), turned)
        return draft.cast(draft.emit("Mul", scores, draft.constant(scale, WIDE)), torch.float32)
    turned = draft.emit("Transpose", _whole(draft, key, right), perm=order)
    sums = draft.emit("MatMul", _whole(draft, query, left), turned)
    return _times(draft, sums, (left, right), None, scale)


RULES: Mapping[Any, Rule] = {
    "layer_norm": _layer_norm, "softmax": _softmax, "matmul": _matmul, "bmm": _matmul,
    "mean": _reduced("ReduceMean", reductions.RULES["mean"]),
    "sum": _reduced("ReduceSum", reductions.RULES["sum"]),
    "scaled_dot_product_attention": _attention, "group_norm": _group_norm, "einsum": _einsum,
    "upsample_bilinear2d": _in_float64(sampling.linearly, sampling.RULES["upsample_bilinear2d"]),
    "sigmoid": _gate("Sigmoid"), "tanh": _gate("Tanh"), "exp": _gate("Exp"), "silu": _silu,
    "gelu": _gelu, "hardswish": _hardswish, "instance_norm": _instance_norm,
    **{name: _in_float64(reductions.RULES[name])
       for name in ("cumsum", "linalg_vector_norm", "logsumexp", "norm", "std", "var")},
    **{name: _in_float64(elementwise.RULES[name])
       for name in ("_log_softmax", "cos", "log", "log_softmax", "pow", "sin")},
    **{name: _in_float64(products.RULES[name]) for name in ("bilinear", "rms_norm")},
    **{name: _in_float64(sampling.RULES[name]) for name in ("cdist", "cosine_similarity")},
    **{name: _in_float64(sampling.linearly, sampling.RULES[name])
       for name in ("upsample_linear1d", "upsample_trilinear3d")},
    **{name: _in_float64(_elu) for name in ("celu", "elu", "selu")},
    "softplus": _in_float64(_softplus), "mish": _in_float64(_mish),
}  # fmt: skip
"""As in ``elementwise``."""
