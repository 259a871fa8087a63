"""How places of a kernel predict each other: least squares over all tensors, in 1/64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.contexts import ONE, Ints
from haq.formats.update.order import coefficients_of, passes

LIMIT = 127

Key = tuple[tuple[int, ...], str]
"""The shape of a kernel, and the kind of what is predicted."""


class Fit:
    """Sums over tensors, from which the coefficients of each kernel follow."""

    def __init__(self) -> None:
        self.sums: dict[tuple[Key, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def add(self, u: Ints, shape: Sequence[int], kind: str) -> None:
        """Take in a tensor (K, out, in) of this shape; large and small ones count alike."""
        scale = float(np.abs(u).mean())
        if not coefficients_of(shape) or not scale:
            return
        key = (tuple(shape[2:]), kind)
        flat = u.reshape(len(u), -1) / scale
        for number, one in enumerate(passes(tuple(shape))):
            if one.near:
                known, wanted = flat[list(one.near)], flat[one.plane]
                before = self.sums.get((key, number), (0.0, 0.0))
                self.sums[key, number] = before[0] + known @ known.T, before[1] + known @ wanted

    def solved(self) -> dict[Key, list[int]]:
        """Return the coefficients of each kernel and kind, in the order of the passes."""
        solved: dict[Key, list[int]] = {}
        for (key, _), (square, side) in sorted(self.sums.items()):
            ridge = 1e-3 * np.eye(len(square)) * max(float(np.trace(square)), 1e-9)
            exact = np.linalg.solve(square + ridge / len(square), side)
            whole = np.clip(np.rint(exact * 2**ONE), -LIMIT, LIMIT).astype(int)
            solved.setdefault(key, []).extend(whole.tolist())
        return solved
