"""Integer programming: the optimum of the sensitivities first, then those of doubted ones."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from toys import played, toy, weight_closeness, words

from haq.agents.ilp import optimum
from haq.allocation.costs import total
from haq.allocation.policy import Policy
from haq.errors import BudgetError


@pytest.mark.parametrize("name", ["guided", "ilp"])
def test_its_first_episode_is_the_best_of_all_policies_by_the_sensitivities(name: str) -> None:
    env = toy(layers=3, budgets=["avg_weight_bits=4"], act_bits=8)
    assert env.sensitivity is not None
    limit = env.budgets[0].limit
    every = [
        dict(zip(env.table.choices, bits, strict=True))
        for bits in itertools.product(*env.table.choices.values())
    ]
    allowed = [p for p in every if total(env.table, p, "avg_weight_bits") <= limit]

    def predicted(policy: Policy) -> float:
        return sum(4.0**-bits.weight + 4.0**-bits.act for bits in policy.values())

    first = played(name, env, 1)[0]
    assert predicted(first.info["policy"]) == pytest.approx(min(map(predicted, allowed)))
    assert first.notes["predicted"] == pytest.approx(predicted(first.info["policy"]))


@pytest.mark.parametrize("name", ["guided", "ilp"])
@pytest.mark.parametrize("window", [1, 6])
def test_it_meets_no_policy_twice_and_keeps_every_budget(name: str, window: int) -> None:
    budgets = ["avg_weight_bits=4", "size=2.5kB"]
    episodes = played(name, toy(budgets=budgets), 12, window=window)
    policies = [tuple(sorted(episode.info["policy"].items())) for episode in episodes]
    assert len(set(policies)) == 12
    for episode in episodes:
        assert episode.info["cost"]["avg_weight_bits"] <= 4
        assert episode.info["cost"]["size"] <= 2500
        assert episode.info["policy"] == episode.info["proposed"]


def test_a_factor_moves_bits_to_its_decision() -> None:
    env = toy(layers=3, budgets=["avg_weight_bits=4"], act_bits=8)
    alike = optimum(env, np.ones(3))
    more = optimum(env, [1.0, 1.0, 100.0])
    assert more["pw1"].weight > alike["pw1"].weight
    assert more["stem"].weight < alike["stem"].weight


def test_weights_and_activations_have_factors_of_their_own() -> None:
    env = toy(layers=3, budgets=["avg_weight_bits=4"])
    kinds = [decision.what == "weights" for decision in env.decisions]
    factors = np.where(kinds, 1.0, 1e-9)
    policy = optimum(env, factors)
    assert {n: b.weight for n, b in policy.items()} == {
        n: b.weight for n, b in optimum(env, np.ones(len(kinds))).items()
    }


@pytest.mark.parametrize("name", ["ddpg", "ilp", "random"])
def test_episodes_are_those_of_before_windows(name: str) -> None:
    # Written when each episode was played as it was proposed: 24 episodes on the toy with an
    # average of 5 bits; the bits of weights and activations of each layer in order.
    golden = json.loads((Path(__file__).parents[1] / "golden/agents.json").read_text())
    episodes = played(name, toy(weight_closeness, budgets=["avg_weight_bits=5"]), 24)
    assert [words(episode.info["policy"]) for episode in episodes] == golden[name]


@pytest.mark.parametrize("name", ["guided", "ilp"])
def test_where_no_policy_keeps_the_budgets_it_says_what_the_cheapest_costs(name: str) -> None:
    with pytest.raises(BudgetError, match="no policy fits size <= 1600 bytes: the cheapest one"):
        played(name, toy(budgets=["size=1.6kB"]), 1)
