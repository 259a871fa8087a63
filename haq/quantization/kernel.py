"""How an integer kernel computes a layer."""

from typing import NamedTuple

from torch import Tensor


class Kernel(NamedTuple):
    """What a layer multiplies and rescales by; see ``haq.quantization.integer_forward``.

    Attributes:
        step: What a code of the input is worth.
        factor: By which the codes of the weights are multiplied.
        unit: (out,) float32: what the sums of products are worth.
        wide: Whether sums of the codes as they are can leave the whole numbers that float32 holds.
    """

    step: float
    factor: int
    unit: Tensor
    wide: bool
