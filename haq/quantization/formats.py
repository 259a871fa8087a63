"""Layers whose weights are in groups, or that round what they read as they run."""

from torch import Tensor, nn
from torch.nn import functional

from haq.allocation.policy import Bits, Dynamic
from haq.quantization.dynamic import round_tensor, round_tokens
from haq.quantization.groups import round_groups


class Grouped(nn.Module):
    """A layer whose weights (rows, columns) are rounded in groups in every forward.

    Attributes:
        weight: Float underneath.
        weight_bits: 2 to 8.
        block: Weights of a group.
        dynamic: "token" where it rounds what it reads, else "".
        weight_scale: (rows, groups), numbers of float16.
    """

    weight: nn.Parameter
    weight_bits: int
    block: int
    dynamic: Dynamic
    weight_scale: Tensor

    def rounded_weight(self) -> Tensor:
        """Return the weights on their grid."""
        return round_groups(self.weight, self.weight_scale, self.weight_bits, self.block)


class GroupLinear(Grouped, nn.Linear):  # type: ignore[misc]
    """A Linear whose weights are rounded in groups along its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of (N, ..., c_in) with the rounded weights."""
        if self.dynamic:
            input = round_tokens(input, self.block)
        return functional.linear(input, self.rounded_weight(), self.bias)


class GroupEmbedding(Grouped, nn.Embedding):  # type: ignore[misc]
    """An Embedding whose rows are rounded in groups where they are read."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the rounded rows (..., features) of integers (...)."""
        return rounded_rows(self.weight, self.weight_scale, self.weight_bits, self.block, input)


class GroupRows(nn.Module):
    """Reads rows of another layer's weights, rounded as that layer rounds them."""

    def __init__(self, layer: str, bits: int, block: int):
        super().__init__()
        self.layer, self.bits, self.block = layer, bits, block

    def forward(self, weight: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
        """Return the rounded rows (..., features) of integers (...)."""
        return rounded_rows(weight, scale, self.bits, self.block, rows)


def rounded_rows(weight: Tensor, scale: Tensor, bits: int, block: int, rows: Tensor) -> Tensor:
    """Return rows (..., columns) of weights in groups, rounded."""
    return round_groups(functional.embedding(rows, weight), scale[rows], bits, block)


def set_grouped(module: nn.Module, bits: Bits, scales: Tensor) -> None:
    """Let a Linear or an Embedding round its weights in groups, in place."""
    module.__class__ = GroupLinear if isinstance(module, nn.Linear) else GroupEmbedding
    module.weight_bits, module.block = bits.weight, bits.block  # type: ignore[assignment]
    module.dynamic = bits.dynamic  # type: ignore[assignment]
    module.register_buffer("weight_scale", scales.clone())


def round_input(x: Tensor, dynamic: Dynamic) -> Tensor:
    """Return what a layer without groups multiplies."""
    return x if not dynamic else round_tokens(x) if dynamic == "token" else round_tensor(x)
