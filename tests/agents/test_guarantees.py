"""What a search promises: in budget, no worse than its start, no worse than uniform bits."""

from collections.abc import Callable

import numpy as np
import pytest
from toys import played, toy

from haq.allocation.budgets import uniform_within
from haq.allocation.policy import Policy
from haq.allocation.trials import Score

BUDGETS = [["avg_weight_bits=2.25"], ["avg_weight_bits=3"], ["size=40%w8a8"], ["size=50%w8a8"],
           ["avg_weight_bits=4", "size=45%w8a8"]]  # fmt: skip


def misled(seed: int) -> Callable[[Policy], Score]:
    """Return the losses of a network whose layers matter in ways that no sensitivity knows."""
    generator = np.random.default_rng(seed)
    own, pairs = generator.lognormal(0, 2, (2, 6)), generator.lognormal(0, 2, 5)

    def loss(policy: Policy) -> Score:
        harm = np.array([[4.0**-b.weight, 4.0**-b.act] for b in policy.values()]).T  # (2, layers)
        joint = np.sqrt(harm[0, :-1] * harm[0, 1:]) @ pairs
        return Score(0.0, float((own * harm).sum() + joint))

    return loss


@pytest.mark.parametrize("budgets", BUDGETS, ids=" ".join)
@pytest.mark.parametrize("agent", ["guided", "ilp", "trust", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_in_budget_and_no_worse_than_the_start_and_uniform_bits(
    agent: str, budgets: list[str], seed: int
) -> None:
    loss = misled(seed)
    env = toy(loss, budgets=budgets, reward="loss")
    episodes = played(agent, env, 8, seed)
    assert all(env.keeps_budgets(episode.info["policy"]) for episode in episodes)
    least = min(episode.info["loss"] for episode in episodes)
    assert least <= episodes[0].info["loss"]
    uniform = uniform_within(env.table, env.budgets)
    if agent != "ilp" and uniform is not None:  # ilp alone does not try them: a search compares
        assert least <= loss(uniform).loss
