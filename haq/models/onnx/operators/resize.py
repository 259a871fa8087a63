"""Resize: images of other sizes, by the nearest value or between values."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from haq.models.onnx.node import Node, Run

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}

_ROUNDED: Mapping[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def _resize(node: Node) -> Run:
    node.only(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")
    mode = node.get("mode", "nearest")
    transformation = node.get("coordinate_transformation_mode", "half_pixel")
    before = node.shape()
    sizes, scales = _sizes(node, before, node.constant(2))
    if sizes[:2] != before[:2] or not 3 <= len(before) <= 5:
        raise node.refused(f"it resizes {before} to {sizes}")
    if mode == "nearest":
        return _nearest(node, transformation, before, sizes, scales)
    exact = all(s * b == n for s, b, n in zip(scales, before, sizes, strict=True))
    aligned = transformation == "align_corners"
    plain = transformation == "half_pixel" or (
        transformation == "pytorch_half_pixel" and min(sizes[2:]) > 1
    )
    if mode == "linear" and (aligned or (plain and exact)):
        return lambda x, *_: functional.interpolate(
            x, sizes[2:], mode=_LINEAR[x.dim()], align_corners=aligned
        )
    usual = abs(node.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6
    if mode == "cubic" and usual and len(before) == 4 and (aligned or (plain and exact)):
        return lambda x, *_: functional.interpolate(
            x, sizes[2:], mode="bicubic", align_corners=aligned
        )
    raise node.refused(f"mode={mode} with coordinate_transformation_mode={transformation}")


def _sizes(node: Node, before: list[int], scales: Any) -> tuple[list[int], list[float]]:
    """Return the size and the scale of every axis."""
    axes = node.get("axes") or list(range(len(before)))
    sizes, factors = list(before), [1.0] * len(before)
    if scales is not None and scales.size:
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            sizes[axis], factors[axis] = int(np.floor(before[axis] * scale)), scale
    else:
        wanted = node.sizes(3)
        for axis, size in zip(axes, wanted, strict=True):
            sizes[axis] = size if isinstance(size, int) else before[axis]
            factors[axis] = sizes[axis] / before[axis]
    node.constant(1)
    return sizes, factors


def _nearest(
    node: Node, transformation: str, before: list[int], sizes: list[int], scales: list[float]
) -> Run:
    rounded = _ROUNDED[node.get("nearest_mode", "round_prefer_floor")]
    places = []
    for old, new, scale in zip(before[2:], sizes[2:], scales[2:], strict=True):
        x = np.arange(new, dtype=np.float64)
        if transformation == "asymmetric":
            x = x / scale
        elif transformation in ("half_pixel", "pytorch_half_pixel"):
            single = transformation == "pytorch_half_pixel" and new == 1
            x = x * 0 if single else (x + 0.5) / scale - 0.5
        elif transformation == "align_corners":
            x = x * (old - 1) / max(new - 1, 1)
        else:
            raise node.refused(f"coordinate_transformation_mode={transformation}")
        # float32, as ONNX Runtime computes the places
        places.append(np.clip(rounded(x.astype(np.float32)), 0, old - 1).astype(np.int64).tolist())
    pairs = list(zip(before[2:], sizes[2:], strict=True))
    if all(new % old == 0 for old, new in pairs) and places == [
        [place * old // new for place in range(new)] for old, new in pairs
    ]:
        return lambda x, *_: functional.interpolate(x, sizes[2:], mode="nearest")

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis, chosen in enumerate(places, 2):
            x = x.index_select(axis, torch.tensor(chosen))
        return x

    return run


OPERATORS: Mapping[str, Callable[[Node], Run]] = {"Resize": _resize}
