"""How norms are written that fold into no layer: BatchNorms, and LayerNorms of codes."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.nn.modules.batchnorm import _BatchNorm

from haq.formats.onnx.writer import Writer, name_of
from haq.quantization.bn_folding import affine
from haq.quantization.exact import Grid, step_of_norm


def lower_norm(file: Writer, node: onnx.NodeProto) -> None:
    """Write a BatchNorm that folds into no layer: ONNX Runtime would make a convolution of it."""
    name, output = name_of(node), node.output[0]
    module = file.network.get_submodule(name)
    assert isinstance(module, _BatchNorm)
    shape = [1] * helper.get_node_attr_value(node, "rank")
    shape[1] = -1
    # Behind a float pooling the two would become a convolution; nothing is moved past a Max.
    tensor = file.add("Max", [file.now(node.input[0])], f"{output}.apart")
    parts = [part.numpy().reshape(shape) for part in affine(module)]
    for kind, place, values in zip(("Mul", "Add"), ("scaled", ""), parts, strict=True):
        held = file.constant(f"{output}.{kind.lower()}", values)
        tensor = file.add(kind, [tensor, held], f"{output}.{place}" if place else output)


def lower_layer_norm(file: Writer, node: onnx.NodeProto) -> None:
    """Write a LayerNorm over the last axis as ``haq.quantization.exact.layer_norm`` has it."""
    tensor, output = file.now(node.input[0]), node.output[0]
    parts = [file.now(part) for part in node.input[1:]]
    width, factor, eps = (
        helper.get_node_attr_value(node, name) for name in ("width", "factor", "epsilon")
    )
    step = step_of_norm(file.network, Grid(name_of(node), factor), width)
    if step is None:
        _add_wide(file, tensor, parts, output, width, eps)
        return
    whole = _whole(file, tensor, step, factor, output)
    axes = file.constant(f"{output}.axes", np.array([-1], np.int64))
    size = file.constant(f"{output}.width", np.array(width, np.float64))
    means = []
    for kind in ("ReduceSum", "ReduceSumSquare"):
        total = file.add(kind, [whole, axes], f"{output}.{kind}", keepdims=1)
        wide = file.add("Cast", [total], f"{total}.wide", to=TensorProto.DOUBLE)
        means.append(file.add("Div", [wide, size], f"{total}.mean"))
    square = file.add("Mul", [means[0], means[0]], f"{output}.square")
    variance = file.add("Sub", [means[1], square], f"{output}.variance")
    least = file.constant(f"{output}.epsilon", np.array(eps / step**2, np.float64))
    deviation = file.add(
        "Sqrt", [file.add("Add", [variance, least], f"{output}.sum")], f"{output}.deviation"
    )
    one = file.constant("one_in_float64", np.array(1, np.float64))
    inverse = file.add("Div", [one, deviation], f"{output}.inverse")
    mean, scale = (
        file.add("Cast", [wide], f"{wide}.float", to=TensorProto.FLOAT)
        for wide in (means[0], inverse)
    )
    steps = [("Sub", mean), ("Mul", scale), *zip(("Mul", "Add"), parts, strict=False)]
    result = whole
    for number, (kind, operand) in enumerate(steps):
        last = number == len(steps) - 1
        result = file.add(kind, [result, operand], output if last else f"{output}.{number}")


def _whole(file: Writer, tensor: str, step: float, factor: float, label: str) -> str:
    """Write the codes of a tensor, counted from that of zero, as floats."""
    grid = file.grids.get(tensor)
    if grid is None or factor != 1:
        size = file.constant(f"{label}.step", np.array(step, np.float32))
        places = file.add("Div", [tensor, size], f"{label}.places")
        return file.add("Round", [places], f"{label}.whole")
    code = file.add("Cast", [grid.code], f"{label}.codes", to=TensorProto.FLOAT)
    if not grid.zero:
        return code
    zero = file.constant(f"{label}.zero", np.array(grid.zero, np.float32))
    return file.add("Sub", [code, zero], f"{label}.whole")


def _add_wide(
    file: Writer, tensor: str, parts: list[str], output: str, width: int, eps: float
) -> None:
    """Write a LayerNorm in float64."""
    if not parts:
        parts = [file.constant(f"{output}.ones", np.ones(width, np.float32))]
    inputs = [
        file.add("Cast", [part], f"{output}.wide{place}", to=TensorProto.DOUBLE)
        for place, part in enumerate([tensor, *parts])
    ]
    result = file.add("LayerNormalization", inputs, f"{output}.wide", axis=-1, epsilon=eps)
    file.add("Cast", [result], output, to=TensorProto.FLOAT)
