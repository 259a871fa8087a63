"""Sums, means, extremes and pooling."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation.draft import Draft, arguments, axis_of
from haq.formats.onnx.translation.elementwise import Rule


def _axes(draft: Draft, given: Mapping[str, Any]) -> list[int]:
    dims, rank = given.get("dim"), draft.of(given["self"]).rank
    if dims is None or dims == []:
        return list(range(rank))
    return [axis_of(axis, rank) for axis in ([dims] if isinstance(dims, int) else dims)]


def _reduce(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given = arguments(node)
        x = draft.tensor(given["self"], draft.of(node).dtype)
        kept = int(given.get("keepdim") or 0)
        return str(draft.emit(kind, x, draft.constant(_axes(draft, given)), keepdims=kept))

    return rule


def _norm(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    order = given.get("ord", given.get("p", 2))
    kind = {2: "ReduceL2", 1: "ReduceL1", None: "ReduceL2"}[order]
    kept = int(given.get("keepdim") or 0)
    x = draft.tensor(given["self"])
    return str(draft.emit(kind, x, draft.constant(_axes(draft, given)), keepdims=kept))


def _var(draft: Draft, node: fx.Node) -> str:
    variance = _variance(draft, node)
    return str(draft.emit("Sqrt", variance)) if "std" in str(node.target) else variance


def _variance(draft: Draft, node: fx.Node) -> str:
    given, dtype = arguments(node), draft.of(node).dtype
    known, axes = draft.of(given["self"]), _axes(draft, given)
    correction = given.get("correction", 1)
    if "unbiased" in given:
        correction = int(given["unbiased"])
    x, places = draft.tensor(given["self"]), draft.constant(axes)
    away = draft.emit("Sub", x, draft.emit("ReduceMean", x, places, keepdims=1))
    kept = int(given.get("keepdim") or 0)
    mean = draft.emit("ReduceMean", draft.emit("Mul", away, away), places, keepdims=kept)
    count = 1
    for axis in axes:
        size = known.shape[axis]
        if size is None:
            raise NotImplementedError
        count *= size
    if not correction:
        return str(mean)
    return str(draft.emit("Mul", mean, draft.constant(count / (count - correction), dtype)))


def _extreme(kind: str, place: str) -> Rule:
    """Return the rule of an extreme along an axis with its index, or of two tensors."""

    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        if "other" in given:
            return draft.emit(kind, draft.tensor(given["self"]), draft.tensor(given["other"]))
        x, axes = draft.tensor(given["self"]), _axes(draft, given)
        kept = int(given.get("keepdim") or 0)
        value = draft.emit(f"Reduce{kind}", x, draft.constant(axes), keepdims=kept)
        if "dim" not in given:
            return value
        return [value, draft.emit(place, x, axis=axes[0], keepdims=kept)]

    return rule


def _arg(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        if given["dim"] is None:
            return None
        axis = axis_of(given["dim"], draft.of(given["self"]).rank)
        kept = int(given["keepdim"])
        return draft.emit(kind, draft.tensor(given["self"]), axis=axis, keepdims=kept)

    return rule


def _cumsum(draft: Draft, node: fx.Node) -> str:
    given, dtype = arguments(node), draft.of(node).dtype
    axis = axis_of(given["dim"], draft.of(given["self"]).rank)
    return str(draft.emit("CumSum", draft.tensor(given["self"], dtype), draft.constant(axis)))


def _each(values: Any, count: int, default: Any = None) -> list[int]:
    if values is None or values == []:
        return list(default)
    return [values] * count if isinstance(values, int) else [*values] * (count // len(values))


def _pool(kind: str, axes: int) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        kernel = _each(given["kernel_size"], axes)
        pads = _each(given["padding"], axes, [0] * axes)
        more: dict[str, Any] = {
            "kernel_shape": kernel, "strides": _each(given.get("stride"), axes, kernel),
            "pads": [*pads, *pads], "ceil_mode": int(given["ceil_mode"]),
        }  # fmt: skip
        if kind == "MaxPool":
            more["dilations"] = _each(given["dilation"], axes, [1] * axes)
        else:
            more["count_include_pad"] = int(given["count_include_pad"])
            if given.get("divisor_override"):
                return None
        x = draft.emit(kind, *_batched(draft, given["self"], axes), **more)
        return _as_it_was(draft, x, given["self"], axes)

    return rule


def _batched(draft: Draft, value: Any, axes: int) -> list[str]:
    x = draft.tensor(value)
    if draft.of(value).rank == axes + 1:
        x = draft.emit("Unsqueeze", x, draft.constant([0]))
    return [x]


def _as_it_was(draft: Draft, x: str, value: Any, axes: int) -> str:
    if draft.of(value).rank == axes + 1:
        x = draft.emit("Squeeze", x, draft.constant([0]))
    return x


def _with_indices(draft: Draft, node: fx.Node) -> list[Any]:
    """Write a max pooling whose indices nobody reads."""
    if any(user.args[1] != 0 for user in node.users):
        raise NotImplementedError
    return [_pool("MaxPool", 2)(draft, node)]


def _adaptive(kind: str, axes: int) -> Rule:
    """Write a pooling to a given size, where its windows are all alike, or by parts."""

    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        sizes = [size or 0 for size in draft.of(given["self"]).shape[-axes:]]
        wanted = [
            size if want is None else want
            for want, size in zip(_each(given["output_size"], axes), sizes, strict=True)
        ]
        if 0 in sizes:  # it varies
            return None
        x = draft.tensor(given["self"])
        if all(size == 1 for size in wanted) and draft.of(given["self"]).rank == axes + 2:
            result = draft.emit({"Average": "GlobalAveragePool", "Max": "GlobalMaxPool"}[kind], x)
        elif all(size % want == 0 for size, want in zip(sizes, wanted, strict=True)):
            kernel = [size // want for size, want in zip(sizes, wanted, strict=True)]
            [x] = _batched(draft, given["self"], axes)
            pooled = draft.emit(f"{kind}Pool", x, kernel_shape=kernel, strides=kernel)
            result = _as_it_was(draft, pooled, given["self"], axes)
        else:
            result = _in_parts(draft, x, kind, sizes, wanted)
        return [result] if isinstance(draft.known[node], list) else result

    return rule


def _in_parts(draft: Draft, x: str, kind: str, sizes: Sequence[Any], wanted: Sequence[int]) -> str:
    """Pool along one axis after the other, each window on its own."""
    reduce = {"Average": "ReduceMean", "Max": "ReduceMax"}[kind]
    for place, (size, want) in enumerate(zip(sizes, wanted, strict=True)):
        if size == want:
            continue
        axis = draft.constant([place - len(sizes)])
        windows = [(n * size // want, -(-(n + 1) * size // want)) for n in range(want)]
        parts = [
            draft.emit(
                reduce, draft.emit("Slice", x, draft.constant([a]), draft.constant([b]), axis),
                axis, keepdims=1,
            )
            for a, b in windows
        ]  # fmt: skip
        x = draft.emit("Concat", *parts, axis=place - len(sizes))
    return x


def _any(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given = arguments(node)
        x = draft.tensor(given["self"], torch.int32)
        kept = int(given.get("keepdim") or 0)
        return draft.cast(
            draft.emit(kind, x, draft.constant(_axes(draft, given)), keepdims=kept), torch.bool
        )

    return rule


RULES: Mapping[Any, Rule] = {
    "mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"), "prod": _reduce("ReduceProd"),
    "logsumexp": _reduce("ReduceLogSumExp"), "linalg_vector_norm": _norm, "norm": _norm,
    "var": _var, "std": _var, "max": _extreme("Max", "ArgMax"), "min": _extreme("Min", "ArgMin"),
    "argmax": _arg("ArgMax"), "argmin": _arg("ArgMin"), "cumsum": _cumsum,
    "any": _any("ReduceMax"), "all": _any("ReduceMin"),
    **{f"max_pool{n}d": _pool("MaxPool", n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _pool("AveragePool", n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive("Average", n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive("Max", n) for n in (1, 2, 3)},
    "max_pool2d_with_indices": _with_indices,
}  # fmt: skip
"""As in ``elementwise``."""
