"""Operations that take values from other places of a feature map: windows, grids, neighbours."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation.draft import Draft, arguments, axis_of
from haq.formats.onnx.translation.elementwise import Rule


def resize(mode: str) -> Rule:
    """Return the rule of a resampling to a size that does not vary."""

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


def linearly(draft: Draft, node: fx.Node) -> Any:
    """Write a linear resampling as a product with a matrix along each axis, in a node's type."""
    given, dtype = arguments(node), draft.of(node).dtype
    before, after = draft.of(given["input"]).shape[2:], draft.of(node).shape[2:]
    scales = given["scale_factors"] or (None,) * len(before)
    x, rank = draft.tensor(given["input"]), draft.of(node).rank
    for axis, (old, new, scale) in enumerate(zip(before, after, scales, strict=True), start=2):
        if old is None or new is None:
            return None
        unit = torch.eye(old, dtype=torch.float64)[None]  # (1, old, old)
        corners = bool(given["align_corners"])
        matrix = torch.ops.aten.upsample_linear1d(unit, [new], corners, scale)[0]  # (old, new)
        if axis == rank - 2:
            x = draft.emit("MatMul", draft.constant(matrix.T.numpy(), dtype), x)
            continue
        held, order = draft.constant(matrix.numpy(), dtype), list(range(rank))
        order[axis], order[-1] = order[-1], order[axis]
        x = x if axis == rank - 1 else draft.emit("Transpose", x, perm=order)
        x = draft.emit("MatMul", x, held)
        x = x if axis == rank - 1 else draft.emit("Transpose", x, perm=order)
    return x


def _windows(draft: Draft, node: fx.Node) -> Any:
    """Write windows of images as one slice for each place in a window."""
    given = arguments(node)
    channels, *sizes = draft.of(given["self"]).shape[1:]
    if draft.of(given["self"]).rank != 4 or None in (channels, *sizes):
        return None
    kernel, stride, padding, dilation = (
        given[name] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    x = draft.tensor(given["self"])
    if any(padding):
        x = draft.emit("Pad", x, draft.constant([0, 0, *padding, 0, 0, *padding]))
    counts = [
        (size + 2 * pad - apart * (length - 1) - 1) // step + 1
        for size, pad, apart, length, step in zip(
            sizes, padding, dilation, kernel, stride, strict=True
        )
    ]
    parts = []
    for place in product(*map(range, kernel)):
        starts = [at * apart for at, apart in zip(place, dilation, strict=True)]
        ends = [
            start + (count - 1) * step + 1
            for start, count, step in zip(starts, counts, stride, strict=True)
        ]
        cut = draft.emit("Slice", x, *map(draft.constant, (starts, ends, [2, 3], [*stride])))
        parts.append(draft.emit("Unsqueeze", cut, draft.constant([2])))
    both = draft.emit("Concat", *parts, axis=2)  # (N, channels, places, rows, columns)
    shape = [0, (channels or 0) * len(parts), counts[0] * counts[1]]
    flat = draft.emit("Reshape", both, draft.constant([0, shape[1], *counts]))
    return draft.emit("Reshape", flat, draft.constant(shape))


def _grid(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    if draft.of(given["input"]).rank != 4:
        return None
    modes, paddings = ("linear", "nearest", "cubic"), ("zeros", "border", "reflection")
    return draft.emit(
        "GridSample", draft.tensor(given["input"]), draft.tensor(given["grid"]),
        mode=modes[given["interpolation_mode"]], padding_mode=paddings[given["padding_mode"]],
        align_corners=int(given["align_corners"]),
    )  # fmt: skip


def _largest(draft: Draft, node: fx.Node) -> Any:
    """Write the largest or least values along an axis, or all of them, with their places."""
    given, known = arguments(node), draft.of(arguments(node)["self"])
    axis = axis_of(given["dim"], known.rank)
    count = given.get("k", known.shape[axis])
    if not isinstance(count, int):
        return None
    first = given.get("largest", given.get("descending", False))
    results = draft.emit(
        "TopK", draft.tensor(given["self"]), draft.constant([count]), outputs=2, axis=axis,
        largest=int(first), sorted=1,
    )  # fmt: skip
    return results[1] if "argsort" in str(node.target) else results


def _pixel_shuffle(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    size = given["upscale_factor"]
    return str(draft.emit("DepthToSpace", draft.tensor(given["self"]), blocksize=size, mode="CRD"))


def _pixel_unshuffle(draft: Draft, node: fx.Node) -> str:
    """Move pixels into channels; SpaceToDepth puts the channels in another order."""
    given = arguments(node)
    size = given["downscale_factor"]
    _, channels, rows, columns = draft.of(given["self"]).shape
    if None in (channels, rows, columns):
        raise NotImplementedError
    assert channels and rows and columns
    apart = [0, channels, rows // size, size, columns // size, size]
    x = draft.emit("Reshape", draft.tensor(given["self"]), draft.constant(apart))
    x = draft.emit("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
    together = [0, channels * size * size, rows // size, columns // size]
    return str(draft.emit("Reshape", x, draft.constant(together)))


def _channel_shuffle(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    channels, *sizes = draft.of(given["self"]).shape[1:]
    if channels is None or None in sizes:
        return None
    apart = [0, given["groups"], channels // given["groups"], *sizes]
    x = draft.emit("Reshape", draft.tensor(given["self"]), draft.constant(apart))
    x = draft.emit("Transpose", x, perm=[0, 2, 1, *range(3, 3 + len(sizes))])
    return draft.emit("Reshape", x, draft.constant([0, channels, *sizes]))


def _distances(draft: Draft, node: fx.Node) -> Any:
    """Write the distances of all rows of a tensor from all rows of another."""
    given = arguments(node)
    one = draft.emit("Unsqueeze", draft.tensor(given["x1"]), draft.constant([-2]))
    other = draft.emit("Unsqueeze", draft.tensor(given["x2"]), draft.constant([-3]))
    kind = {2.0: "ReduceL2", 1.0: "ReduceL1"}[given["p"]]
    return draft.emit(kind, draft.emit("Sub", one, other), draft.constant([-1]), keepdims=0)


def _cosine(draft: Draft, node: fx.Node) -> Any:
    given, dtype = arguments(node), draft.of(node).dtype
    both = [draft.tensor(given[name]) for name in ("x1", "x2")]
    at = draft.constant([int(given["dim"])])
    sums = draft.emit("ReduceSum", draft.emit("Mul", *both), at, keepdims=0)
    least = draft.constant(float(given["eps"]), dtype)
    norms = [draft.emit("Max", draft.emit("ReduceL2", one, at, keepdims=0), least) for one in both]
    return draft.emit("Div", sums, draft.emit("Mul", *norms))


RULES: Mapping[Any, Rule] = {
    "upsample_nearest1d": resize("nearest"), "upsample_nearest2d": resize("nearest"),
    "upsample_nearest3d": resize("nearest"), "upsample_linear1d": resize("linear"),
    "upsample_bilinear2d": resize("linear"), "upsample_trilinear3d": resize("linear"),
    "upsample_bicubic2d": resize("cubic"), "im2col": _windows, "grid_sampler": _grid,
    "grid_sampler_2d": _grid, "topk": _largest, "sort": _largest, "argsort": _largest,
    "channel_shuffle": _channel_shuffle, "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle, "cdist": _distances, "cosine_similarity": _cosine,
}  # fmt: skip
"""As in ``elementwise``."""
