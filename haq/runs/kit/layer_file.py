"""One layer as an ONNX file: float, or between quantizers as it stands in an exported network."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from haq.allocation.policy import Bits
from haq.errors import HaqError
from haq.formats.onnx.writer import Cpu
from haq.hw_profiles.measured import exact_everywhere
from haq.hw_profiles.rows import Shape

SUPPORTED = ("conv", "depthwise", "grouped", "pointwise", "linear", "transposed")
"""Kinds of layers that a file can be made of."""

_OPSET = 21

_BYTE = 8


def layer_file(shape: Shape, bits: Bits, batch: int, cpu: Cpu, seed: int = 0) -> bytes:
    """Return a file of one layer, with random codes or float weights in it.

    An integer layer stands between quantizers: of its own activations before it, clipped where they
    have fewer than 8 bits, and of 8 bits behind it.

    Args:
        shape: Of the layer.
        bits: Codes fill that many bits; each has a byte, whatever its bits. Or float.
        batch: Images.
        cpu: As for an exported network: "any" stores weights that could saturate as uint8.
        seed: Of the codes.

    Raises:
        HaqError: The layer is of a kind that no file is made of.
    """
    if shape.kind not in SUPPORTED:
        raise HaqError(f"no file is made of a layer of kind {shape.kind!r}")
    constants, nodes = (_float_layer if bits.floats else _integer_layer)(shape, bits, cpu, seed)
    given = _value("x", shape, batch, shape.c_in, shape.in_size)
    gives = _value("out", shape, batch, shape.c_out, shape.out_size)
    graph = helper.make_graph(nodes, shape.kind, [given], [gives], constants)
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


Parts = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]
"""Constants and nodes of a file."""


def _float_layer(shape: Shape, bits: Bits, cpu: Cpu, seed: int) -> Parts:
    values = np.random.default_rng(seed).standard_normal(_weight_sizes(shape), np.float32)
    nodes = [_operator(shape, "x"), helper.make_node("Relu", ["y"], ["out"])]
    return [numpy_helper.from_array(values, "w")], nodes


def _integer_layer(shape: Shape, bits: Bits, cpu: Cpu, seed: int) -> Parts:
    sizes = _weight_sizes(shape)
    most = 2 ** (bits.weight - 1) - 1
    codes = np.random.default_rng(seed).integers(-most, most + 1, sizes)
    constants = [
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        numpy_helper.from_array(np.full(shape.c_out, 0.01, np.float32), "weight_scale"),
        *_codes(
            codes, cpu == "any" and not exact_everywhere(shape.kind, bits), channels=shape.c_out
        ),
    ]
    rounded = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"])]
    if bits.act < _BYTE:
        constants.append(numpy_helper.from_array(np.array(2**bits.act - 1, np.uint8), "top"))
        rounded = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["whole"]),
            helper.make_node("Clip", ["whole", "zero", "top"], ["xq"]),
        ]
    nodes = [
        *rounded,
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node(
            "DequantizeLinear", ["codes", "weight_scale", "weight_zero"], ["w"],
            axis=_axis(shape),
        ),
        _operator(shape, "xd"),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "scale", "zero"], ["out"]),
    ]  # fmt: skip
    return constants, nodes


def _weight_sizes(shape: Shape) -> tuple[int, ...]:
    if shape.kind == "linear":
        return shape.c_in, shape.c_out
    if shape.kind == "transposed":
        return shape.c_in, shape.c_out // shape.groups, *shape.kernel
    return shape.c_out, shape.c_in // shape.groups, *shape.kernel


def _axis(shape: Shape) -> int:
    return 1 if shape.kind in ("linear", "transposed") else 0


def _codes(codes: NDArray[np.int64], unsigned: bool, channels: int) -> Sequence[onnx.TensorProto]:
    kind, zero = (np.uint8, 128) if unsigned else (np.int8, 0)
    return (
        numpy_helper.from_array((codes + zero).astype(kind), "codes"),
        numpy_helper.from_array(np.full(channels, zero, kind), "weight_zero"),
    )


def _operator(shape: Shape, x: str) -> onnx.NodeProto:
    if shape.kind == "linear":
        return helper.make_node("MatMul", [x, "w"], ["y"])
    sizes = list(
        zip(shape.in_size, shape.out_size, shape.kernel, shape.stride, shape.padding, strict=True)
    )
    if shape.kind == "transposed":
        return helper.make_node(
            "ConvTranspose", [x, "w"], ["y"], kernel_shape=shape.kernel, strides=shape.stride,
            pads=[*shape.padding, *shape.padding], group=shape.groups, output_shape=shape.out_size,
        )  # fmt: skip
    # A record has no dilation and one padding for both sides: what is behind is chosen so that the
    # outputs are as many as they are.
    ends = [max(0, (o - 1) * s + k - i - before) for i, o, k, s, before in sizes]
    return helper.make_node(
        "Conv", [x, "w"], ["y"], kernel_shape=shape.kernel, strides=shape.stride,
        pads=[*shape.padding, *ends], group=shape.groups,
    )  # fmt: skip


def _value(
    name: str, shape: Shape, batch: int, channels: int, size: Sequence[int]
) -> onnx.ValueInfoProto:
    of_linear = [batch * size[0], channels]
    sizes = of_linear if shape.kind == "linear" else [batch, channels, *size]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
