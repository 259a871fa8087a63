"""From the times of whole networks and of their nodes to what predicts a mixed network."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from haq.allocation.policy import Bits, Policy
from haq.hw_profiles.measured import Passing, Validation, crossings, kernel

ROW_ERROR = 0.1
"""How far the time of a layer's kernel from the profiler is off, as a share: about."""

CLOCK_ERROR = 0.012
"""How far the latency of a whole network is off when it is measured: about."""

_EXACT = 1e-6

Rows = Mapping[str, Mapping[Bits, float]]
"""Layer to kernel, one of the three above, to latency."""


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
    fitted = _moved(rows, references, mixed, passing @ prices)
    into, back = _prices(fitted, passing, mixed)
    return Fitted(fitted, float(into), float(back))


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
    after = moved(before, uses, latencies, trusted, changing)
    fitted: dict[str, dict[Bits, float]] = {name: {} for name in rows}
    for (name, bits), latency in zip(cells, after, strict=True):
        fitted[name][bits] = float(latency)
    return fitted


def moved(
    before: NDArray[np.float64],
    uses: NDArray[np.float64],
    latencies: NDArray[np.float64],
    trusted: NDArray[np.float64],
    changing: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """Return costs moved towards what they leave unexplained of networks' latencies.

    The mean of normal distributions given the measurements, and not negative: costs are off by
    ``ROW_ERROR`` of themselves, latencies by a share of theirs.

    Args:
        before: Costs of single layers (C,).
        uses: How often a network has each of them (N, C).
        latencies: Of the networks (N,).
        trusted: How far each latency is off, as a share (N,).
        changing: What networks take beside (N,).
    """
    covariance = uses * (ROW_ERROR * before) ** 2  # of the latencies with the costs
    noise = np.diag((trusted * latencies) ** 2)
    left = latencies - changing - uses @ before
    after = before + covariance.T @ np.linalg.solve(covariance @ uses.T + noise, left)
    return np.maximum(after, 0.0)


def kernels_alone(rows: Rows, policy: Policy) -> float:
    """Return the latency without any change of precision."""
    return math.fsum(row[kernel(policy[name])] for name, row in rows.items())


def validate(predicted: Sequence[float], measured: Sequence[float]) -> Validation:
    """Return how far predictions are from what was measured."""
    errors = np.abs(np.array(predicted) / np.array(measured) - 1)
    varied = len(set(predicted)) > 1 and len(set(measured)) > 1
    rank = float(spearmanr(predicted, measured).statistic) if varied else 0.0
    return Validation(
        policies=len(errors),
        mean_error=float(errors.mean()),
        worst_error=float(errors.max()),
        rank_correlation=rank,
    )
