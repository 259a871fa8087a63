"""Operators that compute each value from the values in its place."""

import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from haq.models.onnx.node import Node, Run

TYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32, TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8, TensorProto.BOOL: torch.bool,
}  # fmt: skip


def _plain(run: Run) -> Callable[[Node], Run]:
    """Return the reader of an operator without attributes."""
    return lambda node: run


def _leaky(node: Node) -> Run:
    return partial(functional.leaky_relu, negative_slope=node.get("alpha", 0.01))


def _elu(node: Node) -> Run:
    return partial(functional.elu, alpha=node.get("alpha", 1.0))


def _celu(node: Node) -> Run:
    return partial(functional.celu, alpha=node.get("alpha", 1.0))


def _selu(node: Node) -> Run:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
    return lambda x: gamma * (x.clamp(min=0) + alpha * (x.clamp(max=0).exp() - 1))


def _thresholded(node: Node) -> Run:
    alpha = node.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, 0.0)


def _hard_sigmoid(node: Node) -> Run:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return lambda x: (x * alpha + beta).clamp(0, 1)


def _gelu(node: Node) -> Run:
    return partial(functional.gelu, approximate=node.get("approximate", "none"))


def _swish(node: Node) -> Run:
    alpha = node.get("alpha", 1.0)
    return lambda x: x * torch.sigmoid(x * alpha)


def _clip(node: Node) -> Run:
    lowest, highest = node.number(1), node.number(2)
    if lowest is None and highest is None:
        return lambda x: x
    return lambda x, *_: torch.clamp(x, lowest, highest)


def _shrink(node: Node) -> Run:
    edge, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    return lambda x: torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, 0.0))


def _divide(node: Node) -> Run:
    if node.whole():
        return partial(torch.div, rounding_mode="trunc")
    return operator.truediv


def _modulo(node: Node) -> Run:
    return torch.fmod if node.get("fmod", 0) else torch.remainder


def _power(x: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) and isinstance(x, Tensor):
        return torch.pow(x, exponent.to(x.dtype))
    return torch.pow(x, exponent)


def _extreme(tensors: Any, clamp: str) -> Callable[[Node], Run]:
    def pair(left: Any, right: Any) -> Any:
        if not isinstance(left, Tensor):
            left, right = right, left
        return tensors(left, right) if isinstance(right, Tensor) else left.clamp(**{clamp: right})

    return lambda node: lambda *operands: reduce(pair, operands)


def _mean(node: Node) -> Run:
    return lambda *operands: reduce(operator.add, operands) / len(operands)


def _cast(node: Node) -> Run:
    kind = node.get("to")
    if kind not in TYPES:
        raise node.refused(f"it casts to {TensorProto.DataType.Name(kind).lower()}")
    return lambda x: x.to(TYPES[kind])


def _prelu(node: Node) -> Run:
    # Its slopes broadcast, those of torch lie along the channels.
    return lambda x, slope: torch.where(x < 0, x * slope, x)


def _where(node: Node) -> Run:
    return lambda condition, x, y: torch.where(condition, x, y)


OPERATORS: Mapping[str, Callable[[Node], Run]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(operator.add),
    "And": _plain(torch.logical_and),
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Div": _divide,
    "Dropout": _plain(lambda x, *_: x),
    "Elu": _elu,
    "Equal": _plain(operator.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "Greater": _plain(operator.gt),
    "GreaterOrEqual": _plain(operator.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LeakyRelu": _leaky,
    "Less": _plain(operator.lt),
    "LessOrEqual": _plain(operator.le),
    "Log": _plain(torch.log),
    "Max": _extreme(torch.maximum, "min"),
    "Mean": _mean,
    "Min": _extreme(torch.minimum, "max"),
    "Mish": _plain(functional.mish),
    "Mod": _modulo,
    "Mul": _plain(operator.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _plain(_power),
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(functional.relu),
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Softplus": _plain(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(operator.sub),
    "Sum": _plain(lambda *operands: reduce(operator.add, operands)),
    "Swish": _swish,
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _thresholded,
    "Where": _where,
    "Xor": _plain(torch.logical_xor),
}

SCALARS = {
    "Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul",
    "Pow", "Sub", "Sum",
}  # fmt: skip
"""Operators that take a plain number in the place of a constant of one value."""
