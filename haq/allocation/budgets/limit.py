"""A budget: an upper limit on one quantity of a cost table, and whether a policy keeps it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from haq.allocation.costs import CostTable, total
from haq.allocation.policy import Policy
from haq.errors import BudgetError

_TOLERANCE = 1e-9  # of the limit: a budget equal to a policy's own cost fits it


@dataclass(frozen=True)
class Budget:
    """An upper limit on one quantity of a cost table, in the table's unit.

    Raises:
        BudgetError: The limit is not a positive, finite number.
    """

    quantity: str
    limit: float

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise BudgetError(
                f"budget {self.quantity}={self.limit:g}: the limit must be positive and finite"
            )


def within(cost: float, budget: Budget) -> bool:
    """Return whether a cost is within a budget, to 1e-9 of its limit."""
    return cost <= budget.limit * (1 + _TOLERANCE)


def all_within(costs: Sequence[float], budgets: Sequence[Budget]) -> bool:
    """Return whether each cost is within its budget."""
    return all(map(within, costs, budgets))


def spent(table: CostTable, policy: Policy, budgets: Sequence[Budget]) -> list[float]:
    """Return what a policy costs, in the quantity of each budget."""
    return [total(table, policy, budget.quantity) for budget in budgets]
