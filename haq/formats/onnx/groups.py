"""How layers are written whose weights are in groups, or that round what they read as they run.

ONNX Runtime's own operators compute them: MatMulNBits and GatherBlockQuantized for weights in
groups, whose codes have 2, 4 or 8 bits (others are widened as the file is loaded, see
``haq.formats.onnx.planes``; of 8 bits with float activations a product of floats is faster, see
``is_unpacked``), and products of integers behind DynamicQuantizeLinear, or behind a
rounding of each row.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from haq.formats.onnx.planes import joined
from haq.formats.onnx.writer import Array, Writer
from haq.network.modules import Product
from haq.quantization.bn_folding import Norm, affine
from haq.quantization.dynamic import TINY, TOP
from haq.quantization.fake_quant import QuantLinear
from haq.quantization.formats import Grouped, GroupLinear
from haq.quantization.groups import group_codes, in_blocks

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

WIDTHS = (2, 4, 8)
"""Bits of a code in ONNX Runtime's kernels."""

EXACT_LEVEL, INTEGER_LEVEL = 1, 4
"""Accuracy levels of MatMulNBits: float32 activations, or int8 with a scale for each block."""

MIDDLE = 128
"""Code of zero of rows that are rounded as the layer runs."""


def kernel_bits(bits: int) -> int:
    """Return how many bits a code of so many has in the kernel that takes it.

    >>> [kernel_bits(bits) for bits in range(2, 9)]
    [2, 4, 4, 8, 8, 8, 8]
    """
    return next(width for width in WIDTHS if width >= bits)


def packed(codes: Array, bits: int) -> Array:
    """Return unsigned codes (..., codes) side by side in bytes, the first in the lowest bits.

    >>> packed(np.array([1, 2, 15, 0], np.uint8), 4).tolist()
    [33, 15]
    """
    each = 8 // bits
    parts = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint8)
    shifts = (bits * np.arange(each)).astype(np.uint8)
    result: Array = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return result


def group_table(file: Writer, name: str, module: Grouped) -> tuple[str, str]:
    """Write the codes of a layer and its scales once; return both tensors.

    Codes are (rows, groups, bytes), scales (rows, groups) and become float32 when the file is
    loaded.
    """
    code, scale = f"{name}.weight_codes", f"{name}.weight_scale"
    if name not in file.grouped:
        file.grouped.add(name)
        width = kernel_bits(module.weight_bits)
        whole = group_codes(module.weight, module.weight_scale, module.weight_bits, module.block)
        parts: Array = in_blocks(whole, module.block).numpy()
        if width == module.weight_bits:
            counted = (parts.astype(np.int16) + 2 ** (width - 1)).astype(np.uint8)
            file.constant(code, packed(counted, width))
        else:
            slots = packed(parts.view(np.uint8) & (2**module.weight_bits - 1), width)
            joined(file, code, slots, module.weight_bits, width)
        half: Array = module.weight_scale.half().numpy()
        stored = file.constant(f"{scale}.half", half)
        file.first.append(helper.make_node("Cast", [stored], [scale], scale, to=TensorProto.FLOAT))
    return code, scale


def is_unpacked(bits: int, dynamic: str) -> bool:
    """Return whether the codes of a product become floats when the file is loaded.

    MatMulNBits of 8-bit codes and float activations takes 1.3 to 6 times what a product of floats
    does, that of 4 bits .97 to 1.3 times.

    >>> [is_unpacked(bits, "") for bits in (4, 5, 8)], is_unpacked(8, "token")
    ([False, True, True], False)
    """
    return not dynamic and kernel_bits(bits) == max(WIDTHS)


def lower_group_linear(
    file: Writer, module: GroupLinear, norm: Norm | None, tensor: str, output: str, label: str
) -> None:
    """Write a Linear whose weights are in groups, with the BatchNorm behind it."""
    name = label.partition("/")[0]
    code, scale = group_table(file, name, module)
    bias: Tensor | None = module.bias
    if norm is not None:
        multiplier, offset = affine(norm)
        bias = offset if bias is None else offset + multiplier * bias
        column = file.constant(f"{name}.multiplier", multiplier[:, None].numpy())
        merged = f"{name}.weight_scale_merged"
        file.first.append(helper.make_node("Mul", [scale, column], [merged], merged))
        scale = merged
    if is_unpacked(module.weight_bits, module.dynamic):
        _add_product(file, module, (tensor, code, scale), bias, output, label)
        return
    operands = [tensor, code, scale]
    if bias is not None:
        values: Array = bias.detach().numpy()
        operands += ["", "", file.constant(f"{label}.bias_values", values)]
    file.nodes.append(
        helper.make_node(
            "MatMulNBits", operands, [output], label, domain=CONTRIB,
            K=module.in_features, N=module.out_features, bits=kernel_bits(module.weight_bits),
            block_size=module.block,
            accuracy_level=INTEGER_LEVEL if module.dynamic else EXACT_LEVEL,
        )
    )  # fmt: skip


def _add_product(
    file: Writer, module: GroupLinear, read: tuple[str, str, str], bias: Tensor | None,
    output: str, label: str,
) -> None:  # fmt: skip
    """Write a product of floats whose weights ONNX Runtime makes of codes when it loads the file.

    Args:
        file: In the making.
        module: The layer.
        read: Its input, the codes (rows, groups, block) and their scales.
        bias: (rows,).
        output: Of the product.
        label: Of the layer.
    """
    tensor, code, scale = read

    def add(kind: str, inputs: list[str], part: str, **more: Any) -> str:
        made = f"{label}.weight_{part}"
        file.first.append(helper.make_node(kind, inputs, [made], made, **more))
        return made

    def whole(name: str, values: list[int]) -> str:
        return file.constant(f"{label}.{name}", np.array(values, np.int64))

    middle = file.constant("middle_of_bytes", np.array(MIDDLE, np.float32))
    real = add("Cast", [code], "counted", to=TensorProto.FLOAT)
    codes = add("Sub", [real, middle], "whole")
    steps = add("Unsqueeze", [scale, whole("last", [-1])], "steps")
    groups = add("Mul", [codes, steps], "groups")
    filled = add("Reshape", [groups, whole("rows", [0, -1])], "filled")
    ends = [whole(part, [value]) for part, value in (("from", 0), ("to", module.in_features))]
    rows = add("Slice", [filled, *ends, whole("axis", [1])], "rows")
    columns = add("Transpose", [rows], "columns", perm=[1, 0])
    product = output if bias is None else f"{label}.product"
    file.nodes.append(helper.make_node("MatMul", [tensor, columns], [product], label))
    if bias is not None:
        values: Array = bias.detach().numpy()
        added = [product, file.constant(f"{label}.bias_values", values)]
        file.nodes.append(helper.make_node("Add", added, [output], f"{label}.added"))


def group_rows(
    file: Writer, name: str, label: str, rows: str, output: str, module: Grouped
) -> list[onnx.NodeProto]:
    """Return the nodes that read rows of weights in groups."""
    code, scale = group_table(file, name, module)
    flat = f"{name}.row_codes"
    bits, columns = kernel_bits(module.weight_bits), module.weight.shape[1]
    size = -(-columns * bits // 8)
    if all(flat not in node.output for node in file.first):
        shape = file.constant(f"{flat}.shape", np.array([0, -1], np.int64))
        file.first.append(helper.make_node("Reshape", [code, shape], [f"{flat}.whole"], flat))
        file.first.append(_first(file, f"{flat}.whole", size, flat))
    wide = output if size * 8 == columns * bits else f"{output}.filled"
    picked = helper.make_node(
        "GatherBlockQuantized", [flat, rows, scale], [wide], label, domain=CONTRIB,
        bits=bits, block_size=module.block, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    return [picked] if wide == output else [picked, _first(file, wide, columns, output)]


def _first(file: Writer, tensor: str, count: int, output: str) -> onnx.NodeProto:
    """Return the node that takes so many of the last axis of a tensor."""
    ends = [
        file.constant(f"{output}.{part}", np.array([value], np.int64))
        for part, value in (("start", 0), ("count", count), ("axis", -1))
    ]
    return helper.make_node("Slice", [tensor, *ends], [output], f"{output}.first")


def add_dynamic_product(
    file: Writer, dynamic: str, tensor: str, code: tuple[str, Any, Array], output: str, label: str
) -> str:
    """Write the product of a tensor that is rounded as the file runs; return it without a bias.

    A tensor that several layers read is rounded once.

    Args:
        file: In the making.
        dynamic: As in ``haq.allocation.policy.Bits``.
        tensor: Floats.
        code: The weights' codes (in, out), their code of zero and their scales (out,).
        output: The product.
        label: Of the layer.
    """
    weight, zero, scales = code
    scale = file.constant(f"{label}.weight_scale", scales)
    middle = file.constant(f"{label}.weight_zero_point", np.array(zero))
    if (tensor, dynamic) not in file.rounded:
        rounding = _rounded_tensor if dynamic == "tensor" else _rounded_tokens
        file.rounded[tensor, dynamic] = rounding(file, tensor, label)
    codes, unit, zero_code = file.rounded[tensor, dynamic]
    if dynamic == "tensor":
        sums = file.add("MatMulInteger", [codes, weight, zero_code, middle], f"{label}.sums")
        file.nodes[-1].name = label
        real = file.add("Cast", [sums], f"{label}.sums_float", to=TensorProto.FLOAT)
        both = file.add("Mul", [unit, scale], f"{label}.unit")
        return file.add("Mul", [real, both], output)
    one, whole = file.constant("one", np.array(1, np.float32)), f"{label}.whole"
    file.nodes.append(
        helper.make_node("MatMulIntegerToFloat", [codes, weight, one, scale, zero_code, middle],
                         [whole], label, domain=CONTRIB)
    )  # fmt: skip
    return file.add("Mul", [whole, unit], output)


def _rounded_tensor(file: Writer, tensor: str, label: str) -> tuple[str, str, str]:
    """Write what rounds a whole tensor; return its codes, scale and zero point."""
    codes, scale, zero = (f"{label}.input{part}" for part in (".codes", ".scale", ".zero_point"))
    file.nodes.append(
        helper.make_node(
            "DynamicQuantizeLinear", [tensor], [codes, scale, zero], f"{label}/rounding"
        )
    )
    return codes, scale, zero


def _rounded_tokens(file: Writer, tensor: str, label: str) -> tuple[str, str, str]:
    """Write what rounds each row of a tensor; return its codes, scales and code of zero."""
    size = file.add("Abs", [tensor], f"{label}.magnitudes")
    last = file.constant("last_axis", np.array([-1], np.int64))
    largest = file.add("ReduceMax", [size, last], f"{label}.largest", keepdims=1)
    tiny = file.constant("tiny", np.array(TINY, np.float32))
    top = file.constant("highest_code", np.array(TOP, np.float32))
    largest = file.add("Max", [largest, tiny], f"{label}.largest_positive")
    unit = file.add("Div", [largest, top], f"{label}.token_scale")
    places = file.add("Div", [tensor, unit], f"{label}.places")
    one = file.constant("one", np.array(1, np.float32))
    zero_code = file.constant("middle_code", np.array(MIDDLE, np.uint8))
    codes = file.add("QuantizeLinear", [places, one, zero_code], f"{label}.codes")
    return codes, unit, zero_code


def is_dynamic(module: Product) -> bool:
    """Return whether a layer without groups rounds what it reads as it runs."""
    return isinstance(module, QuantLinear) and bool(module.dynamic)
