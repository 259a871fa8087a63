"""Operations that move, choose and repeat values."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation.draft import LAST, Draft, Known, arguments, axis_of
from haq.formats.onnx.translation.elementwise import Rule


def _shape(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    shape = next(given[name] for name in ("shape", "size") if name in given)
    return str(draft.emit("Reshape", draft.tensor(given["self"]), draft.sizes(shape)))


def _reshape(draft: Draft, x: str, node: fx.Node) -> str:
    """Bring a tensor to the shape of a node's value, of which one axis at most varies."""
    shape = draft.of(node).shape
    if sum(size is None for size in shape) > 1:
        raise NotImplementedError
    sizes = [-1 if size is None else size for size in shape]
    return str(draft.emit("Reshape", x, draft.constant(sizes)))


def _to_own_shape(draft: Draft, node: fx.Node) -> str:
    return _reshape(draft, draft.tensor(node.args[0]), node)


def _flatten(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    known = draft.of(given["self"])
    start, end = (axis_of(given[name], known.rank) for name in ("start_dim", "end_dim"))
    if start == 1 and end == known.rank - 1:
        return str(draft.emit("Flatten", draft.tensor(given["self"]), axis=1))
    return _reshape(draft, draft.tensor(given["self"]), node)


def _permute(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    rank = draft.of(given["self"]).rank
    return _transposed(draft, given["self"], [axis_of(axis, rank) for axis in given["dims"]])


def _transposed(draft: Draft, value: Any, order: Sequence[int]) -> str:
    return str(draft.emit("Transpose", draft.tensor(value), perm=list(order)))


def _transpose(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    rank = draft.of(given["self"]).rank
    names = ("dim0", "dim1") if "dim0" in given else ("axis0", "axis1")
    one, other = (axis_of(given[name], rank) for name in names)
    order = list(range(rank))
    order[one], order[other] = order[other], order[one]
    return _transposed(draft, given["self"], order)


def _t(draft: Draft, node: fx.Node) -> str:
    return _transposed(draft, node.args[0], range(draft.of(node).rank)[::-1])


def _movedim(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    rank = draft.of(given["self"]).rank
    ends = [given["source"], given["destination"]]
    source, destination = (
        [axis_of(axis, rank) for axis in ([end] if isinstance(end, int) else end)] for end in ends
    )
    order = [axis for axis in range(rank) if axis not in source]
    for to, axis in sorted(zip(destination, source, strict=True)):
        order.insert(to, axis)
    return _transposed(draft, given["self"], order)


def _squeeze(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    known, dims = draft.of(given["self"]), given.get("dim")
    chosen = range(known.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [a for a in (axis_of(axis, known.rank) for axis in chosen) if known.shape[a] == 1]
    if not axes:
        return draft.tensor(given["self"])
    return str(draft.emit("Squeeze", draft.tensor(given["self"]), draft.constant(axes)))


def _unsqueeze(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(node).rank)
    return str(draft.emit("Unsqueeze", draft.tensor(given["self"]), draft.constant([axis])))


def _expand(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    shape = [1 if size == -1 else size for size in given["size"]]
    return str(draft.emit("Expand", draft.tensor(given["self"]), draft.sizes(shape)))


def _expand_as(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    shape = draft.emit("Shape", draft.tensor(given["other"]))
    return str(draft.emit("Expand", draft.tensor(given["self"]), shape))


def _repeat(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    more = len(given["repeats"]) - draft.of(given["self"]).rank
    x = draft.tensor(given["self"])
    if more:
        x = draft.emit("Unsqueeze", x, draft.constant(list(range(more))))
    return str(draft.emit("Tile", x, draft.sizes(given["repeats"])))


def _cat(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    dtype = draft.of(node).dtype
    parts = [part for part in given["tensors"] if 0 not in draft.of(part).shape]
    names = [draft.tensor(part, dtype) for part in parts]
    return str(draft.emit("Concat", *names, axis=axis_of(given["dim"], draft.of(node).rank)))


def _stack(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(node).rank)
    places = draft.constant([axis])
    dtype = draft.of(node).dtype
    parts = [
        draft.emit("Unsqueeze", draft.tensor(part, dtype), places) for part in given["tensors"]
    ]
    return str(draft.emit("Concat", *parts, axis=axis))


def _split(draft: Draft, node: fx.Node) -> list[str]:
    """Write a split into parts whose sizes are those of the sample."""
    given = arguments(node)
    known: Sequence[Known] = draft.known[node]
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    sizes = [part.shape[axis] for part in known]
    x = draft.tensor(given["self"])
    if len(sizes) == 1:
        return [x]
    if any(size is None for size in sizes):
        raise NotImplementedError
    return list(draft.emit("Split", x, draft.constant(sizes), outputs=len(sizes), axis=axis))


def _unbind(draft: Draft, node: fx.Node) -> list[str]:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    x, count = draft.tensor(given["self"]), len(draft.known[node])
    return [str(draft.emit("Gather", x, draft.constant(n), axis=axis)) for n in range(count)]


def _getitem(draft: Draft, node: fx.Node) -> Any:
    source, place = node.args
    return draft.names[source][place]  # type: ignore[index]


def _select(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    index = given["index"]
    place = draft.tensor(index) if isinstance(index, fx.Node) else draft.constant(int(index))
    return str(draft.emit("Gather", draft.tensor(given["self"]), place, axis=axis))


def _slice(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    start = 0 if given["start"] is None else given["start"]
    end = LAST if given["end"] is None else given["end"]
    ends = draft.size(start), draft.size(end)
    steps = draft.constant([axis]), draft.constant([given["step"]])
    return str(draft.emit("Slice", draft.tensor(given["self"]), *ends, *steps))


def _slice_scatter(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    chosen = slice(given["start"], given["end"], given["step"])
    return _assigned(draft, node, draft.tensor(given["src"], draft.of(node).dtype), chosen)


def _select_scatter(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    at = draft.constant([axis_of(given["dim"], draft.of(node).rank)])
    part = draft.emit("Unsqueeze", draft.tensor(given["src"], draft.of(node).dtype), at)
    return _assigned(draft, node, part, slice(given["index"], given["index"] + 1 or None))


def _assigned(draft: Draft, node: fx.Node, part: str, chosen: slice) -> str:
    """Write a tensor with a slice put into it: what an assignment to a slice becomes."""
    given, known = arguments(node), draft.of(node)
    axis = axis_of(given["dim"], known.rank)
    if chosen in (slice(None, LAST, 1), slice(0, LAST, 1), slice(None, None, 1)):
        return part
    size = known.shape[axis]
    if size is None:
        raise NotImplementedError
    places = list(range(size))
    places[chosen] = [size + number for number in range(len(places[chosen]))]
    both = draft.emit("Concat", draft.tensor(given["self"]), part, axis=axis)
    return str(draft.emit("Gather", both, draft.constant(places), axis=axis))


def _narrow(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    start, length = given["start"], given["length"]
    if isinstance(start, fx.Node) or isinstance(length, fx.Node):
        raise NotImplementedError
    ends = draft.constant([start]), draft.constant([start + length])
    return str(draft.emit("Slice", draft.tensor(given["self"]), *ends, draft.constant([axis])))


def _index(draft: Draft, node: fx.Node) -> str:
    """Write indexing by tensors of integers along neighbouring axes."""
    given = arguments(node)
    known = draft.of(given["self"])
    axes = [axis for axis, index in enumerate(given["indices"]) if index is not None]
    chosen = [given["indices"][axis] for axis in axes]
    if any(draft.of(index).dtype == torch.bool for index in chosen):
        raise NotImplementedError
    x = draft.tensor(given["self"])
    if len(axes) == 1:
        return str(draft.emit("Gather", x, draft.tensor(chosen[0], torch.int64), axis=axes[0]))
    if axes == list(range(len(axes))):
        return _gather_points(draft, x, chosen)
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise NotImplementedError
    return _gather_several(draft, x, known, axes, chosen)


def _gather_points(draft: Draft, x: str, chosen: Sequence[fx.Node]) -> str:
    """Choose from the first axes at once, whatever their sizes are."""
    names = [draft.tensor(index, torch.int64) for index in chosen]
    total = names[0]
    for name in names[1:]:
        total = draft.emit("Add", total, name)
    nothing, last = draft.emit("Sub", total, total), draft.constant([-1])  # of the shape of all
    parts = [draft.emit("Unsqueeze", draft.emit("Add", name, nothing), last) for name in names]
    return str(draft.emit("GatherND", x, draft.emit("Concat", *parts, axis=-1)))


def _gather_several(
    draft: Draft, x: str, known: Known, axes: Sequence[int], chosen: Sequence[fx.Node]
) -> str:
    """Choose from several neighbouring axes at once, which are made one for it."""
    sizes = [known.shape[axis] for axis in axes]
    if any(size is None for size in sizes):
        raise NotImplementedError
    place = ""
    for index, size in zip(chosen, sizes, strict=True):
        own = draft.tensor(index, torch.int64)
        whole = draft.constant(size)
        own = draft.emit("Mod", own, whole, fmod=0)  # indices count from the end too
        place = own if not place else draft.emit("Add", draft.emit("Mul", place, whole), own)
    before, after = known.shape[: axes[0]], known.shape[axes[-1] + 1 :]
    if sum(size is None for size in (*before, *after)) > 0 and None in after:
        raise NotImplementedError
    flat = [0] * len(before) + [-1] + [int(size or 0) for size in after]
    x = draft.emit("Reshape", x, draft.constant(flat))
    return str(draft.emit("Gather", x, place, axis=axes[0]))


def _index_select(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    index = draft.tensor(given["index"], torch.int64)
    return str(draft.emit("Gather", draft.tensor(given["self"]), index, axis=axis))


def _gather(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    index = draft.tensor(given["index"], torch.int64)
    return str(draft.emit("GatherElements", draft.tensor(given["self"]), index, axis=axis))


def _embedding(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    return str(
        draft.emit("Gather", draft.tensor(given["weight"]), draft.tensor(given["indices"]), axis=0)
    )


def _flip(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    rank, dims = draft.of(given["self"]).rank, given["dims"]
    axes = [axis_of(axis, rank) for axis in dims]
    ends = ([-1] * len(axes), [-LAST] * len(axes), axes, [-1] * len(axes))
    return str(draft.emit("Slice", draft.tensor(given["self"]), *map(draft.constant, ends)))


def _roll(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    x, known = draft.tensor(given["self"]), draft.of(given["self"])
    if not given["dims"]:
        raise NotImplementedError
    for shift, dim in zip(given["shifts"], given["dims"], strict=True):
        axis = axis_of(dim, known.rank)
        size = known.shape[axis]
        if size is None:
            raise NotImplementedError
        cut, at = -shift % size, draft.constant([axis])
        head = draft.emit("Slice", x, draft.constant([0]), draft.constant([cut]), at)
        tail = draft.emit("Slice", x, draft.constant([cut]), draft.constant([LAST]), at)
        x = draft.emit("Concat", tail, head, axis=axis)
    return x


def _pad(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    known, pads = draft.of(given["self"]), list(given["pad"])
    before, after = [0] * known.rank, [0] * known.rank
    for place in range(len(pads) // 2):
        axis = known.rank - 1 - place
        before[axis], after[axis] = pads[2 * place], pads[2 * place + 1]
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    kind = mode[given.get("mode", "constant")]
    rest = [] if kind != "constant" else [draft.constant(given.get("value") or 0, known.dtype)]
    sizes = draft.sizes([*before, *after])
    return str(draft.emit("Pad", draft.tensor(given["self"]), sizes, *rest, mode=kind))


def _size(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    return str(draft.emit("Shape", draft.tensor(given["self"]), start=axis, end=axis + 1))


def _diff(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    if given["n"] != 1:
        return None
    dtype, axis = draft.of(node).dtype, axis_of(given["dim"], draft.of(given["self"]).rank)
    parts = [given[name] for name in ("prepend", "self", "append") if given.get(name) is not None]
    names = [draft.tensor(part, dtype) for part in parts]
    x = names[0] if len(names) == 1 else draft.emit("Concat", *names, axis=axis)
    at = draft.constant([axis])
    later = draft.emit("Slice", x, draft.constant([1]), draft.constant([LAST]), at)
    return draft.emit(
        "Sub", later, draft.emit("Slice", x, draft.constant([0]), draft.constant([-1]), at)
    )


def _triangle(upper: int) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given = arguments(node)
        place = draft.constant(given["diagonal"])
        return str(draft.emit("Trilu", draft.tensor(given["self"]), place, upper=upper))

    return rule


RULES: Mapping[Any, Rule] = {
    "reshape": _shape, "view": _shape, "reshape_as": _to_own_shape, "view_as": _to_own_shape,
    "_unsafe_view": _shape, "flatten": _flatten,
    "unflatten": _to_own_shape, "permute": _permute, "transpose": _transpose,
    "swapaxes": _transpose, "t": _t, "numpy_T": _t, "movedim": _movedim, "squeeze": _squeeze,
    "unsqueeze": _unsqueeze, "expand": _expand, "expand_as": _expand_as, "repeat": _repeat,
    "cat": _cat, "concat": _cat, "stack": _stack, "split": _split, "split_with_sizes": _split,
    "chunk": _split, "unbind": _unbind, operator.getitem: _getitem, "select": _select,
    "slice": _slice, "slice_scatter": _slice_scatter, "select_scatter": _select_scatter,
    "narrow": _narrow, "index": _index, "index_select": _index_select,
    "gather": _gather, "embedding": _embedding, "flip": _flip, "roll": _roll, "pad": _pad,
    "constant_pad_nd": _pad, 
    "sym_size": _size, "diff": _diff, "triu": _triangle(1),
    "tril": _triangle(0),
}  # fmt: skip
"""As in ``elementwise``."""
