"""Budgets: reading them, making a policy keep them, and the best policy within them."""

from haq.allocation.budgets.enforce import Fitting, fit
from haq.allocation.budgets.integer_program import cheapest, least_cost, solve
from haq.allocation.budgets.lagrangian import solve_nearly
from haq.allocation.budgets.limit import Budget
from haq.allocation.budgets.parse import parse_budget
from haq.allocation.budgets.uniform import (
    most_bits,
    uniform_policy,
    uniform_references,
    uniform_within,
)

__all__ = [
    "Budget", "Fitting", "cheapest", "fit", "least_cost", "most_bits", "parse_budget", "solve",
    "solve_nearly", "uniform_policy", "uniform_references", "uniform_within",
]  # fmt: skip
