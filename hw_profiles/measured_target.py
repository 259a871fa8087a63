"""The target of a profile that was measured on a machine, network by network."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from haq.allocation.costs import Edge
from haq.allocation.policy import FLOAT, Bits
from haq.hw_profiles.answers import Costs
from haq.hw_profiles.between import ByBits
from haq.hw_profiles.measured import (
    Between,
    Changes,
    Measured,
    Passing,
    exact_everywhere,
    kernel,
)
from haq.hw_profiles.rows import Cells
from haq.hw_profiles.target import ProfileTarget
from haq.network.layers import Kind, Layer

CPU_PROVIDER = "CPUExecutionProvider"


class MeasuredTarget(ProfileTarget):
    """The target of a profile whose model is ``Measured``: for the layers it was measured on.

    On a CPU it offers no pair that saturates on another one, unless the profile says "vnni".
    """

    counts_floats = True  # the rows of the layers sum up to what whole networks took

    def offers(self, kind: Kind, bits: Bits) -> bool:
        """Return whether such layers answer alike wherever the files of this target shall run."""
        options = self.profile.runtime.options
        on_gpu = options.get("provider", CPU_PROVIDER) != CPU_PROVIDER
        return on_gpu or options.get("runs_on") == "vnni" or exact_everywhere(kind, bits)

    def by_bits(self) -> ByBits:
        """Return what finds the row of the kernel that runs a pair; half of a pair is not float."""
        of_kernels = super().by_bits()

        def by_bits(rows: Cells, bits: Bits) -> Costs | None:
            half = (bits.weight == FLOAT) != (bits.act == FLOAT)
            if min(bits) < 2 or (half and not bits.is_special):
                return None
            costs = of_kernels(rows, kernel(bits))
            if costs is None or bits == kernel(bits):
                return costs
            return costs._replace(method="rounded up")

        return by_bits

    def _answered(self, groups: Sequence[Cells]) -> tuple[Bits, ...]:
        special = {bits.scheme[1:] for rows in groups for bits in rows if bits.is_special}
        formats = {Bits(w, FLOAT, *scheme) for w, scheme in product(range(2, 9), special)}
        by_bits = self._table.by_bits
        more = {bits for bits in formats if any(by_bits(rows, bits) for rows in groups)}
        return tuple(sorted({*super()._answered(groups), *more}))

    def edges(
        self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
    ) -> tuple[Edge, ...]:
        """Return what a change of precision costs on every tensor between two of the layers."""
        model = self.profile.model
        assert isinstance(model, Measured)
        prices: dict[str, Changes] = {"latency": model}
        if model.energy is not None:
            prices["energy"] = model.energy
        return _passing(model.tensors, prices, self.batch, layers, choices)


class OwnDeviceTarget(ProfileTarget):
    """The target of a profile from a kit on which layers may be float."""

    counts_floats = True

    def edges(
        self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
    ) -> tuple[Edge, ...]:
        """Return what a change of precision costs on every tensor between two of the layers."""
        model = self.profile.model
        assert isinstance(model, Between)
        return _passing(model.tensors, {"latency": model}, self.batch, layers, choices)


def _passing(
    tensors: Sequence[Passing],
    prices: Mapping[str, Changes],
    batch: int,
    layers: Sequence[Layer],
    choices: Mapping[str, tuple[Bits, ...]],
) -> tuple[Edge, ...]:
    known = {layer.name for layer in layers}
    floats = {name: np.array([bits.floats for bits in choices[name]]) for name in known}
    edges = []
    for place, tensor in enumerate(tensors):
        if {tensor.producer, tensor.consumer} <= known:
            ends = floats[tensor.producer], floats[tensor.consumer]
            costs = {name: batch * tensor.values * _change(price.prices(place), *ends)
                     for name, price in prices.items()}  # fmt: skip
            edges.append(Edge(tensor.producer, tensor.consumer, costs))
    return tuple(edges)


def _change(
    prices: tuple[float, float], before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the cost of one value for each choice of the producer and of the consumer."""
    into = before[:, None] & ~after[None, :]
    back = ~before[:, None] & after[None, :]
    return prices[0] * into + prices[1] * back
