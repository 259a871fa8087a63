"""How operators that are no layers are written, so that ONNX Runtime takes integer kernels."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from haq.allocation.policy import FLOAT
from haq.formats.onnx.writer import Grid, Writer, name_of
from haq.quantization.exact import gelu_table
from haq.quantization.fake_quant import Rounding

_MOVES = {
    "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators whose results are among the values they read, or zero."""


def moves(file: Writer, node: onnx.NodeProto) -> bool:
    """Return whether a node's results are among the values it reads, or zero."""
    if node.op_type == "Gather":
        return node.input[0] not in file.constants and node.input[1] in file.constants
    if node.op_type not in _MOVES or len(node.output) > 1:
        return False
    padded = node.op_type == "Pad" and len(node.input) > 2 and node.input[2]
    return not padded or file.scalar(node.input[2]) == 0


def lower_operator(file: Writer, node: onnx.NodeProto) -> None:
    """Write a node of the template that is no marker."""
    own = onnx.NodeProto()
    own.CopyFrom(node)
    own.ClearField("metadata_props")
    own.ClearField("doc_string")
    own.name = node.name if file.original and node.name else f"op/{node.output[0]}"
    for place, tensor in enumerate(node.input):
        own.input[place] = file.now(tensor)
    if moves(file, node) and own.input[0] in file.grids:
        output = own.output[0]
        file.dequantized(_move(file, own, file.grids[own.input[0]]), output)
        return
    if is_cut(file, node):
        own = helper.make_node("Relu", own.input[:1], node.output, own.name)
    if node.op_type == "ReduceMean" and _is_global_pool(file, node):
        file.nodes += _global_pool(own)
    else:
        file.nodes.append(own)


def lower_rounding(file: Writer, node: onnx.NodeProto) -> None:
    """Write the quantizer that a marker stands for: right behind what computes its tensor.

    Rounding commutes with moving values, and ONNX Runtime takes a quantizer into the kernel before
    it only where nothing stands between the two.
    """
    module = file.rounding(node)
    assert module is not None
    tensor, output = file.now(node.input[0]), node.output[0]
    if module.bits == FLOAT:
        file.rename(output, tensor)
        return
    steps = []
    while (source := file.producer(tensor)) is not None and moves(file, source):
        if len(file.readers(tensor)) > 1:
            break
        file.nodes.remove(source)
        steps.append(source)
        tensor = source.input[0]
    lowest, highest = module.levels
    zero, size = module.zero_point, module.step.item()
    label = name_of(node).removeprefix("quantizers.")
    grid, ends = Grid(np.float32(size), zero, module.top), (lowest + zero, highest + zero)
    if not steps and file.holds(tensor, grid, ends):
        file.rename(output, tensor)  # rounding what lies on the very grid gives the same codes
        return
    grid = file.quantized(tensor, grid, label, ends)
    for source in reversed(steps):
        grid = _move(file, source, grid)
    result = f"{label}.dequantized"
    file.rename(output, file.dequantized(grid, result))


def lower_whole(file: Writer, node: onnx.NodeProto) -> None:
    """Write the codes of a tensor, counted from that of zero, as floats."""
    tensor, output = file.now(node.input[0]), node.output[0]
    factor = helper.get_node_attr_value(node, "factor")
    size = step_of(file, name_of(node), factor)
    whole = tensor if size is None else add_whole(file, tensor, size, factor, output)
    file.rename(output, whole)


def add_whole(file: Writer, tensor: str, step: float, factor: float, label: str) -> str:
    """Write the codes of a tensor, counted from that of zero, as floats; return them.

    Args:
        file: In the making.
        tensor: Multiples of a step.
        step: What a code is worth in it.
        factor: By which it was multiplied since it was rounded.
        label: Begins the names of what is written.
    """
    grid = file.grids.get(tensor)
    if grid is None or factor != 1:
        size = file.constant(f"{label}.step", np.array(step, np.float32))
        places = file.add("Div", [tensor, size], f"{label}.places")
        return file.add("Round", [places], f"{label}.whole")
    one = file.constant("one", np.array(1, np.float32))
    return file.add(
        "DequantizeLinear", [grid.code, one, f"{grid.label}.zero_point"], f"{label}.whole"
    )


def lower_table(file: Writer, node: onnx.NodeProto) -> None:
    """Write a GELU that reads codes: a look-up in the table of its values for all codes."""
    tensor, output = file.now(node.input[0]), node.output[0]
    how = helper.get_node_attr_value(node, "approximate").decode()
    factor = helper.get_node_attr_value(node, "factor")
    size = step_of(file, name_of(node), factor)
    if size is None or file.symmetric:  # codes around zero are no places in a table
        file.add("Gelu", [tensor], output, approximate=how)
        return
    module = file.network.get_submodule(name_of(node))
    assert isinstance(module, Rounding)
    grid = file.grids.get(tensor)
    if grid is not None and factor == 1:
        code = grid.code
    else:
        step = file.constant(f"{output}.step", np.array(size, np.float32))
        zero = file.constant(f"{output}.zero", np.array(module.zero_point, np.float32))
        places = file.add("Round", [file.add("Div", [tensor, step], f"{output}.places")],
                          f"{output}.whole")  # fmt: skip
        code = file.add("Add", [places, zero], f"{output}.code")
    index = file.add("Cast", [code], f"{output}.index", to=onnx.TensorProto.INT32)
    table = gelu_table(size, module.zero_point, module.top, how).numpy()
    file.add("Gather", [file.constant(f"{output}.table", table), index], output)


def lower_unit(file: Writer, node: onnx.NodeProto) -> None:
    """Write what makes sums of products of codes what they stand for."""
    names, factors = (helper.get_node_attr_value(node, name) for name in ("names", "factors"))
    steps = [
        step_of(file, name.decode(), factor) for name, factor in zip(names, factors, strict=True)
    ]
    units = [np.float32(1 if one is None else one) for one in steps]
    width, scale = (helper.get_node_attr_value(node, name) for name in ("width", "scale"))
    if scale:
        sizes = [1.0 if one is None else one for one in steps]
        values = np.full((1, 1), sizes[0] * sizes[1] * scale, np.float32)
    else:
        values = np.full(max(width, 1), units[0] * units[1], np.float32)
    # Not a scalar: ONNX Runtime would take that into the product, and round otherwise.
    output = node.output[0]
    unit = file.constant(f"{output}.unit", values)
    file.add("Mul", [file.now(node.input[0]), unit], output)


def step_of(file: Writer, name: str, factor: float) -> float | None:
    """Return what a code of a quantizer is worth, times a factor; None where it rounds nothing."""
    if not name:
        return factor
    module = file.network.get_submodule(name)
    assert isinstance(module, Rounding)
    return None if module.bits == FLOAT else float(module.step) * factor


def _move(file: Writer, node: onnx.NodeProto, grid: Grid) -> Grid:
    """Write a node that moves values so that it moves their codes."""
    code = f"{node.output[0]}.code"
    node.input[0], node.output[0] = grid.code, code
    if node.op_type == "Pad" and _mode(node) == "constant":
        rest = node.input[3:]
        del node.input[2:]
        node.input.extend([f"{grid.label}.zero_point", *rest])
    file.nodes.append(node)
    return grid._replace(code=code)


def _mode(pad: onnx.NodeProto) -> str:
    return next((a.s.decode() for a in pad.attribute if a.name == "mode"), "constant")


def is_cut(file: Writer, node: onnx.NodeProto) -> bool:
    """Return whether the quantizers behind a ReLU6 clip for it: then integer kernels take it in."""
    if node.op_type != "Clip" or len(node.input) != 3:
        return False
    lowest, highest = (file.scalar(tensor) for tensor in node.input[1:])
    if lowest != 0 or highest is None:
        return False
    roundings = [user and file.rounding(user) for user in file.readers(node.output[0])]
    return bool(roundings) and all(
        r is not None and r.bits != FLOAT and float(r.clip) <= highest for r in roundings
    )


def _is_global_pool(file: Writer, node: onnx.NodeProto) -> bool:
    axes = file.constants.get(node.input[1]) if len(node.input) > 1 else None
    if axes is None or file.rank(node.input[0]) != 4:
        return False
    return sorted(numpy_helper.to_array(axes).tolist()) in ([2, 3], [-2, -1])


def _global_pool(mean: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return what computes the mean of each channel in an integer kernel."""
    tensor, output = mean.input[0], mean.output[0]
    if all(a.i == 1 for a in mean.attribute if a.name == "keepdims"):
        return [helper.make_node("GlobalAveragePool", [tensor], [output], mean.name)]
    pooled = f"{output}.pooled"
    return [
        helper.make_node("GlobalAveragePool", [tensor], [pooled], f"{mean.name}.pooled"),
        helper.make_node("Flatten", [pooled], [output], mean.name, axis=1),
    ]
