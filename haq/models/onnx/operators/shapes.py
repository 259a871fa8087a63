"""Operators that move, choose, repeat or join values."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.models.onnx.node import Linear, Module, Node, Run, Size, Sized


def _reshape(node: Node) -> Sized:
    sizes = node.sizes(1)
    if 0 in sizes and node.get("allowzero", 0):
        raise node.refused("allowzero with a size of 0")

    def run(sizes: list[Any], x: Tensor, *_: Any) -> Tensor:
        return x.reshape(
            [x.shape[n] if type(s) is int and s == 0 else s for n, s in enumerate(sizes)]
        )

    return Sized(_with_rest(node, sizes), run)


def _with_rest(node: Node, sizes: list[Size]) -> list[Size]:
    """Return sizes in which the batch is -1 if nothing else is: torch divides by no symbol then."""
    if -1 in sizes:
        return sizes
    growing = [place for place, size in enumerate(sizes) if isinstance(size, Linear)]
    if len(growing) == 1:
        return [-1 if place == growing[0] else size for place, size in enumerate(sizes)]
    return sizes


def _flatten(node: Node) -> Run:
    axis = node.get("axis", 1)
    axis = axis + node.rank() if axis < 0 else axis
    if axis == 0:
        return lambda x: x.reshape(1, -1)
    if axis == node.rank():
        return lambda x: x.reshape(-1, 1)
    return lambda x: x.flatten(axis).flatten(0, axis - 1)


def _transpose(node: Node) -> Run:
    order = node.get("perm") or list(range(node.rank()))[::-1]
    return lambda x: x.permute(order)


def _axes(node: Node, place: int = 1) -> list[int] | None:
    return node.ints(place) if node.has(place) else node.get("axes")


def _squeeze(node: Node) -> Run:
    axes = _axes(node)
    if axes is None:
        axes = [axis for axis, size in enumerate(node.shape()) if size == 1]
    places = sorted((axis % node.rank() for axis in axes), reverse=True)

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis in places:
            x = x.squeeze(axis)
        return x

    return run


def _unsqueeze(node: Node) -> Run:
    axes = _axes(node) or []
    places = sorted(axis % (node.rank() + len(axes)) for axis in axes)

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis in places:
            x = x.unsqueeze(axis)
        return x

    return run


def _concat(node: Node) -> Run:
    axis = node.get("axis", 0)
    return lambda *operands: torch.cat(operands, axis)


def _split(node: Node) -> Run:
    axis = node.get("axis", 0)
    sizes = node.ints(1)
    if sizes is None:
        parts, whole = len(node.outputs), node.shape()[axis]
        each = -(-whole // parts)
        sizes = [each] * (parts - 1) + [whole - each * (parts - 1)]
    return lambda x, *_: torch.split(x, sizes, axis)


def _slice(node: Node) -> Run:
    starts, ends, axes, steps = (node.ints(place) for place in (1, 2, 3, 4))
    assert starts is not None and ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    cuts = list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))
    shape = node.shape()

    def run(x: Tensor, *_: Any) -> Tensor:
        for axis, start, end, step in cuts:
            if step > 0:
                bounds = slice(start, None if end >= 2**31 - 1 else end, step)
                x = x[(slice(None),) * (axis % x.dim()) + (bounds,)]
            else:
                places = list(
                    range(shape[axis])[start : None if end < -shape[axis] else end : step]
                )
                x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
        return x

    return run


def _gather(node: Node) -> Run | Module:
    axis = node.get("axis", 0)
    if node.is_constant(0) and node.rank(0) == 2 and axis == 0 and not node.is_constant(1):
        return _embedding(node)
    if node.is_constant(1) and not node.is_constant(0):
        places = node.constant(1)
        assert places is not None
        size = node.shape()[axis]
        whole = [int(p) % size for p in places.reshape(-1)]
        fixed = np.array(whole).reshape(places.shape)
        if places.ndim == 0:
            return lambda x, *_: x.select(axis, whole[0])
        if whole == list(range(whole[0], whole[0] + len(whole))) and places.ndim == 1:
            return lambda x, *_: x.narrow(axis, whole[0], len(whole))
    before = node.rank(0)

    def run(x: Tensor, index: Any = None, *_: Any) -> Tensor:
        if index is None:
            index = torch.from_numpy(fixed)
        index = index.long()
        index = torch.where(index < 0, index + x.shape[axis], index)
        chosen = x.index_select(axis, index.reshape(-1))
        place = axis % before
        return chosen.reshape(*x.shape[:place], *index.shape, *x.shape[place + 1 :])

    return run


def _embedding(node: Node) -> Module:
    table = node.constant(0)
    assert table is not None
    module = nn.Embedding(table.shape[0], table.shape[1], device="meta")

    def run(module: nn.Module, _: Any, index: Tensor) -> Any:
        return module(index)

    return Module(module, {"weight": (table, (node.inputs[0],))}, run)


def _gather_elements(node: Node) -> Run:
    axis = node.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        index = index.long()
        return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))

    return run


def _expand(node: Node) -> Sized:
    def run(sizes: list[Any], x: Tensor, *_: Any) -> Tensor:
        missing = len(sizes) - x.dim()
        own = [1] * missing + list(x.shape)
        last = sizes[len(sizes) - len(own) :]
        wanted = [o if type(s) is int and s == 1 else s for s, o in zip(last, own, strict=True)]
        return x.expand([*sizes[: -len(own)], *wanted])

    return Sized(node.sizes(1), run)


def _tile(node: Node) -> Run:
    repeats = node.ints(1)
    return lambda x, *_: x.repeat(repeats)


def _pad(node: Node) -> Run:
    pads, filling = node.ints(1), node.number(2, 0.0)
    mode = node.get("mode", "constant")
    axes = node.ints(3)
    rank = node.rank()
    assert pads is not None
    ends = [(0, 0)] * rank
    for place, axis in enumerate(range(rank) if axes is None else axes):
        ends[axis % rank] = (pads[place], pads[place + len(pads) // 2])
    flat = [size for pair in reversed(ends) for size in pair]
    if mode == "constant":
        return lambda x, *_: functional.pad(x, flat, value=filling)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    still = next((n for n, pair in enumerate(ends) if pair != (0, 0)), rank)
    if mode not in names or rank - still > 3 or min(flat) < 0:
        raise node.refused(f"mode={mode} over {rank - still} axes")
    keep = flat[: 2 * (rank - still)]

    def run(x: Tensor, *_: Any) -> Tensor:
        # torch pads the last axes of a tensor that has one or two axes more.
        rows = x.flatten(0, still - 2) if still > 2 else x
        rows = rows[(None,) * max(2 - still, 0)]
        padded = functional.pad(rows, keep, mode=names[mode])
        padded = padded[(0,) * max(2 - still, 0)]
        return padded.unflatten(0, x.shape[: still - 1]) if still > 2 else padded

    return run


def _depth_to_space(node: Node) -> Run:
    block, mode = node.get("blocksize"), node.get("mode", "DCR")
    if mode == "CRD":
        return lambda x: functional.pixel_shuffle(x, block)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // block**2, h * block, w * block)

    return run


def _space_to_depth(node: Node) -> Run:
    block = node.get("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    return run


def _shape(node: Node) -> Run:
    start, end = node.get("start", 0), node.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def _one_hot(node: Node) -> Run:
    depth, ends, axis = node.number(1), node.constant(2), node.get("axis", -1)
    assert depth is not None and ends is not None
    off, on = ends.reshape(-1).tolist()
    kind = torch.float32 if ends.dtype.kind == "f" else torch.int64

    def run(index: Tensor, *_: Any) -> Tensor:
        index = index.long()
        places = torch.where(index < 0, index + int(depth), index).unsqueeze(axis)
        shape = [1] * places.dim()
        shape[axis] = int(depth)
        hit = places == torch.arange(int(depth)).reshape(shape)
        return torch.where(hit, on, off).to(kind)

    return run


def _trilu(node: Node) -> Run:
    diagonal = int(node.number(1, 0) or 0)
    upper = node.get("upper", 1)
    return lambda x, *_: torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


OPERATORS: Mapping[str, Callable[[Node], Run | Sized | Module]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
