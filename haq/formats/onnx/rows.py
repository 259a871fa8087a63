"""How rows of a table are looked up: among packed codes, of which a few are then rescaled."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from haq.formats.onnx.books import book_weight
from haq.formats.onnx.groups import group_rows
from haq.formats.onnx.writer import Array, Codes, Writer, name_of, narrow_codes
from haq.quantization.codebook import Booked
from haq.quantization.fake_quant import Quantized
from haq.quantization.formats import Grouped
from haq.quantization.quantizer import codes, step


def lower_embedding(file: Writer, node: onnx.NodeProto, module: nn.Embedding) -> None:
    """Write the Embedding that a marker stands for."""
    name, output = name_of(node), node.output[0]
    label = f"{name}/{output}" if name in file.written else name
    file.written.add(name)
    file.nodes += _rows(file, name, label, file.now(node.input[0]), output, module)


def lower_shared_rows(file: Writer, node: onnx.NodeProto) -> None:
    """Remember where rows of another layer's weights are looked up."""
    file.shared_rows.append((len(file.nodes), node))


def write_shared_rows(file: Writer) -> None:
    """Write these look-ups, now that their layers have written their codes."""
    for place, node in reversed(file.shared_rows):
        name, output = name_of(node), node.output[0]
        rows = file.now(node.input[0])
        module = file.network.get_submodule(name)
        written = _rows(file, name, f"op/{output}.rows", rows, output, module)
        file.nodes[place:place] = written


def _rows(
    file: Writer, name: str, label: str, rows: str, output: str, module: nn.Module
) -> list[onnx.NodeProto]:
    """Return the nodes that read rows of the weights of a module."""
    if isinstance(module, Grouped):
        return group_rows(file, name, label, rows, output, module)
    if isinstance(module, Booked):
        return _book_rows(file, name, label, rows, output, module)
    weight: Array
    if not isinstance(module, Quantized):
        weight = module.get_parameter("weight").detach().numpy()
        table = file.constant(f"{name}.weight_values", weight)
        return [helper.make_node("Gather", [table, rows], [output], label)]
    code, zero, values = _codes_of(file, name, module)
    picked, real = f"{output}.codes", f"{output}.codes_float"
    nodes = [
        helper.make_node("Gather", [code, rows], [picked], label),
        helper.make_node("Cast", [picked], [real], real, to=TensorProto.FLOAT),
    ]
    if zero:
        middle = file.constant(f"{name}.row_zero", np.array(zero, np.float32))
        whole, real = real, f"{output}.codes_signed"
        nodes.append(helper.make_node("Sub", [whole, middle], [real], real))
    scale = file.constant(f"{name}.row_scale", values[:, None])
    if len(values) > 1:
        scales, scale = scale, f"{output}.scales"
        nodes.append(helper.make_node("Gather", [scales, rows], [scale], scale))
    return [*nodes, helper.make_node("Mul", [real, scale], [output], f"{output}.rescaled")]


def _book_rows(
    file: Writer, name: str, label: str, rows: str, output: str, module: Booked
) -> list[onnx.NodeProto]:
    """Return the nodes that read rows of labels, then the values of these."""
    book_weight(file, name, module)
    picked = f"{output}.places"
    return [
        helper.make_node("Gather", [f"{name}.weight_places", rows], [picked], picked),
        helper.make_node("Gather", [f"{name}.weight_book", picked], [output], label),
    ]


def _codes_of(file: Writer, name: str, module: Quantized) -> Codes:
    """Return the codes of a layer in the file (rows, features), written now if need be."""
    if name not in file.codes:
        bits, clip = module.weight_bits, module.weight_clip
        with torch.no_grad():
            values: Array = codes(module.weight, bits, clip[:, None]).numpy()
            scale: Array = step(bits, clip, signed=True).numpy()
        code = narrow_codes(file, name, values)
        if code is None:
            code = file.constant(f"{name}.weight_codes", values)
        file.codes[name] = Codes(code, np.int8(0), scale)
    return file.codes[name]
