"""Products, normalisations and resampling that are no layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from haq.formats.onnx.translation.draft import Draft, arguments
from haq.formats.onnx.translation.elementwise import Rule


def _matmul(draft: Draft, node: fx.Node) -> str:
    left, right = (draft.tensor(value) for value in tuple(arguments(node).values())[:2])
    return str(draft.emit("MatMul", left, right))


def _addmm(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    dtype = draft.of(node).dtype
    names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
    product = draft.emit("MatMul", *(draft.tensor(given[name]) for name in names))
    if given["alpha"] != 1:
        product = draft.emit("Mul", product, draft.constant(given["alpha"], dtype))
    if given["beta"] == 0:
        return str(product)
    added = draft.tensor(given["self"])
    if given["beta"] != 1:
        added = draft.emit("Mul", added, draft.constant(given["beta"], dtype))
    return str(draft.emit("Add", added, product))


def _linear(draft: Draft, node: fx.Node) -> str:
    """Write a product with a matrix that is computed, such as another activation."""
    given = arguments(node)
    turned = draft.emit("Transpose", draft.tensor(given["weight"]), perm=[1, 0])
    product = draft.emit("MatMul", draft.tensor(given["input"]), turned)
    if given.get("bias") is None:
        return str(product)
    return str(draft.emit("Add", product, draft.tensor(given["bias"])))


def _bilinear(draft: Draft, node: fx.Node) -> str:
    """Write sums over all pairs of two rows as a product with the pairs in a row."""
    given = arguments(node)
    one, other = draft.tensor(given["input1"]), draft.tensor(given["input2"])
    left = draft.emit("Unsqueeze", one, draft.constant([-1]))
    pairs = draft.emit("Mul", left, draft.emit("Unsqueeze", other, draft.constant([-2])))
    known = draft.of(given["weight"])
    outputs, rows, columns = (size or 0 for size in known.shape)
    rank = draft.of(node).rank
    flat = draft.emit("Reshape", pairs, draft.constant([*[0] * (rank - 1), rows * columns]))
    weight = draft.emit(
        "Reshape", draft.tensor(given["weight"]), draft.constant([outputs, rows * columns])
    )
    product = draft.emit("MatMul", flat, draft.emit("Transpose", weight, perm=[1, 0]))
    if given["bias"] is None:
        return str(product)
    return str(draft.emit("Add", product, draft.tensor(given["bias"])))


def with_letters(equation: str, ranks: Sequence[int]) -> str | None:
    """Return an equation with letters for its ellipses; None where these differ in length.

    >>> with_letters("...i, ...j -> ...", [3, 3])
    'ABi,ABj->AB'
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    lengths = {
        rank - len(term.replace("...", ""))
        for term, rank in zip(terms.split(","), ranks, strict=True) if "..." in term
    }  # fmt: skip
    if len(lengths) > 1:
        return None
    letters = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    stands = "".join(letters[: max(lengths, default=0)])
    plain = terms.replace("...", stands)
    return f"{plain}->{result.replace('...', stands)}" if "->" in equation else plain


def _einsum(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    tensors = given["tensors"]
    equation = with_letters(given["equation"], [draft.of(one).rank for one in tensors])
    return equation and draft.emit("Einsum", *map(draft.tensor, tensors), equation=equation)


def _layer_norm(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    x, known = given["input"], draft.of(given["input"])
    shape = given["normalized_shape"]
    weight, bias = given.get("weight"), given.get("bias")
    scale = draft.constant(np.ones(shape), known.dtype) if weight is None else draft.tensor(weight)
    inputs = [draft.tensor(x), scale, *([] if bias is None else [draft.tensor(bias)])]
    return str(
        draft.emit("LayerNormalization", *inputs, axis=-len(shape), epsilon=float(given["eps"]))
    )


def _rms_norm(draft: Draft, node: fx.Node) -> Any:
    given, dtype = arguments(node), draft.of(node).dtype
    x = draft.tensor(given["input"])
    axes = draft.constant([-1 - n for n in range(len(given["normalized_shape"]))])
    eps = torch.finfo(dtype).eps if given["eps"] is None else given["eps"]
    power = draft.emit("ReduceMean", draft.emit("Mul", x, x), axes, keepdims=1)
    root = draft.emit("Sqrt", draft.emit("Add", power, draft.constant(eps, dtype)))
    x = draft.emit("Div", x, root)
    return x if given["weight"] is None else draft.emit("Mul", x, draft.tensor(given["weight"]))


def _group_norm(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    value = given.get("input", given.get("self"))
    known, groups = draft.of(value), given["num_groups"]
    channels = known.shape[1]
    assert channels is not None
    flat = draft.emit("Reshape", draft.tensor(value), draft.constant([0, groups, -1]))
    axes = draft.constant([2])
    away = draft.emit("Sub", flat, draft.emit("ReduceMean", flat, axes, keepdims=1))
    power = draft.emit("ReduceMean", draft.emit("Mul", away, away), axes, keepdims=1)
    eps = draft.constant(given["eps"], known.dtype)
    whole = draft.emit("Div", away, draft.emit("Sqrt", draft.emit("Add", power, eps)))
    x = draft.emit("Reshape", whole, draft.emit("Shape", draft.tensor(value)))
    column = draft.constant([channels, *[1] * (known.rank - 2)])
    for kind, name in (("Mul", "weight"), ("Add", "bias")):
        if given[name] is not None:
            x = draft.emit(kind, x, draft.emit("Reshape", draft.tensor(given[name]), column))
    return x


def _batch_norm(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    value = given["input"]
    channels, kind = draft.of(value).shape[1], draft.of(value).dtype
    if given["running_mean"] is None:
        return None  # with the statistics of each batch
    parts = [
        draft.constant(np.full(channels or 1, default), kind)
        if given[name] is None
        else draft.tensor(given[name])
        for name, default in (
            ("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0),
        )
    ]  # fmt: skip
    return draft.emit(
        "BatchNormalization", draft.tensor(value), *parts, epsilon=float(given["eps"])
    )


def _instance_norm(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    value = given["input"]
    channels, kind = draft.of(value).shape[1], draft.of(value).dtype
    if not given["use_input_stats"]:
        return None
    parts = [
        draft.constant(np.full(channels or 1, default), kind)
        if given[name] is None
        else draft.tensor(given[name])
        for name, default in (("weight", 1.0), ("bias", 0.0))
    ]
    return draft.emit(
        "InstanceNormalization", draft.tensor(value), *parts, epsilon=float(given["eps"])
    )


def _convolution(draft: Draft, node: fx.Node) -> Any:
    """Write a convolution whose weights are computed from the input."""
    given = arguments(node)
    axes = draft.of(given["input"]).rank - 2
    padding = given["padding"]
    if isinstance(padding, str) or given.get("transposed"):
        return None
    spread = [*padding] * (axes // len(padding))
    inputs = [draft.tensor(given[name]) for name in ("input", "weight", "bias") if given[name]]
    return draft.emit(
        "Conv", *inputs, pads=[*spread, *spread], strides=[*given["stride"]],
        dilations=[*given["dilation"]], group=given["groups"],
    )  # fmt: skip


def _attention(draft: Draft, node: fx.Node) -> Any:
    """Write attention as the products and the softmax that it consists of."""
    given = arguments(node)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    dtype = draft.of(node).dtype
    if given.get("enable_gqa"):
        repeat_heads(draft, query, key, value)
    width = draft.of(query).shape[-1]
    assert width is not None
    scale = width**-0.5 if given["scale"] is None else given["scale"]
    order = [*range(draft.of(key).rank)]
    order[-2:] = order[:-3:-1]
    turned = draft.emit("Transpose", draft.tensor(key), perm=order)
    scores = draft.emit("MatMul", draft.tensor(query), turned)
    scores = draft.emit("Mul", scores, draft.constant(scale, dtype))
    scores = masked(draft, scores, given, dtype)
    return draft.emit("MatMul", draft.emit("Softmax", scores, axis=-1), draft.tensor(value))


def masked(draft: Draft, scores: str, given: Mapping[str, Any], dtype: torch.dtype) -> str:
    """Write the scores of attention with what shuts out places, if there is something."""
    mask, least = given["attn_mask"], draft.constant(-1e30, dtype)
    if given["is_causal"]:
        rows, columns = (
            draft.emit("Shape", draft.tensor(given[name]), start=-2, end=-1)
            for name in ("query", "key")
        )
        shape = draft.emit("Concat", rows, columns, axis=0)
        every = draft.emit("Expand", draft.constant(1.0, torch.float32), shape)
        seen = draft.cast(draft.emit("Trilu", every, upper=0), torch.bool)
        return str(draft.emit("Where", seen, scores, least))
    if mask is None:
        return scores
    if draft.of(mask).dtype == torch.bool:
        return str(draft.emit("Where", draft.tensor(mask), scores, least))
    return str(draft.emit("Add", scores, draft.tensor(mask, dtype)))


def repeat_heads(draft: Draft, query: fx.Node, *shared: fx.Node) -> None:
    """Let heads of keys and values that several heads of queries read stand for each of these."""
    heads = draft.of(query).shape[-3]
    for node in dict.fromkeys(shared):
        known = draft.of(node)
        own = known.shape[-3]
        if heads is None or own is None or known.rank != 4 or known.shape[-1] is None:
            raise NotImplementedError
        x = draft.emit("Unsqueeze", draft.tensor(node), draft.constant([2]))
        x = draft.emit("Tile", x, draft.constant([1, 1, heads // own, 1, 1]))
        # Rows may vary: their number is worked out.
        sizes = [0, heads, -1, known.shape[-1]]
        draft.names[node] = draft.emit("Reshape", x, draft.constant(sizes))


RULES: Mapping[Any, Rule] = {
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "addmm": _addmm, "baddbmm": _addmm,
    "linear": _linear, "bilinear": _bilinear, "einsum": _einsum,
    "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    "group_norm": _group_norm, "batch_norm": _batch_norm, "instance_norm": _instance_norm,
    "conv1d": _convolution, "conv2d": _convolution, "conv3d": _convolution,
    "scaled_dot_product_attention": _attention,
}  # fmt: skip
"""As in ``elementwise``."""
