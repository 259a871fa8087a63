"""What a policy costs on a target: tables per layer and choice, and their sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from haq.layers import Layer
from haq.policy import Bits, Policy


class Target(Protocol):
    """A piece of hardware, or a model of one, that knows what a layer costs."""

    name: str
    batch: int
    units: Mapping[str, str]
    """Quantity ("latency", "energy") to the unit in which ``cost`` gives it, such as "cycles"."""

    def choices(self, layer: Layer) -> Sequence[Bits]:
        """Return every pair of bit-widths in which the target can run the layer."""
        ...

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        """Return the cost of all calls of the layer, per quantity, in the unit of ``units``.

        Raises:
            TargetError: The target cannot run the layer at these bits.
        """
        ...
