"""The record of a layer: what the costs and the search know of it. ``haq.network`` fills it in.

Everything downstream (costs, env, policy, export) speaks of layers by the name that
``model.named_modules()`` gives them, never by position.
"""

from dataclasses import dataclass
from typing import Literal

EDGE_BITS = 8
"""Bits of the network's input, of residual operands and sums, and of what is pooled."""

Kind = Literal["conv", "depthwise", "grouped", "pointwise", "linear"]


@dataclass(frozen=True)
class Layer:
    """One Conv2d or Linear of a model, seen with one sample.

    Attributes:
        name: As in ``model.named_modules()``.
        kind: "pointwise" is a 1x1 convolution with one group, "depthwise" has as many groups as
            input and output channels (more than one), "grouped" any other number of groups > 1.
        c_in: Input channels, or input features of a linear layer.
        c_out: Output channels, or output features.
        kernel: Height and width; (1, 1) for a linear layer, as for stride; padding is then (0, 0).
        stride: Down and across.
        padding: Rows and columns added on each side.
        groups: Groups of channels that do not see each other.
        in_size: Height and width of the input feature map of one image; for a linear layer
            (positions, 1), where positions counts the rows that the layer is applied to.
        out_size: The same for the output.
        weights: Number of weights, without the bias.
        biases: Number of biases, counting the one a folded BatchNorm leaves behind.
        macs: Multiply-accumulates for one image, in all calls together.
        calls: How often one forward calls the module.
        signed: Whether its input can be negative.
        reads: Name of the first layer that reads the same input tensor: layers with equal
            ``reads`` share one activation bit-width. Its own name where nobody read it before.
        reads_input: Whether that tensor is the network's input, which always has 8 bits.
    """

    name: str
    kind: Kind
    c_in: int
    c_out: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    weights: int = 0
    biases: int = 0
    macs: int = 0
    calls: int = 1
    signed: bool = False
    reads: str = ""
    reads_input: bool = False
