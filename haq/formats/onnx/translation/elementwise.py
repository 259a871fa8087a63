"""Operations on each value alone."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from haq.formats.onnx.translation.draft import Draft, Known, arguments

Rule = Callable[[Draft, fx.Node], Any]


def _operands(draft: Draft, node: fx.Node) -> tuple[dict[str, Any], torch.dtype]:
    return arguments(node), draft.of(node).dtype


def _binary(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        left, right = given["self"], given["other"]
        if given.get("alpha", 1) != 1:
            scaled = draft.emit(
                "Mul", draft.tensor(right, dtype), draft.constant(given["alpha"], dtype)
            )
            return str(draft.emit(kind, draft.tensor(left, dtype), scaled))
        return str(draft.emit(kind, draft.tensor(left, dtype), draft.tensor(right, dtype)))

    return rule


def _rsub(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    right = draft.tensor(given["self"], dtype)
    if given.get("alpha", 1) != 1:
        right = draft.emit("Mul", right, draft.constant(given["alpha"], dtype))
    return str(draft.emit("Sub", draft.tensor(given["other"], dtype), right))


def _div(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    mode = given.get("rounding_mode")
    left, right = draft.tensor(given["self"], dtype), draft.tensor(given["other"], dtype)
    if mode is None:
        return str(draft.emit("Div", left, right))
    if dtype.is_floating_point:
        return str(draft.emit({"floor": "Floor"}[mode], draft.emit("Div", left, right)))
    kind = torch.float64
    ratio = draft.emit("Div", draft.cast(left, kind), draft.cast(right, kind))
    return draft.cast(draft.emit("Floor", ratio), dtype)


def _compare(kind: str, negated: bool = False) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given = arguments(node)
        left, right = given["self"], given["other"]
        dtype = _common(draft, left, right)
        result = draft.emit(kind, draft.tensor(left, dtype), draft.tensor(right, dtype))
        return str(draft.emit("Not", result)) if negated else str(result)

    return rule


def _common(draft: Draft, left: Any, right: Any) -> torch.dtype:
    """Return the type in which two operands are compared."""
    tensors = [draft.of(value) for value in (left, right) if isinstance(value, fx.Node)]
    numbers = [draft.of(value).dtype for value in (left, right) if not isinstance(value, fx.Node)]
    dtype = tensors[0].dtype
    for known in tensors[1:]:
        dtype = torch.promote_types(dtype, known.dtype)
    if any(kind.is_floating_point for kind in numbers) and not dtype.is_floating_point:
        return torch.float32
    return torch.int64 if dtype == torch.bool and torch.int64 in numbers else dtype


def _unary(kind: str, **attributes: Any) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        first = next(iter(given.values()))
        return str(draft.emit(kind, draft.tensor(first, dtype), **attributes))

    return rule


def _with(kind: str, **names: str) -> Rule:
    """Return the rule of an operator with attributes that torch has by other names."""

    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        more: Any = {attribute: float(given[name]) for attribute, name in names.items()}
        return str(draft.emit(kind, draft.tensor(given["self"], dtype), **more))

    return rule


def _sigmoid_of(draft: Draft, x: str) -> str:
    return str(draft.emit("Sigmoid", x))


def _silu(draft: Draft, node: fx.Node) -> str:
    x = draft.tensor(node.args[0], draft.of(node).dtype)
    return str(draft.emit("Mul", x, _sigmoid_of(draft, x)))


def _square(draft: Draft, node: fx.Node) -> str:
    x = draft.tensor(node.args[0])
    return str(draft.emit("Mul", x, x))


def _rsqrt(draft: Draft, node: fx.Node) -> str:
    return _inverse(draft, draft.emit("Sqrt", draft.tensor(node.args[0])), draft.of(node).dtype)


def _reciprocal(draft: Draft, node: fx.Node) -> str:
    dtype = draft.of(node).dtype
    return _inverse(draft, draft.tensor(node.args[0], dtype), dtype)


def _inverse(draft: Draft, x: str, dtype: torch.dtype) -> str:
    """Write a division, which every library rounds alike, unlike Reciprocal."""
    return str(draft.emit("Div", draft.constant(1.0, dtype), x))


def _gelu(draft: Draft, node: fx.Node) -> str:
    return str(
        draft.emit("Gelu", draft.tensor(node.args[0]), approximate=arguments(node)["approximate"])
    )


def _hardsigmoid(draft: Draft, node: fx.Node) -> str:
    x, kind = draft.tensor(node.args[0]), draft.of(node).dtype
    moved = draft.emit("Add", x, draft.constant(3.0, kind))
    cut = draft.emit("Clip", moved, draft.constant(0.0, kind), draft.constant(6.0, kind))
    return str(draft.emit("Div", cut, draft.constant(6.0, kind)))


def _clamp(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    tensors = [isinstance(end, fx.Node) and draft.of(end).rank > 0 for end in (low, high)]
    x = draft.tensor(given["self"], dtype)
    if any(tensors):
        x = x if low is None else draft.emit("Max", x, draft.tensor(low, dtype))
        return str(x if high is None else draft.emit("Min", x, draft.tensor(high, dtype)))
    ends = ["" if end is None else draft.tensor(end, dtype) for end in (low, high)]
    return str(draft.emit("Clip", x, *(ends if ends[1] else ends[:1])))


def _relu6(draft: Draft, node: fx.Node) -> str:
    dtype = draft.of(node).dtype
    ends = draft.constant(0.0, dtype), draft.constant(6.0, dtype)
    return str(draft.emit("Clip", draft.tensor(node.args[0]), *ends))


def _pow(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    base, exponent = given["self"], given["exponent"]
    if exponent == 2 and isinstance(base, fx.Node):
        x = draft.tensor(base, dtype)
        return str(draft.emit("Mul", x, x))
    return str(draft.emit("Pow", draft.tensor(base, dtype), draft.tensor(exponent, dtype)))


def _where(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    chosen = draft.tensor(given["condition"], torch.bool)
    both = (draft.tensor(given[name], dtype) for name in ("self", "other"))
    return str(draft.emit("Where", chosen, *both))


def _masked_fill(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    mask = draft.tensor(given["mask"], torch.bool)
    return str(
        draft.emit(
            "Where", mask, draft.tensor(given["value"], dtype), draft.tensor(given["self"], dtype)
        )
    )


def _cast(draft: Draft, node: fx.Node) -> str:
    first = node.args[0]
    name, dtype = draft.tensor(first), draft.of(node).dtype
    return name if draft.of(first).dtype == dtype else draft.cast(name, dtype)


def _same(draft: Draft, node: fx.Node) -> str:
    return draft.tensor(node.args[0])


def _prelu(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    weight, rank = given["weight"], draft.of(given["self"]).rank
    slope = draft.tensor(weight)
    if draft.of(weight).shape != (1,):
        slope = draft.emit("Reshape", slope, draft.constant([-1, *[1] * (rank - 2)]))
    return str(draft.emit("PRelu", draft.tensor(given["self"]), slope))


def _softmax(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        return str(draft.emit(kind, draft.tensor(given["self"], dtype), axis=int(given["dim"])))

    return rule


def _number(kind: str) -> Rule:
    """Return the rule of Python's arithmetic on sizes."""

    def rule(draft: Draft, node: fx.Node) -> str:
        left, right = (draft.size(value) for value in node.args)
        return str(draft.emit(kind, left, right))

    return rule


def _mod(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    fmod = 1 if dtype.is_floating_point or "fmod" in str(node.target) else 0
    left, right = draft.tensor(given["self"], dtype), draft.tensor(given["other"], dtype)
    return str(draft.emit("Mod", left, right, fmod=fmod))


def _logsigmoid(draft: Draft, node: fx.Node) -> str:
    return str(draft.emit("Log", _sigmoid_of(draft, draft.tensor(node.args[0]))))


def _softplus(draft: Draft, node: fx.Node) -> Any:
    given = arguments(node)
    return draft.emit("Softplus", draft.tensor(given["self"])) if given["beta"] == 1 else None


def _glu(draft: Draft, node: fx.Node) -> str:
    given = arguments(node)
    parts = draft.emit(
        "Split", draft.tensor(given["self"]), outputs=2, axis=given["dim"], num_outputs=2
    )
    return str(draft.emit("Mul", parts[0], _sigmoid_of(draft, parts[1])))


def _lerp(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    start, end, weight = (draft.tensor(given[n], dtype) for n in ("self", "end", "weight"))
    return str(draft.emit("Add", start, draft.emit("Mul", weight, draft.emit("Sub", end, start))))


def _addcmul(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    x, one, other = (draft.tensor(given[n], dtype) for n in ("self", "tensor1", "tensor2"))
    product = draft.emit("Mul", one, other)
    if given["value"] != 1:
        product = draft.emit("Mul", product, draft.constant(given["value"], dtype))
    return str(draft.emit("Add", x, product))


def _rrelu(draft: Draft, node: fx.Node) -> str:
    """Write a randomised leaky ReLU as it is in evaluation: with the mean of its slopes."""
    given = arguments(node)
    slope = (float(given["lower"]) + float(given["upper"])) / 2
    return str(draft.emit("LeakyRelu", draft.tensor(given["self"]), alpha=slope))


def _threshold(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    x, least = draft.tensor(given["self"], dtype), draft.constant(given["threshold"], dtype)
    over = draft.emit("Greater", x, least)
    return str(draft.emit("Where", over, x, draft.constant(given["value"], dtype)))


def _negated(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        return str(draft.emit(kind, draft.tensor(node.args[0], torch.bool)))

    return rule


def _logical(kind: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        if draft.of(node).dtype != torch.bool:
            return None
        given = arguments(node)
        both = (draft.tensor(given[name], torch.bool) for name in ("self", "other"))
        return draft.emit(kind, *both)

    return rule


def _like(value: float | None, name: str = "fill_value") -> Rule:
    """Return the rule of what is filled with a number, or with the argument of a name."""

    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        number = given[name] if value is None else value
        shape = draft.emit("Shape", draft.tensor(given["self"]))
        return str(draft.emit("Expand", draft.tensor(number, dtype), shape))

    return rule


def _filled(value: float | None) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> str:
        given, dtype = _operands(draft, node)
        number = given["fill_value"] if value is None else value
        shape = draft.sizes(given["size"]) if given["size"] else draft.constant([])
        return str(draft.emit("Expand", draft.tensor(number, dtype), shape))

    return rule


def _arange(draft: Draft, node: fx.Node) -> str:
    given, dtype = _operands(draft, node)
    ends = given.get("start", 0), given["end"], given.get("step", 1)
    return str(draft.emit("Range", *(_plain(draft, end, dtype) for end in ends)))


def _plain(draft: Draft, value: Any, dtype: torch.dtype) -> str:
    """Return the name of a scalar in a type."""
    if isinstance(value, fx.Node) and not isinstance(draft.known[value], Known):
        scalar = draft.emit("Reshape", draft.names[value], draft.constant([]))
        return str(scalar) if dtype == torch.int64 else draft.cast(scalar, dtype)
    return draft.tensor(value, dtype)


RULES: Mapping[Any, Rule] = {
    "add": _binary("Add"), "sub": _binary("Sub"), "mul": _binary("Mul"), "div": _div,
    "rsub": _rsub, "maximum": _binary("Max"), "minimum": _binary("Min"),
    "fmod": _mod, "remainder": _mod,
    "eq": _compare("Equal"), "ne": _compare("Equal", negated=True), "lt": _compare("Less"),
    "le": _compare("LessOrEqual"), "gt": _compare("Greater"), "ge": _compare("GreaterOrEqual"),
    "relu": _unary("Relu"), "sigmoid": _unary("Sigmoid"), "tanh": _unary("Tanh"),
    "exp": _unary("Exp"), "log": _unary("Log"), "sqrt": _unary("Sqrt"), "neg": _unary("Neg"),
    "abs": _unary("Abs"), "floor": _unary("Floor"), "ceil": _unary("Ceil"),
    "round": _unary("Round"), "sin": _unary("Sin"), "cos": _unary("Cos"), "erf": _unary("Erf"),
    "sign": _unary("Sign"), "reciprocal": _reciprocal, "mish": _unary("Mish"),
    "hardswish": _unary("HardSwish"), "hardsigmoid": _hardsigmoid, "softsign": _unary("Softsign"),
    "isnan": _unary("IsNaN"), "silu": _silu, "square": _square, "rsqrt": _rsqrt, "gelu": _gelu,
    "relu6": _relu6, "hardtanh": _clamp, "clamp": _clamp, "clamp_min": _clamp, "clamp_max": _clamp,
    "pow": _pow, "where": _where, "masked_fill": _masked_fill, "prelu": _prelu,
    "leaky_relu": _with("LeakyRelu", alpha="negative_slope"), "elu": _with("Elu", alpha="alpha"),
    "rrelu": _rrelu, "selu": _unary("Selu"), "celu": _with("Celu", alpha="alpha"),
    "hardshrink": _with("Shrink", lambd="lambd"), "threshold": _threshold,
    "softshrink": _with("Shrink", lambd="lambd", bias="lambd"),
    "softmax": _softmax("Softmax"), "log_softmax": _softmax("LogSoftmax"),
    "_softmax": _softmax("Softmax"), "_log_softmax": _softmax("LogSoftmax"),
    "softplus": _softplus, "log_sigmoid": _logsigmoid, "glu": _glu, "lerp": _lerp,
    "addcmul": _addcmul, "to": _cast, "_to_copy": _cast, "type_as": _cast, "clone": _same,
    "contiguous": _same, "detach": _same, "alias": _same, "lift_fresh_copy": _same,
    "dropout": _same,
    "logical_not": _negated("Not"), "bitwise_not": _negated("Not"),
    "logical_and": _logical("And"), "bitwise_and": _logical("And"), "__and__": _logical("And"),
    "logical_or": _logical("Or"), "bitwise_or": _logical("Or"), "__or__": _logical("Or"),
    "full_like": _like(None), "zeros_like": _like(0), "zero": _like(0), "ones_like": _like(1),
    "fill": _like(None, "value"), "copy": _like(None, "src"),
    "full": _filled(None), "zeros": _filled(0), "ones": _filled(1), "new_ones": _filled(1),
    "new_zeros": _filled(0), "new_full": _filled(None), "arange": _arange,
    operator.add: _number("Add"), operator.sub: _number("Sub"), operator.mul: _number("Mul"),
    operator.floordiv: _number("Div"), operator.mod: _number("Mod"),
}  # fmt: skip
"""Name of an operation, or a function, to what writes it; None where it has no rule after all."""
