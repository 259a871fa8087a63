"""Codes of 3, 5, 6 and 7 bits in a file at their own size.

ONNX Runtime's kernels for weights in groups take codes of 2, 4 or 8 bits. A file holds others as
planes of 1, 2 or 4 bits side by side, and nodes on constants alone put them together as the file is
loaded, so that the file has the size of the bits and the kernel the codes it wants::

    plane of p bits    p bits of a slot of w bits, from ``w / p`` neighbouring bytes in each byte
    code               low bits of two's complement; the top one is repeated up to w bits, and the
                       last turned over, as codes count from 2**(w - 1)
"""

from functools import reduce

import numpy as np
from onnx import helper

from haq.formats.onnx.writer import Array, Writer

PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Bits of a code to the bits of its planes, the lowest ones first."""


def _mask(bits: int, width: int) -> int:
    """Return a byte in which the lowest bits of every slot are set.

    >>> bin(_mask(1, 4)), bin(_mask(2, 8))
    ('0b10001', '0b11')
    """
    byte: int = (1 << bits) - 1
    return byte * (0x11 if width == 4 else 1)


def planes_of(slots: Array, bits: int, width: int) -> list[Array]:
    """Return the planes of codes in slots of ``width`` bits, the lowest first.

    Args:
        slots: Bytes (N,) of codes in two's complement, of which the lower ``bits`` bits of a slot
            count; N is a multiple of 8.
        bits: A key of ``PLANES``.
        width: 4 or 8.

    >>> codes = np.array([1, 30, 0, 15, 16, 31, 2, 3], np.uint8)
    >>> [plane.tolist() for plane in planes_of(codes, 5, 8)]
    [[225, 240, 240, 50], [50]]
    """
    planes, low = [], 0
    for part in PLANES[bits]:
        fields = (slots >> low) & _mask(part, width)
        shifts = (part * np.arange(width // part)).astype(np.uint8)
        planes.append(np.bitwise_or.reduce(fields.reshape(-1, width // part) << shifts, axis=-1))
        low += part
    return planes


def joined(file: Writer, name: str, slots: Array, bits: int, width: int) -> str:
    """Write codes as planes, and the nodes that join them as the file is loaded.

    Args:
        file: In the making.
        name: Of the tensor that the nodes give: uint8, of the shape of ``slots``, codes that count
            from ``2**(width - 1)``.
        slots: As for ``planes_of``, of any shape.
        bits: As for ``planes_of``.
        width: As for ``planes_of``.
    """

    def add(kind: str, inputs: list[str], output: str, **attributes: str) -> str:
        file.first.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def byte(value: int) -> str:
        return file.constant(f"byte_{value}", np.array(value, np.uint8))

    def left(tensor: str, by: int) -> str:
        moved = f"{tensor}.{by}"
        return add("BitShift", [tensor, byte(by)], moved, direction="LEFT") if by else tensor

    parts, low = [], 0
    shape = file.constant(f"{name}.shape", np.array(slots.shape, np.int64))
    planes = planes_of(slots.reshape(-1), bits, width)
    for plane, part in zip(planes, PLANES[bits], strict=True):
        stored = file.constant(f"{name}.plane_{low}", plane[:, None])
        shifts = (part * np.arange(width // part)).astype(np.uint8)
        by = file.constant(f"shifts_{part}_{width}", shifts)
        moved = add("BitShift", [stored, by], f"{stored}.moved", direction="RIGHT")
        fields = add("BitwiseAnd", [moved, byte(_mask(part, width))], f"{stored}.fields")
        parts.append(left(add("Reshape", [fields, shape], f"{stored}.codes"), low))
        low += part

    def either(one: str, other: str) -> str:
        return add("BitwiseOr", [one, other], f"{name}.either_{len(file.first)}")

    code = reduce(either, parts)
    top = add("BitwiseAnd", [code, byte(_mask(1, width) << (bits - 1))], f"{name}.top")
    code = reduce(either, [code, *(left(top, by) for by in range(1, width - bits + 1))])
    return add("BitwiseXor", [code, byte(_mask(1, width) << (width - 1))], name)
