"""How norms are written that fold into no layer: BatchNorms, and LayerNorms over the last axis."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.nn.modules.batchnorm import _BatchNorm

from haq.formats.onnx.operators import add_whole
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
    name = name_of(node)
    step = step_of_norm(file.network, Grid(name, factor), width) if name else None
    whole = tensor if step is None else add_whole(file, tensor, step, factor, output)
    mean, scale = _moments(file, whole, output, width, eps / (step or 1) ** 2, step is not None)
    steps = [("Sub", mean), ("Mul", scale), *zip(("Mul", "Add"), parts, strict=False)]
    result = whole
    for number, (kind, operand) in enumerate(steps):
        last = number == len(steps) - 1
        result = file.add(kind, [result, operand], output if last else f"{output}.{number}")


def _moments(
    file: Writer, x: str, output: str, width: int, eps: float, exact: bool
) -> tuple[str, str]:
    """Write the mean of each row, and the inverse of its deviation; return both, in float32.

    Args:
        file: In the making.
        x: The rows.
        output: Begins the names of what is written.
        width: Values of a row.
        eps: Added to the variance.
        exact: Whether float32 holds the sums of a row and of its squares.
    """
    wide = x if exact else file.add("Cast", [x], f"{output}.wide", to=TensorProto.DOUBLE)
    axes = file.constant(f"{output}.axes", np.array([-1], np.int64))
    sums = [
        file.add(kind, [wide, axes], f"{output}.{kind}", keepdims=1)
        for kind in ("ReduceSum", "ReduceSumSquare")
    ]
    total, squares = (
        file.add("Cast", [one], f"{one}.wide", to=TensorProto.DOUBLE) if exact else one
        for one in sums
    )
    held = {"inverse": 1 / width, "epsilon": width * eps, "root": width**0.5}
    number = {
        name: file.constant(f"{output}.{name}", np.array(value, np.float64))
        for name, value in held.items()
    }
    mean = file.add("Mul", [total, number["inverse"]], f"{output}.mean")
    shared = file.add("Mul", [total, mean], f"{output}.shared")
    away = file.add("Sub", [squares, shared], f"{output}.away")
    power = file.add("Add", [away, number["epsilon"]], f"{output}.power")
    size = file.add("Div", [number["root"], file.add("Sqrt", [power], f"{output}.deviation")],
                    f"{output}.scale")  # fmt: skip
    mean, scale = (
        file.add("Cast", [one], f"{one}.float", to=TensorProto.FLOAT) for one in (mean, size)
    )
    return mean, scale
