"""What a policy that was never evaluated is worth: a surrogate, fitted on those that were.

The logarithm of the divergence is taken for that of a sum over decisions, each width with a term of
its own, corrected by a curve and by terms of pairs. A decision is of a layer's weights or of a
tensor's activations::

    s    = log of the sum over decisions d of exp(term[d, bits of d])
    y    = a + b s + c s**2 + sum of pair[d, e] * noise[d] * noise[e]       noise[d] = 2**-bits

Pairs are a layer's weights with what it reads, and decisions of the same kind in layers that follow
each other. Terms begin at the logarithms of the sensitivities and are fitted by Gauss-Newton steps
with a ridge that holds them there; pairs and the curve are fitted to what is left, by ridge
regression. So a width that no policy has keeps what its sensitivity says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.allocation.costs import CostTable
from haq.allocation.policy import Policy, readers
from haq.allocation.schemes import SEARCHED
from haq.bench.table import Bench, Subject

Array = NDArray[Any]

STEPS = 12
"""Gauss-Newton steps; the sum of squares stands still after half of them."""

HELD, SMOOTH, PAIRS = 0.02, 0.02, 1.0
"""Ridges: of terms towards their sensitivities, of the differences from the next width, of pairs.
In units of the squared error of one policy."""

LEAST = 1e-7
"""Sensitivities and divergences below this count as this: their logarithms are noise."""


@dataclass(frozen=True)
class Decisions:
    """What the policies of a network decide, in the order of its layers.

    Attributes:
        weights: Layers whose weights may have several widths.
        tensors: First readers of tensors whose activations may have several widths.
        pairs: Numbers of two decisions each, (pairs, 2); weights are counted first.
    """

    weights: tuple[str, ...]
    tensors: tuple[str, ...]
    pairs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.weights) + len(self.tensors)

    def widths(self, policies: Sequence[Policy]) -> NDArray[np.int64]:
        """Return the bits of every decision of policies, (policies, decisions)."""
        rows = [
            [policy[name].weight for name in self.weights]
            + [policy[name].act for name in self.tensors]
            for policy in policies
        ]
        return np.array(rows, np.int64).reshape(len(policies), len(self))


def decisions_of(subject: Subject) -> Decisions:
    """Return what the policies of a network decide."""
    together = readers(subject.layers)
    pinned = {
        name for group in together.values() if set(group) & set(subject.pins) for name in group
    }
    weights = [layer.name for layer in subject.layers if layer.name not in subject.pins]
    tensors = [
        layer.name for layer in subject.layers
        if layer.name not in pinned and together[layer.name][0] == layer.name
    ]  # fmt: skip
    tensors = [name for name in tensors if not _alone(subject, name)]
    place = {name: len(weights) + at for at, name in enumerate(tensors)}
    read = {name: place.get(group[0]) for name, group in together.items()}
    pairs = [(at, read[name]) for at, name in enumerate(weights) if read[name] is not None]
    pairs += [(at, at + 1) for at in range(len(weights) - 1)]
    pairs += [(place[a], place[b]) for a, b in pairwise(tensors)]
    return Decisions(tuple(weights), tuple(tensors), np.array(pairs, np.int64).reshape(-1, 2))


def _alone(subject: Subject, name: str) -> bool:
    return next(layer for layer in subject.layers if layer.name == name).weights_alone


@dataclass(frozen=True)
class Surrogate:
    """A fitted surrogate of one figure.

    Attributes:
        decisions: Of the network.
        terms: (decisions, widths): logarithms, of the widths in ``SEARCHED``.
        curve: Of s: three coefficients.
        pairs: (pairs,)
    """

    decisions: Decisions
    terms: Array
    curve: Array
    pairs: Array

    def predict(self, policies: Sequence[Policy]) -> Array:
        """Return the figure of policies, (policies,)."""
        widths = self.decisions.widths(policies)
        features = _features(_sums(self.terms, widths)[0], widths, self.decisions)
        predicted: Array = features @ np.concatenate([self.curve, self.pairs])
        return predicted

    def objective(self, table: CostTable) -> dict[str, Array]:
        """Return what each choice of a cost table adds to the sum, for ``budgets.solve``."""
        weights, acts = np.split(np.exp(self.terms), [len(self.decisions.weights)])
        of_weights = dict(zip(self.decisions.weights, weights, strict=True))
        of_acts = dict(zip(self.decisions.tensors, acts, strict=True))
        nothing = np.zeros(len(SEARCHED))
        return {
            name: np.array([
                of_weights.get(name, nothing)[bits.weight - SEARCHED[0]]
                + of_acts.get(name, nothing)[bits.act - SEARCHED[0]]
                for bits in choices
            ])
            for name, choices in table.choices.items()
        }  # fmt: skip


def fit_surrogate(bench: Bench, values: Array, chosen: Sequence[int] | None = None) -> Surrogate:
    """Fit the surrogate of a figure.

    Args:
        bench: Whose policies.
        values: (policies,), such as the logarithm of the divergence: the higher the worse.
        chosen: Numbers of the policies to fit on; all without them.
    """
    decisions = decisions_of(bench.subject)
    rows = range(len(bench)) if chosen is None else chosen
    widths = decisions.widths([bench.drawn[at].policy for at in rows])
    y = np.asarray(values, np.float64)[list(rows)]
    terms = _fitted_terms(_first_terms(bench.subject, decisions), widths, y)
    features = _features(_sums(terms, widths)[0], widths, decisions)
    ridge = np.diag([1e-6] * 3 + [PAIRS] * len(decisions.pairs))
    solved = np.linalg.solve(features.T @ features + ridge, features.T @ y)
    return Surrogate(decisions, terms, solved[:3], solved[3:])


def _first_terms(subject: Subject, decisions: Decisions) -> Array:
    known = subject.sensitivity
    rows = [known.weights[name] for name in decisions.weights]
    rows += [known.activations[name] for name in decisions.tensors]
    return np.log([[max(row[bits], LEAST) for bits in SEARCHED] for row in rows])


def _sums(terms: Array, widths: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the logarithms of the sums (policies,), and the share of each decision in them."""
    picked = terms[np.arange(len(terms)), widths - SEARCHED[0]]  # (policies, decisions)
    highest = picked.max(axis=1, keepdims=True)
    parts = np.exp(picked - highest)
    totals = parts.sum(axis=1, keepdims=True)
    return (np.log(totals) + highest)[:, 0], parts / totals


def _fitted_terms(first: Array, widths: NDArray[np.int64], y: Array) -> Array:
    """Return the terms after Gauss-Newton steps on the curve of their sums."""
    terms, count = first.copy(), first.size
    place = np.arange(len(first)) * first.shape[1] + widths - SEARCHED[0]  # (policies, decisions)
    smooth = _smoothness(first)
    for _ in range(STEPS):
        sums, parts = _sums(terms, widths)
        curve = np.polynomial.polynomial.polyfit(sums, y, 2)
        slope = np.maximum(curve[1] + 2 * curve[2] * sums, 0.05)
        left = y - np.polynomial.polynomial.polyval(sums, curve)
        jacobian = np.zeros((len(y), count))
        np.put_along_axis(jacobian, place, slope[:, None] * parts, axis=1)
        away = (terms - first).ravel()
        normal = jacobian.T @ jacobian + HELD * np.eye(count) + SMOOTH * smooth
        step = np.linalg.solve(normal, jacobian.T @ left - HELD * away - SMOOTH * smooth @ away)
        terms = terms + np.clip(step, -1, 1).reshape(terms.shape)
    return terms


def _smoothness(terms: Array) -> Array:
    """Return the matrix of squared differences of what is added to the terms of next widths."""
    decisions, count = terms.shape
    difference = np.diff(np.eye(count), axis=0)
    return np.kron(np.eye(decisions), difference.T @ difference)


def _features(sums: Array, widths: NDArray[np.int64], decisions: Decisions) -> Array:
    noise = 4 * 2.0**-widths  # 1 at two bits
    one, other = decisions.pairs.T
    return np.column_stack([np.ones_like(sums), sums, sums**2, noise[:, one] * noise[:, other]])
