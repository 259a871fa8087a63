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

PRICE_ERROR = 0.3
"""How far the price of a value that changes its precision is from that of all tensors, as a share:
about."""

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
        of_tensors: The same two of a value of each tensor.
    """

    rows: Rows
    to_quantized: float
    to_float: float
    of_tensors: tuple[tuple[float, float], ...]

    def latency(self, tensors: Sequence[Passing], policy: Policy, batch: int) -> float:
        """Return the prediction for a batch, in the unit of the rows."""
        prices = np.array(self.of_tensors).reshape(-1, 2)
        changes = float((changing(tensors, policy) * prices).sum())
        return kernels_alone(self.rows, policy) + batch * changes


Latencies = Sequence[tuple[Policy, float]]


def fit(
    rows: Rows, tensors: Sequence[Passing], references: Latencies, mixed: Latencies, batch: int
) -> Fitted:
    """Return what explains the latencies of mixed networks best.

    What a change of precision costs is chosen, and not negative, so that the sum of the squared
    relative errors is least. Then the rows and the prices of single tensors are moved towards what
    is left, as far as can be expected of times from a profiler (``ROW_ERROR``), of tensors that
    differ (``PRICE_ERROR``) and of the clock (``CLOCK_ERROR``): the mean of normal distributions
    given the measurements. Then all of it is done once more. The latencies of the references,
    networks of one precision, stay what they are.

    Args:
        rows: From the profiler, layer to kernel to latency of a batch.
        tensors: Between the layers.
        references: Policies that no tensor changes its precision under, with their latencies.
        mixed: Policies and their latencies, in the unit of the rows.
        batch: Images.
    """
    cells = [(name, bits) for name, row in rows.items() for bits in row]
    before = np.array([rows[name][bits] for name, bits in cells])
    passing = np.array([crossings(tensors, policy) for policy, _ in mixed], np.float64) * batch
    sizes = batch * np.repeat([tensor.values for tensor in tensors], 2)
    known = (*mixed, *references)
    uses = np.array([_uses(cells, tensors, policy) for policy, _ in known])
    latencies = np.array([latency for _, latency in known])
    trusted = np.repeat([CLOCK_ERROR, _EXACT], [len(mixed), len(references)])
    errors = np.repeat([ROW_ERROR, PRICE_ERROR], [len(before), len(sizes)])
    fitted = rows
    for _ in range(2):
        prices = _prices(fitted, passing, mixed)
        own = np.concatenate([before, sizes * np.tile(prices, len(tensors))])
        after = moved(own, uses, latencies, trusted, errors=errors)
        fitted = _as_rows(cells, after)
    of_tensors = (after[len(before) :] / sizes).reshape(-1, 2).tolist()
    into, back = prices.tolist()
    return Fitted(fitted, into, back, tuple((into, back) for into, back in of_tensors))


def _as_rows(cells: Sequence[tuple[str, Bits]], costs: NDArray[np.float64]) -> Rows:
    """Return the costs of cells by layer and kernel; those behind them are of other things."""
    rows: dict[str, dict[Bits, float]] = {name: {} for name, _ in cells}
    for (name, bits), cost in zip(cells, costs.tolist(), strict=False):
        rows[name][bits] = cost
    return rows


def cross_validated(
    rows: Rows, tensors: Sequence[Passing], references: Latencies, mixed: Latencies, batch: int
) -> tuple[Fitted, Validation]:
    """Return what is fitted to all mixed networks, and how well fits predict unseen ones.

    Each half of the mixed networks is predicted by what was fitted to the other one. Arguments as
    in ``fit``.
    """
    halves = mixed[::2], mixed[1::2]
    predicted, measured = [], []
    for seen, unseen in (halves, halves[::-1]):
        of_half = fit(rows, tensors, references, seen, batch)
        predicted += [of_half.latency(tensors, policy, batch) for policy, _ in unseen]
        measured += [latency for _, latency in unseen]
    return fit(rows, tensors, references, mixed, batch), validate(predicted, measured)


def changing(tensors: Sequence[Passing], policy: Policy) -> NDArray[np.float64]:
    """Return how many values of each tensor become quantized, and float: (tensors, 2)."""
    changes = [[*crossings([tensor], policy)] for tensor in tensors]
    return np.array(changes, np.float64).reshape(-1, 2)


def _prices(rows: Rows, passing: NDArray[np.float64], mixed: Latencies) -> NDArray[np.float64]:
    latencies = np.array([latency for _, latency in mixed])
    left = latencies - [kernels_alone(rows, policy) for policy, _ in mixed]
    prices: NDArray[np.float64] = nnls(passing / latencies[:, None], left / latencies)[0]
    return prices


def _uses(
    cells: Sequence[tuple[str, Bits]], tensors: Sequence[Passing], policy: Policy
) -> NDArray[np.float64]:
    """Return which kernels a network uses, and which tensors change their precision in it."""
    kernels = [kernel(policy[name]) == bits for name, bits in cells]
    changes = (changing(tensors, policy) > 0).flatten()
    return np.concatenate([kernels, changes]).astype(np.float64)


def moved(
    before: NDArray[np.float64],
    uses: NDArray[np.float64],
    latencies: NDArray[np.float64],
    trusted: NDArray[np.float64],
    beside: NDArray[np.float64] | float = 0.0,
    errors: NDArray[np.float64] | float = ROW_ERROR,
) -> NDArray[np.float64]:
    """Return costs moved towards what they leave unexplained of networks' latencies.

    The mean of normal distributions given the measurements, and not negative: costs and latencies
    are off by a share of themselves.

    Args:
        before: Costs of single layers (C,).
        uses: How often a network has each of them (N, C).
        latencies: Of the networks (N,).
        trusted: How far each latency is off, as a share (N,).
        beside: What networks take beside (N,).
        errors: How far each cost is off, as a share (C,).
    """
    covariance = uses * (errors * before) ** 2  # of the latencies with the costs
    noise = np.diag((trusted * latencies) ** 2)
    left = latencies - beside - uses @ before
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
