"""How places of a kernel, and the base, predict each other: least squares over all tensors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.contexts import ONE, Ints
from haq.formats.update.order import Pass, passes

LIMIT = 1023
"""The largest coefficient."""

Key = tuple[tuple[int, ...], str]
"""The shape of a kernel, and the kind of what is predicted."""


class Fit:
    """Sums over tensors, from which the coefficients of each kernel follow."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Key, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def add(self, u: Ints, base: Ints | None, shape: Sequence[int], kind: str) -> None:
        """Take in a tensor of this shape; large and small ones count alike.

        Args:
            u: (K, out, in), codes less what the base predicts, in sixteenths.
            base: What it predicts; None without one.
            shape: Of the tensor.
            kind: Of what is predicted.
        """
        scale = float(np.abs(u).mean())
        if not scale:
            return
        key = (tuple(shape[2:]), kind)
        for number, one in enumerate(passes(tuple(shape))):
            known = regressors(one, u, base)
            number = number if one.stride == 1 else 0
            if known:
                rows = np.stack([values.ravel() for values in known]) / scale
                before = self.sums.get((key, number), (0.0, 0.0))
                side = rows @ (u[one.part].ravel() / scale)
                self.sums[key, number] = before[0] + rows @ rows.T, before[1] + side

    def solved(self) -> dict[Key, list[int]]:
        """Return the coefficients of each kernel and kind, in the order of the passes."""
        solved: dict[Key, list[int]] = {}
        for (key, _), (square, side) in sorted(self.sums.items()):
            ridge = 1e-3 * np.eye(len(square)) * max(float(np.trace(square)), 1e-9)
            exact = np.linalg.solve(square + ridge / len(square), side)
            whole = np.clip(np.rint(exact * 2**ONE), -LIMIT, LIMIT).astype(int)
            solved.setdefault(key, []).extend(whole.tolist())
        return solved


def regressors(one: Pass, u: Ints, base: Ints | None) -> list[Ints]:
    """Return what codes of a pass are predicted from: u, then the base, at other places."""
    known = [u[plane] for plane in one.near]
    if base is not None:
        known += [base[plane, one.rows, one.columns] for plane in one.around]
    return known
