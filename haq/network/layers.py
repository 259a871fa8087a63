"""The record of a layer: what the costs and the search know of it. ``haq.network`` fills it in.

Everything downstream (costs, env, policy, export) speaks of layers by the name that
``model.named_modules()`` gives them, never by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

EDGE_BITS = 8
"""Bits of the network's input, of residual operands and sums, and of what is pooled."""

SPARSE = 0.25
"""Share of exact zeros from which a layer was pruned: training alone makes hardly any."""

Kind = Literal[
    "conv", "depthwise", "grouped", "pointwise", "transposed", "linear", "embedding", "recurrent",
    "matrix",
]  # fmt: skip

Sizes = tuple[int, ...]
"""Height and width, or depth, height and width."""

WEIGHTS_ALONE: tuple[Kind, ...] = ("embedding", "recurrent", "matrix")
"""Kinds of layers that have bits of weights alone: what they read is not rounded."""


class CallShape(NamedTuple):
    """The sizes with which a forward calls a layer once or several times.

    Attributes:
        in_size: As ``Layer.in_size``.
        out_size: As ``Layer.out_size``.
        macs: Multiply-accumulates of one such call for one image.
        calls: How often one forward calls the layer with these sizes.
    """

    in_size: Sizes
    out_size: Sizes
    macs: int
    calls: int


@dataclass(frozen=True)
class Layer:
    """One layer of a model, seen with one sample.

    Attributes:
        name: As in ``model.named_modules()``.
        kind: "pointwise" is a 1x1 convolution with one group, "depthwise" has as many groups as
            input and output channels (more than one), "grouped" any other number of groups > 1.
            "transposed" is a transposed convolution, with any groups. "embedding" is a table whose
            rows are looked up: it multiplies nothing. "recurrent" is one matrix of an LSTM, GRU or
            RNN, which multiplies once for every step, "matrix" the weights of any other operation,
            such as those of all experts together.
        c_in: Input channels, or input features of a linear layer, or rows of an embedding.
        c_out: Output channels, or output features.
        kernel: Height and width, of a 3-D convolution depth before them; a 1-D convolution is one
            over rows, its height 1. (1, 1) for a linear layer, as for stride; padding is (0, 0).
        stride: Down and across, and first along the depth.
        padding: Added on each side, likewise; of a transposed convolution, taken away.
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
        shapes: The sizes of its calls where they differ, in order of execution; empty where all
            calls have ``in_size`` and ``out_size``, which are those of the first call.
        zeros: Number of weights that pruning made zero, and that stay so; 0 where it made none.
    """

    name: str
    kind: Kind
    c_in: int
    c_out: int
    kernel: Sizes = (1, 1)
    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    groups: int = 1
    in_size: Sizes = (1, 1)
    out_size: Sizes = (1, 1)
    weights: int = 0
    biases: int = 0
    macs: int = 0
    calls: int = 1
    signed: bool = False
    reads: str = ""
    reads_input: bool = False
    shapes: tuple[CallShape, ...] = ()
    zeros: int = 0

    @property
    def scales(self) -> int:
        """Number of scales of its weights: one per output, of an embedding one per row."""
        return self.c_in if self.kind == "embedding" else self.c_out

    @property
    def weights_alone(self) -> bool:
        """Whether it has bits of weights alone: its activations have 32 bits, float."""
        return self.kind in WEIGHTS_ALONE

    def by_size(self) -> "tuple[Layer, ...]":
        """Return the layer once for each size it is called with: costs are sums over these.

        >>> head = Layer("head", "conv", 8, 8, in_size=(32, 32), out_size=(32, 32), calls=2, shapes=
        ...     (CallShape((32, 32), (32, 32), 65536, 1), CallShape((4, 4), (4, 4), 1024, 1)))
        >>> [(layer.in_size, layer.calls, layer.macs) for layer in head.by_size()]
        [((32, 32), 1, 65536), ((4, 4), 1, 1024)]
        """
        if not self.shapes:
            return (self,)
        return tuple(
            replace(
                self, in_size=shape.in_size, out_size=shape.out_size, calls=shape.calls,
                macs=shape.macs * shape.calls, shapes=(),
            )
            for shape in self.shapes
        )  # fmt: skip


def edges(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return the names of the first and the last layer that multiply; none where none does.

    >>> edges([Layer("words", "embedding", 9, 4), Layer("fc", "linear", 4, 2)])
    ('fc', 'fc')
    """
    names = [layer.name for layer in layers if not layer.weights_alone]
    return (names[0], names[-1]) if names else ()
