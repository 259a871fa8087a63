"""Float operations as ``haq.quantization.exact`` computes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation import elementwise, products, reductions
from haq.formats.onnx.translation.draft import Draft, arguments, axis_of
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
    """Write it as a norm of groups of channels, whose weights are applied to what comes out."""
    given = arguments(node)
    value, groups, dtype = given["input"], given["num_groups"], draft.of(node).dtype
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
    equation = given["equation"].replace(" ", "")
    if "..." in equation:
        return None
    operands = (_wide(draft, operand) for operand in given["tensors"])
    return draft.cast(draft.emit("Einsum", *operands, equation=equation), draft.of(node).dtype)


def _bilinear(draft: Draft, node: fx.Node) -> Any:
    """Write a resampling as a product with a matrix along each axis: Resize has no float64."""
    if not computed_exactly(node):
        return products.RULES["upsample_bilinear2d"](draft, node)
    given, dtype = arguments(node), draft.of(node).dtype
    before, after = draft.of(given["input"]).shape[2:], draft.of(node).shape[2:]
    scales = given["scale_factors"] or (None, None)
    x = _wide(draft, given["input"])
    for axis, (old, new, scale) in enumerate(zip(before, after, scales, strict=True)):
        if old is None or new is None:
            return None
        unit = torch.eye(old, dtype=WIDE)[None]  # (1, old, old)
        corners = bool(given["align_corners"])
        matrix = torch.ops.aten.upsample_linear1d(unit, [new], corners, scale)[0]  # (old, new)
        held = draft.constant((matrix if axis else matrix.T).numpy(), WIDE)
        x = draft.emit("MatMul", *((x, held) if axis else (held, x)))
    return draft.cast(x, dtype)


def _gate(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        if not computed_exactly(node):
            return elementwise.RULES[kind_of(node)](draft, node)
        result = draft.emit(kind, _wide(draft, node.args[0]))
        return draft.cast(result, draft.of(node).dtype)

    return rule


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
        return None
    width = draft.of(query).shape[-1]
    assert width is not None
    scale = width**-0.5 if given["scale"] is None else float(given["scale"])
    grids = [grid_of(operand) for operand in (query, key, value)]
    scores = _scores(draft, query, key, grids, scale)
    scores, masked = _masked(draft, scores, given), given["attn_mask"] is not None
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


def _masked(draft: Draft, scores: str, given: Mapping[str, Any]) -> str:
    mask = given["attn_mask"]
    if given["is_causal"]:
        rows, columns = (
            draft.emit("Shape", draft.tensor(given[name]), start=-2, end=-1)
            for name in ("query", "key")
        )
        shape = draft.emit("Concat", rows, columns, axis=0)
        every = draft.emit("Expand", draft.constant(1.0, torch.float32), shape)
        seen = draft.cast(draft.emit("Trilu", every, upper=0), torch.bool)
        return str(draft.emit("Where", seen, scores, draft.constant(-1e30, torch.float32)))
    if mask is None:
        return scores
    if draft.of(mask).dtype == torch.bool:
        least = draft.constant(-1e30, torch.float32)
        return str(draft.emit("Where", draft.tensor(mask), scores, least))
    return str(draft.emit("Add", scores, draft.tensor(mask, torch.float32)))


RULES: Mapping[Any, Rule] = {
    "layer_norm": _layer_norm, "softmax": _softmax, "matmul": _matmul, "bmm": _matmul,
    "mean": _reduced("ReduceMean", reductions.RULES["mean"]),
    "sum": _reduced("ReduceSum", reductions.RULES["sum"]),
    "scaled_dot_product_attention": _attention, "group_norm": _group_norm, "einsum": _einsum,
    "upsample_bilinear2d": _bilinear,
    "sigmoid": _gate("Sigmoid"), "tanh": _gate("Tanh"), "exp": _gate("Exp"), "silu": _silu,
    "gelu": _gelu,
    "hardswish": _hardswish,
}  # fmt: skip
"""As in ``elementwise``."""
