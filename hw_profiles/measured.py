"""A measured runtime as a target: rows for the kernels, and what a change of precision costs.

The latency of a network is predicted as::

    sum over layers of row(layer, kernel)
      + to_quantized * values that pass from a float layer to a quantized one
      + to_float * values that pass from a quantized layer to a float one

A layer has three kernels: float, integer, and integer with a Clip where activations have fewer than
8 bits. Weights of fewer bits run in the kernel of 8: the runtime gains nothing from them, so
neither does the prediction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from haq.allocation.costs import Edge
from haq.allocation.policy import FLOAT, Bits, Policy
from haq.hw_profiles.document import Cells, Measured, Passing, Validation
from haq.hw_profiles.lookup import Found, ProfileTarget
from haq.network.layers import Kind, Layer

FLOATS = Bits(FLOAT, FLOAT)
INTEGERS = Bits(8, 8)
CLIPPED = Bits(8, 7)
"""Stands for all activations of fewer than 8 bits: their codes have 8 bits, and are clipped."""

STANDARD = Bits(7, 8)
"""The pair of most bits whose integer kernel is exact on every x86 CPU: it stands for the kernel
where one is measured."""

_ADDS_IN_16_BITS = 15
"""Most weight and activation bits in sum whose products no x86 kernel saturates: those without VNNI
add two neighbouring products in 16 bits, and 2 * 255 * 63 and 2 * 127 * 127 are below 2**15."""

CPUS = ("any", "vnni")
"""What the files of a search shall run on: every x86 CPU, or those whose kernels add in 32 bits."""

ROW_ERROR = 0.1
"""How far the time of a layer's kernel from the profiler is off, as a share: about."""

CLOCK_ERROR = 0.012
"""How far the latency of a whole network is off when it is measured: about."""

_EXACT = 1e-6

Rows = Mapping[str, Mapping[Bits, float]]
"""Layer to kernel, one of the three above, to latency."""


def kernel(bits: Bits) -> Bits:
    """Return the kernel that runs a layer at these bits.

    >>> kernel(Bits(4, 8)), kernel(Bits(4, 3))
    (Bits(weight=8, act=8), Bits(weight=8, act=7))
    """
    return FLOATS if FLOAT in bits else INTEGERS if bits.act == INTEGERS.act else CLIPPED


def exact_everywhere(kind: Kind, bits: Bits) -> bool:
    """Return whether the integer kernel of such a layer gives the exact sums on every x86 CPU.

    Depthwise convolutions have a kernel that adds in 32 bits.

    >>> exact_everywhere("conv", Bits(8, 8)), exact_everywhere("conv", Bits(7, 8))
    (False, True)
    """
    return FLOAT in bits or kind == "depthwise" or sum(bits) <= _ADDS_IN_16_BITS


class MeasuredTarget(ProfileTarget):
    """The target of a profile whose model is ``Measured``: for the layers it was measured on.

    On a CPU it offers no pair that saturates on another one, unless the profile says "vnni".
    """

    @property
    def _saturates(self) -> bool:
        options = self.profile.runtime.options
        on_cpu = options.get("provider", "CPUExecutionProvider") == "CPUExecutionProvider"
        return on_cpu and options.get("runs_on", "any") == "any"

    def _choices(self, layer: Layer) -> tuple[Bits, ...]:
        offered = super()._choices(layer)
        if not self._saturates:
            return offered
        return tuple(bits for bits in offered if exact_everywhere(layer.kind, bits))

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every pair of bits that some layer may have, by weights, then by activations."""
        rows = self.profile.table.rows if self.profile.table else ()
        kinds = {row.shape.kind if row.shape else "conv" for row in rows}
        return tuple(
            bits for bits in super().pairs
            if not self._saturates or any(exact_everywhere(kind, bits) for kind in kinds)
        )  # fmt: skip

    def _by_bits(self, of_batch: Cells, bits: Bits) -> Found | None:
        if min(bits) < 2 or (bits.weight == FLOAT) != (bits.act == FLOAT):
            return None
        found = super()._by_bits(of_batch, kernel(bits))
        return (
            found if found is None or bits == kernel(bits) else found._replace(method="rounded up")
        )

    def edges(
        self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
    ) -> tuple[Edge, ...]:
        """Return what a change of precision costs on every tensor between two of the layers."""
        model = self.profile.model
        assert isinstance(model, Measured)
        known = {layer.name for layer in layers}
        floats = {name: np.array([FLOAT in bits for bits in choices[name]]) for name in known}
        return tuple(
            Edge(
                tensor.producer,
                tensor.consumer,
                {
                    "latency": self.batch
                    * tensor.values
                    * _crossing(model, floats[tensor.producer], floats[tensor.consumer])
                },
            )
            for tensor in model.tensors
            if {tensor.producer, tensor.consumer} <= known
        )


def _crossing(
    model: Measured, before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the latency of one value for each choice of the producer and of the consumer."""
    into = before[:, None] & ~after[None, :]
    back = ~before[:, None] & after[None, :]
    return model.to_quantized * into + model.to_float * back


def shared_out(times: Mapping[str, float], total: float) -> dict[str, float]:
    """Return the times of nodes with what their measuring cost taken off: they sum to ``total``.

    The profiler takes about the same time for every node, so the same is taken from each; a node
    faster than that keeps a tenth of its time, and the rest is scaled.

    >>> shared_out({"a": 5.0, "b": 3.0}, total=6.0)
    {'a': 4.0, 'b': 2.0}
    """
    excess = (math.fsum(times.values()) - total) / len(times)
    left = {name: max(time - excess, time / 10) for name, time in times.items()}
    scale = total / math.fsum(left.values())
    return {name: time * scale for name, time in left.items()}


class Crossings(NamedTuple):
    """How many values pass from float to quantized layers of a network, and the other way."""

    to_quantized: int
    to_float: int


def crossings(tensors: Sequence[Passing], policy: Policy) -> Crossings:
    """Return the values of one image that change their precision under a policy."""
    into = back = 0
    for tensor in tensors:
        before, after = (FLOAT in policy[name] for name in (tensor.producer, tensor.consumer))
        into += tensor.values * (before and not after)
        back += tensor.values * (after and not before)
    return Crossings(into, back)


class Fitted(NamedTuple):
    """What predicts the latency of a mixed network.

    Attributes:
        rows: Layer to kernel to latency of a batch.
        to_quantized: Latency of one value that passes from a float to a quantized layer.
        to_float: And the other way.
    """

    rows: Rows
    to_quantized: float
    to_float: float

    def latency(self, tensors: Sequence[Passing], policy: Policy, batch: int) -> float:
        """Return the prediction for a batch, in the unit of the rows."""
        passing = crossings(tensors, policy)
        changes = passing.to_quantized * self.to_quantized + passing.to_float * self.to_float
        return kernels_alone(self.rows, policy) + batch * changes


Latencies = Sequence[tuple[Policy, float]]


def fit(
    rows: Rows, tensors: Sequence[Passing], references: Latencies, mixed: Latencies, batch: int
) -> Fitted:
    """Return what explains the latencies of mixed networks best.

    What a change of precision costs is chosen, and not negative, so that the sum of the squared
    relative errors is least. Then the rows are moved towards what is left, as far as can be
    expected of times from a profiler (``ROW_ERROR``) and of the clock (``CLOCK_ERROR``): the mean
    of normal distributions given the measurements. Then the first is done once more. The latencies
    of the references, networks of one precision, stay what they are.

    Args:
        rows: From the profiler, layer to kernel to latency of a batch.
        tensors: Between the layers.
        references: Policies that no tensor changes its precision under, with their latencies.
        mixed: Policies and their latencies, in the unit of the rows.
        batch: Images.
    """
    passing = np.array([crossings(tensors, policy) for policy, _ in mixed], np.float64) * batch
    prices = _prices(rows, passing, mixed)
    moved = _moved(rows, references, mixed, passing @ prices)
    into, back = _prices(moved, passing, mixed)
    return Fitted(moved, float(into), float(back))


def _prices(rows: Rows, passing: NDArray[np.float64], mixed: Latencies) -> NDArray[np.float64]:
    latencies = np.array([latency for _, latency in mixed])
    left = latencies - [kernels_alone(rows, policy) for policy, _ in mixed]
    prices: NDArray[np.float64] = nnls(passing / latencies[:, None], left / latencies)[0]
    return prices


def _moved(
    rows: Rows, references: Latencies, mixed: Latencies, changes: NDArray[np.float64]
) -> dict[str, dict[Bits, float]]:
    cells = [(name, bits) for name, row in rows.items() for bits in row]
    before = np.array([rows[name][bits] for name, bits in cells])
    policies = [policy for policy, _ in (*mixed, *references)]
    uses = np.array([[kernel(policy[name]) == bits for name, bits in cells] for policy in policies])
    latencies = np.array([latency for _, latency in (*mixed, *references)])
    changing = np.concatenate([changes, np.zeros(len(references))])
    trusted = np.repeat([CLOCK_ERROR, _EXACT], [len(mixed), len(references)])
    covariance = uses * (ROW_ERROR * before) ** 2  # of the latencies with the rows
    noise = np.diag((trusted * latencies) ** 2)
    left = latencies - changing - uses @ before
    after = before + covariance.T @ np.linalg.solve(covariance @ uses.T + noise, left)
    found: dict[str, dict[Bits, float]] = {name: {} for name in rows}
    for (name, bits), latency in zip(cells, after, strict=True):
        found[name][bits] = max(float(latency), 0.0)
    return found


def kernels_alone(rows: Rows, policy: Policy) -> float:
    """Return the latency without any change of precision."""
    return math.fsum(rows[name][kernel(bits)] for name, bits in policy.items())


def validate(predicted: Sequence[float], measured: Sequence[float]) -> Validation:
    """Return how far predictions are from what was measured."""
    errors = np.abs(np.array(predicted) / np.array(measured) - 1)
    rank = float(spearmanr(predicted, measured).statistic)
    return Validation(
        policies=len(errors),
        mean_error=float(errors.mean()),
        worst_error=float(errors.max()),
        rank_correlation=0.0 if math.isnan(rank) else rank,
    )
