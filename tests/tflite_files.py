"""A TFLite file of one convolution, for a compiler that reads such files."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def convolution(codes: np.ndarray, size: int) -> bytes:
    """Return a file of one int8 convolution, its outputs as large as its inputs.

    Args:
        codes: (out, in, height, width), int8.
        size: Height and width of the inputs.
    """
    import flatbuffers
    from ethosu.vela.tflite import (
        Buffer,
        BuiltinOperator,
        BuiltinOptions,
        Conv2DOptions,
        Model,
        Operator,
        OperatorCode,
        SubGraph,
        TensorType,
    )

    b = flatbuffers.Builder(1024)
    ohwi = np.ascontiguousarray(codes.transpose(0, 2, 3, 1))
    out, _height, _width, c_in = ohwi.shape
    contents = [b"", ohwi.tobytes(), np.zeros(out, np.int32).tobytes()]
    buffers = [_table(b, Buffer, "Buffer", Data=b.CreateByteVector(it) if it else None)
               for it in contents]  # fmt: skip
    kind = TensorType.TensorType
    tensors = [
        _tensor(b, "x", (1, size, size, c_in), kind.INT8, 0, [0.1]),
        _tensor(b, "w", ohwi.shape, kind.INT8, 1, [0.01] * out),
        _tensor(b, "b", (out,), kind.INT32, 2, [0.001] * out),
        _tensor(b, "y", (1, size, size, out), kind.INT8, 0, [0.1]),
    ]
    options = _table(
        b, Conv2DOptions, "Conv2DOptions", StrideW=1, StrideH=1, DilationWFactor=1,
        DilationHFactor=1,
    )  # fmt: skip
    inputs = _vector(b, Operator.OperatorStartInputsVector, [0, 1, 2], b.PrependInt32)
    outputs = _vector(b, Operator.OperatorStartOutputsVector, [3], b.PrependInt32)
    operator = _table(
        b, Operator, "Operator", OpcodeIndex=0, Inputs=inputs, Outputs=outputs,
        BuiltinOptionsType=BuiltinOptions.BuiltinOptions.Conv2DOptions, BuiltinOptions=options,
    )  # fmt: skip
    offsets = b.PrependUOffsetTRelative
    graph = _table(
        b, SubGraph, "SubGraph",
        Tensors=_vector(b, SubGraph.SubGraphStartTensorsVector, tensors, offsets),
        Inputs=_vector(b, SubGraph.SubGraphStartInputsVector, [0], b.PrependInt32),
        Outputs=_vector(b, SubGraph.SubGraphStartOutputsVector, [3], b.PrependInt32),
        Operators=_vector(b, SubGraph.SubGraphStartOperatorsVector, [operator], offsets),
        Name=b.CreateString("main"),
    )  # fmt: skip
    code = BuiltinOperator.BuiltinOperator.CONV_2D
    operators = [
        _table(b, OperatorCode, "OperatorCode", DeprecatedBuiltinCode=3, BuiltinCode=code,
               Version=3)
    ]  # fmt: skip
    model = _table(
        b, Model, "Model", Version=3,
        OperatorCodes=_vector(b, Model.ModelStartOperatorCodesVector, operators, offsets),
        Subgraphs=_vector(b, Model.ModelStartSubgraphsVector, [graph], offsets),
        Buffers=_vector(b, Model.ModelStartBuffersVector, buffers, offsets),
    )  # fmt: skip
    b.Finish(model, b"TFL3")
    return bytes(b.Output())


def _tensor(
    b: Any, name: str, shape: Sequence[int], kind: int, buffer: int, scales: Sequence[float]
) -> int:
    from ethosu.vela.tflite import QuantizationParameters as Quantization
    from ethosu.vela.tflite import Tensor

    start = Quantization.QuantizationParametersStartScaleVector
    zeros = Quantization.QuantizationParametersStartZeroPointVector
    quantization = _table(
        b, Quantization, "QuantizationParameters",
        Scale=_vector(b, start, list(scales), b.PrependFloat32),
        ZeroPoint=_vector(b, zeros, [0] * len(scales), b.PrependInt64),
    )  # fmt: skip
    sizes = _vector(b, Tensor.TensorStartShapeVector, [int(n) for n in shape], b.PrependInt32)
    return _table(
        b, Tensor, "Tensor", Shape=sizes, Type=kind, Buffer=buffer, Name=b.CreateString(name),
        Quantization=quantization,
    )  # fmt: skip


def _table(b: Any, module: Any, name: str, **fields: Any) -> int:
    getattr(module, f"{name}Start")(b)
    for field, value in fields.items():
        if value is not None:
            getattr(module, f"{name}Add{field}")(b, value)
    return int(getattr(module, f"{name}End")(b))


def _vector(b: Any, start: Callable[..., Any], items: Sequence[Any], prepend: Any) -> int:
    start(b, len(items))
    for item in reversed(items):
        prepend(item)
    return int(b.EndVector())
