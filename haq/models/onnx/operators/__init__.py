"""The table of operators: from a node of a file to what PyTorch computes for it."""

from collections.abc import Callable, Mapping

from haq.models.onnx.node import Module, Node, Run, Sized
from haq.models.onnx.operators import elementwise, layers, recurrent, reductions, resize, shapes

Builder = Callable[[Node], Run | Sized | Module]

OPERATORS: Mapping[str, Builder] = {
    **elementwise.OPERATORS,
    **shapes.OPERATORS,
    **reductions.OPERATORS,
    **layers.OPERATORS,
    **recurrent.OPERATORS,
    **resize.OPERATORS,
}
"""Operator of ONNX to the function that reads a node of it."""
