"""How a layer is written: a product with packed integer weights, a bias in whole numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from haq.formats.onnx.books import book_weight
from haq.formats.onnx.groups import add_dynamic_product, is_dynamic, lower_group_linear
from haq.formats.onnx.operators import is_cut, moves
from haq.formats.onnx.rows import lower_embedding
from haq.formats.onnx.saturation import can_saturate
from haq.formats.onnx.template import DOMAIN
from haq.formats.onnx.writer import Array, Codes, Grid, Writer, name_of, narrow_codes, shape_of
from haq.network.modules import Convolution, Matrix, Product, Transposed, along_weight, as_weight
from haq.quantization.bn_folding import Norm
from haq.quantization.codebook import Booked
from haq.quantization.fake_quant import Quantized
from haq.quantization.folding import Folded, InputGrid, fold, has_integer_kernel
from haq.quantization.formats import GroupLinear
from haq.quantization.quantizer import codes, step

MIDDLE = 128
"""Zero point of weights in uint8."""


def lower_layer(file: Writer, node: onnx.NodeProto) -> None:
    """Write the layer that a marker stands for, with the BatchNorm behind it."""
    name, output = name_of(node), node.output[0]
    module = file.network.get_submodule(name)
    if isinstance(module, nn.Embedding):
        lower_embedding(file, node, module)
        return
    norm = file.network.get_submodule(file.norms[name]) if name in file.norms else None
    assert isinstance(module, Product) and (norm is None or isinstance(norm, Norm))
    # A module that is called twice has two nodes; the first bears its name.
    label = f"{name}/{output}" if name in file.written else name
    file.written.add(name)
    tensor = _padded(file, module, file.now(node.input[0]), label)
    if isinstance(module, GroupLinear):
        lower_group_linear(file, module, norm, tensor, output, label)
        return
    if is_dynamic(module):
        _add_dynamic(file, module, norm, tensor, output, label)
        return
    grid = codes_read = file.grids.get(tensor)
    integers = has_integer_kernel(module)
    weight = book_weight(file, name, module, norm) if isinstance(module, Booked) else None
    folded = fold(module, norm, grid and InputGrid(torch.tensor(grid.scale), grid.top), integers)
    if grid is not None and (folded.scale is None or name in file.floats or not integers):
        # Otherwise ONNX Runtime quantizes the weights of a float layer between integer ones.
        apart = None if file.symmetric else file.add("Max", [tensor], f"{label}.float_input")
        tensor, grid = apart or tensor, None
    if isinstance(module, Transposed):
        exact = isinstance(module, Quantized) and bool(module.kernels)
        if exact and codes_read is not None and weight is None:
            _add_exact_transposed(file, module, codes_read, output, label, folded)
        else:
            _add_transposed(file, module, tensor, output, label, folded, weight)
    elif isinstance(module, nn.Linear):
        operands = _operands(file, label, tensor, folded, grid, False, weight)
        readers = file.readers(output)
        shown = None in readers and len(readers) > 1
        result = f"{label}.result" if shown else output
        _add_gemm(file, operands, result, label, shape_of(node), module.in_features)
        if shown:  # ONNX Runtime takes no kernel of integers for a result that is read again
            file.add("Max", [result], output)
    elif grid is None or folded.scale is None or file.symmetric or _is_rounded(file, output):
        operands = _operands(file, label, tensor, folded, grid, _is_depthwise(module), weight)
        file.nodes.append(helper.make_node("Conv", operands, [output], label, **_geometry(module)))
    else:
        _add_conv_integer(file, module, grid, output, label, folded)


def lower_matrix(file: Writer, node: onnx.NodeProto) -> None:
    """Write a matrix that an operation reads as floats, from packed codes."""
    name = name_of(node)
    module = file.network.get_submodule(name)
    assert isinstance(module, Matrix)
    if isinstance(module, Booked):
        file.rename(node.output[0], book_weight(file, name, module))
        return
    weight, scale = module.weight.detach(), None
    if isinstance(module, Quantized):
        scale = step(module.weight_bits, module.weight_clip, signed=True)
        weight = codes(weight, module.weight_bits, along_weight(module.weight_clip, module))
    file.rename(node.output[0], _float_weight(file, module, name, Folded(weight, scale, None)))


def _add_dynamic(
    file: Writer, module: Product, norm: Norm | None, tensor: str, output: str, label: str
) -> None:
    """Write a Linear that rounds what it reads as it runs, with the BatchNorm behind it."""
    dynamic = str(module.dynamic)
    # Of its codes only the highest counts here: that of DynamicQuantizeLinear, or of a row.
    folded = fold(module, norm, InputGrid(torch.tensor(1.0), 255), rescaled=False)
    scales, grid = _scales(folded), Grid(np.float32(1), MIDDLE, 255)
    rows, zero = _written_codes(file, label, folded, grid, depthwise=False)
    code = f"{label}.weight_columns"
    file.first.append(helper.make_node("Transpose", [rows], [code], code, perm=[1, 0]))
    if folded.bias is None:
        add_dynamic_product(file, dynamic, tensor, (code, zero, scales), output, label)
        return
    product = f"{label}.product"
    add_dynamic_product(file, dynamic, tensor, (code, zero, scales), product, label)
    bias: Array = folded.bias.float().numpy()
    file.add("Add", [product, file.constant(f"{label}.bias_values", bias)], output)


def _padded(file: Writer, module: Product, tensor: str, label: str) -> str:
    """Write the padding of a convolution as a node, if it is not zeros."""
    if not isinstance(module, Convolution) or module.padding_mode == "zeros":
        return tensor
    mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[module.padding_mode]
    pads, axes = _pads(module), len(module.kernel_size)
    sizes = np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64)
    amounts = file.constant(f"{label}.pads", sizes)
    grid = file.grids.get(tensor)
    if grid is None:
        return file.add("Pad", [tensor, amounts], f"{label}.padded", mode=mode)
    code = file.add("Pad", [grid.code, amounts], f"{label}.padded_codes", mode=mode)
    return file.dequantized(grid._replace(code=code), f"{label}.padded")


def _is_depthwise(module: Product) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def _is_rounded(file: Writer, tensor: str) -> bool:
    """Return whether ONNX Runtime can take the quantizer behind a convolution into its kernel."""
    readers = file.readers(tensor)
    if len(readers) != 1 or readers[0] is None:
        return False
    node = readers[0]
    if node.domain == DOMAIN:
        return node.op_type == "round"
    passes = node.op_type == "Relu" or moves(file, node) or is_cut(file, node)
    return passes and _is_rounded(file, node.output[0])


def _geometry(module: Convolution | Transposed) -> dict[str, Any]:
    none = [0] * 2 * len(module.kernel_size)
    return {
        "dilations": list(module.dilation), "group": module.groups,
        "kernel_shape": list(module.kernel_size),
        "pads": _pads(module) if module.padding_mode == "zeros" else none,
        "strides": list(module.stride),
    }  # fmt: skip


def _pads(module: Convolution | Transposed) -> list[int]:
    """Return how much is added before each axis of an image, and behind each."""
    if module.padding == "valid":
        return [0] * 2 * len(module.kernel_size)
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [span // 2 for span in spans] + [span - span // 2 for span in spans]
    return [int(size) for size in module.padding] * 2


def _operands(
    file: Writer,
    label: str,
    tensor: str,
    folded: Folded,
    grid: Grid | None,
    depthwise: bool,
    weight: str | None,
) -> list[str]:
    """Return what a Conv or a Gemm reads: input, dequantized weights, dequantized bias."""
    weight = weight or _weight(file, label, folded, grid, depthwise)
    bias = [] if folded.bias is None else [_bias(file, label, folded, grid)]
    return [tensor, weight, *bias]


def _weight(file: Writer, label: str, folded: Folded, grid: Grid | None, depthwise: bool) -> str:
    """Return the weights as floats, of codes where they have some."""
    if folded.scale is None:
        return file.constant(f"{label}.weight_values", folded.weight.numpy())
    code, zero = _written_codes(file, label, folded, grid, depthwise)
    zeros = np.full(len(folded.weight), zero)
    return file.add(
        "DequantizeLinear",
        [
            code,
            file.constant(f"{label}.weight_scale", _scales(folded)),
            file.constant(f"{label}.weight_zero_point", zeros),
        ],
        f"{label}.weight_dequantized", axis=0,
    )  # fmt: skip


def _written_codes(
    file: Writer, label: str, folded: Folded, grid: Grid | None, depthwise: bool
) -> tuple[str, np.int8 | np.uint8]:
    code, zero = _weight_codes(file, label, folded, grid, depthwise)
    file.codes[label] = Codes(code, zero, _scales(folded))
    return code, zero


def _weight_codes(
    file: Writer, label: str, folded: Folded, grid: Grid | None, depthwise: bool
) -> tuple[str, np.int8 | np.uint8]:
    """Return the tensor of a layer's codes, packed if they are few, and the code of zero."""
    values: Array = folded.weight.numpy()
    if file.symmetric:
        return file.constant(f"{label}.weight_codes", values), np.int8(0)
    largest = int(np.abs(values.astype(np.int16)).max(initial=0))
    wide = narrow_codes(file, label, values // np.int8(folded.factor))
    if wide is not None:
        factor = file.constant(f"factor_{folded.factor}", np.array(folded.factor, np.int8))
        code = f"{label}.weight_rescaled"
        file.first.append(helper.make_node("Mul", [wide, factor], [code], code))
        return code, np.int8(0)
    if grid and file.cpu == "any" and can_saturate(grid.top, largest, depthwise):
        shifted = (values.astype(np.int16) + MIDDLE).astype(np.uint8)
        return file.constant(f"{label}.weight_codes", shifted), np.uint8(MIDDLE)
    return file.constant(f"{label}.weight_codes", values), np.int8(0)


def _scales(folded: Folded) -> Array:
    assert folded.scale is not None
    return np.array(np.broadcast_to(folded.scale.numpy(), len(folded.weight)))


def _units(folded: Folded, grid: Grid) -> Array:
    # float32, as ONNX Runtime multiplies them
    units: Array = _scales(folded) * grid.scale
    return units


def _bias_codes(folded: Folded, units: Array) -> Array:
    assert folded.bias is not None
    codes: Array = np.rint(folded.bias.numpy() / units).astype(np.int32)
    return codes


def _bias(file: Writer, label: str, folded: Folded, grid: Grid | None) -> str:
    assert folded.bias is not None
    if folded.scale is None or grid is None or file.symmetric:
        return file.constant(f"{label}.bias_values", folded.bias.float().numpy())
    units = _units(folded, grid)
    return file.add(
        "DequantizeLinear",
        [
            file.constant(f"{label}.bias_codes", _bias_codes(folded, units)),
            file.constant(f"{label}.bias_scale", units),
            file.constant(f"{label}.bias_zero_point", np.zeros(units.shape, np.int32)),
        ],
        f"{label}.bias_dequantized", axis=0,
    )  # fmt: skip


def _add_conv_integer(
    file: Writer, module: Convolution, grid: Grid, output: str, label: str, folded: Folded
) -> None:
    """Write a convolution whose result stays float: ONNX Runtime fuses Conv only between codes."""
    # Its kernel is the same for depthwise convolutions, so they are no exception.
    code, zero = _written_codes(file, label, folded, grid, depthwise=False)
    zeros = [
        file.constant(f"{label}.{which}_zero_point", np.array(value))
        for which, value in (("input", np.uint8(grid.zero)), ("weight", zero))
    ]
    sums = f"{label}.sums"
    file.nodes.append(
        helper.make_node("ConvInteger", [grid.code, code, *zeros], [sums], label,
                         **_geometry(module))
    )  # fmt: skip
    units, column = _units(folded, grid), (1, -1, *(1,) * len(module.kernel_size))
    if folded.bias is not None:
        bias = _bias_codes(folded, units).reshape(column)
        sums = file.add(
            "Add", [sums, file.constant(f"{label}.bias_codes", bias)], f"{label}.with_bias"
        )
    whole = file.add("Cast", [sums], f"{label}.sums_float", to=TensorProto.FLOAT)
    file.add("Mul", [whole, file.constant(f"{label}.unit", units.reshape(column))], output)


def _add_transposed(
    file: Writer,
    module: Transposed,
    tensor: str,
    output: str,
    label: str,
    folded: Folded,
    weight: str | None,
) -> None:
    """Write a transposed convolution: its kernel is one of floats, its weights are packed."""
    weight = weight or _float_weight(file, module, label, folded)
    bias = [] if folded.bias is None else [_bias(file, label, folded, None)]
    extra = list(module.output_padding)
    file.nodes.append(
        helper.make_node("ConvTranspose", [tensor, weight, *bias], [output], label,
                         output_padding=extra, **_geometry(module))
    )  # fmt: skip


def _add_exact_transposed(
    file: Writer, module: Transposed, grid: Grid, output: str, label: str, folded: Folded
) -> None:
    """Write a transposed convolution of codes: in floats, but of whole numbers, hence exact."""
    whole = file.add("Cast", [grid.code], f"{label}.input_codes", to=TensorProto.FLOAT)
    if grid.zero:
        zero = file.constant(f"{label}.input_zero", np.array(grid.zero, np.float32))
        whole = file.add("Sub", [whole, zero], f"{label}.input_whole")
    weight, sums = _whole_weight(file, module, label, folded), f"{label}.sums"
    extra = list(module.output_padding)
    file.nodes.append(
        helper.make_node("ConvTranspose", [whole, weight], [sums], label,
                         output_padding=extra, **_geometry(module))
    )  # fmt: skip
    column = (1, -1, *(1,) * len(module.kernel_size))
    unit = file.constant(f"{label}.unit", _units(folded, grid).reshape(column))
    if folded.bias is None:
        file.add("Mul", [sums, unit], output)
        return
    bias = file.constant(f"{label}.bias_values", folded.bias.float().numpy().reshape(column))
    file.add("Add", [file.add("Mul", [sums, unit], f"{label}.scaled"), bias], output)


def _whole_weight(file: Writer, module: Transposed | Matrix, label: str, folded: Folded) -> str:
    """Return the codes of the weights as floats, which ONNX Runtime makes of them on loading."""
    values: Array = as_weight(folded.weight, module).numpy()
    code = narrow_codes(file, label, values) or file.constant(f"{label}.weight_codes", values)
    whole = f"{label}.weight_whole"
    file.first.append(helper.make_node("Cast", [code], [whole], whole, to=TensorProto.FLOAT))
    return whole


def _float_weight(file: Writer, module: Transposed | Matrix, label: str, folded: Folded) -> str:
    """Return the weights in float, which ONNX Runtime makes of codes when it loads the file."""
    values: Array = as_weight(folded.weight, module).numpy()
    if folded.scale is None:
        return file.constant(f"{label}.weight_values", values)
    scale = along_weight(torch.from_numpy(_scales(folded)), module).numpy()
    steps = file.constant(f"{label}.weight_scale", scale)
    whole, real = _whole_weight(file, module, label, folded), f"{label}.weight_float"
    file.first.append(helper.make_node("Mul", [whole, steps], [real], real))
    return real


def _add_gemm(
    file: Writer, operands: list[str], output: str, label: str, shape: Sequence[int], features: int
) -> None:
    """Write a matrix product; rows that stand in several axes are put into one for it."""
    if len(shape) == 2:
        file.nodes.append(helper.make_node("Gemm", operands, [output], label, transB=1))
        return
    flat = file.constant(f"{label}.rows", np.array([-1, features], np.int64))
    back = _shape_of_rows(file, operands[0], label, shape)
    operands[0] = file.add("Reshape", [operands[0], flat], f"{label}.input")
    rows = f"{label}.product"
    file.nodes.append(helper.make_node("Gemm", operands, [rows], label, transB=1))
    file.add("Reshape", [rows, back], output)


def _shape_of_rows(file: Writer, tensor: str, label: str, shape: Sequence[int]) -> str:
    """Return the shape of a product as a tensor: taken from its input if several sizes are free."""
    if list(shape).count(-1) < 2:
        return file.constant(f"{label}.shape", np.array(shape, np.int64))
    rows = file.add("Shape", [tensor], f"{label}.sizes", end=-1)
    outputs = file.constant(f"{label}.outputs", np.array(shape[-1:], np.int64))
    return file.add("Concat", [rows, outputs], f"{label}.shape", axis=0)
