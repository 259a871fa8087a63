"""A policy that is nearly the best within a budget, a hundred times sooner than the best."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from haq.allocation.budgets.integer_program import solve
from haq.allocation.budgets.limit import Budget, all_within, spent
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits, readers

HALVINGS = 40
"""Of the interval in which the logarithm of the budget's price lies."""

Values = NDArray[np.float64]


def solve_nearly(
    objective: Mapping[str, Values], table: CostTable, budgets: Sequence[Budget]
) -> dict[str, Bits] | None:
    """Return a policy with nearly the least sum of ``objective`` that keeps the budgets.

    With one budget whose costs are those of layers alone, each layer takes the choice that is best
    at a price of the budget (Lagrangian relaxation); the price is the lowest that keeps the budget,
    and what is left of it is spent greedily. The sum is above the least by less than the largest
    step of one layer. Otherwise, and where layers share tensors with several widths, it is
    ``solve``.

    Args:
        objective: As for ``solve``, as are the rest.
        table: As above.
        budgets: As above.

    Returns:
        The policy; None where no policy keeps the budgets.

    Raises:
        HaqError: As ``solve``.
    """
    if not _separable(table, budgets):
        return solve(objective, table, budgets)
    (budget,) = budgets
    names = [layer.name for layer in table.layers]
    values = _padded([objective[name] for name in names])
    costs = _padded([table.rows[budget.quantity][name] for name in names])
    left = budget.limit - table.fixed.get(budget.quantity, 0.0)
    picks = _filled(values, costs, _priced(values, costs, left), left)
    policy = {name: table.choices[name][at] for name, at in zip(names, picks, strict=True)}
    return policy if all_within(spent(table, policy, budgets), budgets) else solve(
        objective, table, budgets
    )  # fmt: skip


def _separable(table: CostTable, budgets: Sequence[Budget]) -> bool:
    """Return whether there is one budget, and every layer can choose for itself."""
    if len(budgets) != 1 or budgets[0].quantity not in table.rows:
        return False
    if table.together or any(budgets[0].quantity in edge.cost for edge in table.edges):
        return False
    shared = [group for group in readers(table.layers).values() if len(group) > 1]
    acts = [{bits.act for name in group for bits in table.choices[name]} for group in shared]
    return all(len(widths) == 1 for widths in acts)


def _padded(rows: Sequence[Values]) -> Values:
    """Return rows of different lengths as one array, (rows, longest), infinite where one ends."""
    padded = np.full((len(rows), max(map(len, rows))), np.inf)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _priced(values: Values, costs: Values, left: float) -> NDArray[np.int64]:
    """Return the choices at the lowest price that keeps within what is left of the budget."""
    layers = np.arange(len(values))
    finite = np.where(np.isfinite(costs), costs, 0.0)
    largest = float(np.abs(values[np.isfinite(values)]).max())
    high = 1e9 * max(largest, 1e-300) / (float(finite.max()) or 1.0)
    low = high * 1e-18
    picks: NDArray[np.int64] = np.argmin(costs, axis=1)
    for _ in range(HALVINGS):
        price = np.sqrt(low * high)
        tried = np.argmin(values + price * finite, axis=1)
        if costs[layers, tried].sum() <= left:
            picks, high = tried, price
        else:
            low = price
    return picks


def _filled(
    values: Values, costs: Values, picks: NDArray[np.int64], left: float
) -> NDArray[np.int64]:
    """Return the choices after every change of one layer that helps and that can be paid."""
    layers, picks = np.arange(len(values)), picks.copy()
    for _ in range(values.size):
        room = left - costs[layers, picks].sum()
        gains = values[layers, picks][:, None] - values
        able = (costs - costs[layers, picks][:, None] <= room) & (gains > 0)
        if not able.any():
            break
        layer, choice = np.unravel_index(np.where(able, gains, -1.0).argmax(), gains.shape)
        picks[layer] = choice
    return picks
