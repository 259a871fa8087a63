"""Products, normalisations and resampling that are no layers."""

from collections.abc import Mapping
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


def _einsum(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    equation = given["equation"].replace(" ", "")
    if "..." in equation:
        return None
    return draft.emit("Einsum", *map(draft.tensor, given["tensors"]), equation=equation)


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
    dtype, mask = draft.of(node).dtype, given["attn_mask"]
    if given["is_causal"] or given.get("enable_gqa"):
        return None
    width = draft.of(query).shape[-1]
    assert width is not None
    scale = width**-0.5 if given["scale"] is None else given["scale"]
    order = [*range(draft.of(key).rank)]
    order[-2:] = order[:-3:-1]
    turned = draft.emit("Transpose", draft.tensor(key), perm=order)
    scores = draft.emit("MatMul", draft.tensor(query), turned)
    scores = draft.emit("Mul", scores, draft.constant(scale, dtype))
    if mask is not None:
        scores = _masked(draft, scores, mask, dtype)
    return draft.emit("MatMul", draft.emit("Softmax", scores, axis=-1), draft.tensor(value))


def _masked(draft: Draft, scores: str, mask: fx.Node, dtype: torch.dtype) -> str:
    if draft.of(mask).dtype == torch.bool:
        least = draft.constant(-3e38, dtype)
        return str(draft.emit("Where", draft.tensor(mask), scores, least))
    return str(draft.emit("Add", scores, draft.tensor(mask, dtype)))


def _resize(mode: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        value = given.get("input", given.get("self"))
        sizes = draft.of(node).shape[2:]
        if any(size is None for size in sizes):
            return None
        corners = bool(given.get("align_corners"))
        place = "asymmetric" if mode == "nearest" else "half_pixel"
        before = draft.of(value).shape[2:]
        scales = [new / old for new, old in zip(sizes, before, strict=True)]  # type: ignore[operator]
        if any(given.get(name) for name in ("scale_factors", "scales_h", "scales_w")):
            asked = given.get("scale_factors") or [given["scales_h"], given["scales_w"]]
            if [float(one or 0) for one in asked] != scales:
                return None
        shape = draft.emit(
            "Concat", draft.emit("Shape", draft.tensor(value), end=2), draft.constant(list(sizes)),
            axis=0,
        )  # fmt: skip
        return draft.emit(
            "Resize", draft.tensor(value), "", "", shape, mode=mode,
            coordinate_transformation_mode="align_corners" if corners else place,
            nearest_mode="floor" if mode == "nearest" else None,
            cubic_coeff_a=-0.75 if mode == "cubic" else None,
        )  # fmt: skip

    return rule


RULES: Mapping[Any, Rule] = {
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "addmm": _addmm, "baddbmm": _addmm,
    "linear": _linear, "einsum": _einsum, "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    "group_norm": _group_norm, "batch_norm": _batch_norm, "instance_norm": _instance_norm,
    "conv1d": _convolution, "conv2d": _convolution, "conv3d": _convolution,
    "scaled_dot_product_attention": _attention, "upsample_nearest2d": _resize("nearest"),
    "upsample_nearest1d": _resize("nearest"), "upsample_bilinear2d": _resize("linear"),
    "upsample_bicubic2d": _resize("cubic"), "upsample_linear1d": _resize("linear"),
}  # fmt: skip
"""As in ``elementwise``."""
