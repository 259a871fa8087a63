"""Parts of a network that stay float count in every budget on size and average bits."""

import pytest
import torch
from torch import nn

from haq.allocation.costs import total
from haq.allocation.policy import Bits
from haq.errors import BudgetError
from haq.runs.job import parse_job
from haq.runs.plan import plan


class Speech(nn.Module):
    """A front end of one-dimensional convolutions behind which little is left."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64, 12, 5))
        self.a, self.fc = nn.Linear(60, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.a((x * self.scale.mean(0)).flatten(1))))


FLOATS = 64 * 12 * 5


def planned(budget: str):
    job = parse_job(budgets=(budget,), pins={}, agent="uniform")
    return plan(job, Speech().eval(), {"shape": [12, 5]})


def test_size_counts_what_stays_float():
    small = planned("size=20kB")
    policy = {"a": Bits(8, 8), "fc": Bits(8, 8)}
    layers = (480 + 8 * 4 + 8 * 4) + (32 + 4 * 4 + 4 * 4)
    assert total(small.table, policy, "size") == layers + 4 * FLOATS
    average = (512 * 8 + FLOATS * 32) / (512 + FLOATS)
    assert total(small.table, policy, "avg_weight_bits") == pytest.approx(average)


def test_shares_are_of_the_whole_network():
    (budget,) = planned("size=99%fp32").budgets
    assert budget.limit == pytest.approx(0.99 * 4 * (512 + 12 + FLOATS))


def test_a_budget_below_it_is_refused_at_once():
    with pytest.raises(BudgetError, match=f"what stays float needs {4 * FLOATS} bytes whatever"):
        planned("size=5kB")
