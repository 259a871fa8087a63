"""The uniform reference: the best uniform width within the budgets, then the next one lowered."""

import numpy as np
import pytest
from toys import LAYERS, played, toy, words

from haq.agents.uniform import EPISODES, Uniform
from haq.allocation.budgets import Budget, fit, uniform_policy
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.errors import BudgetError
from haq.network.layers import Layer


@pytest.mark.parametrize(
    "limit, expected",
    [
        (8, ["88", "77", "66", "55", "44", "33", "22", "88"]),  # all fit: no next one
        (5.9, ["55", "lowered", "44", "33", "22", "55"]),
        (5, ["55", "lowered", "44", "33", "22", "55"]),
        (4.99, ["44", "lowered", "33", "22", "44"]),
        (2, ["22", "lowered", "22"]),
    ],
)
def test_the_best_width_that_fits_comes_first(limit: float, expected: list[str]) -> None:
    env = toy(budgets=[f"avg_weight_bits={limit}"])
    policies = [episode.info["policy"] for episode in played("uniform", env, len(expected))]
    above = uniform_policy(env.table, int(limit) + 1)
    for policy, word in zip(policies, expected, strict=True):
        if word == "lowered":
            assert policy == fit(above, env.table, env.budgets)
            assert env.keeps_budgets(policy)
        else:
            assert words(policy) == word * len(LAYERS)


def test_where_activations_are_fixed_the_weights_are_uniform() -> None:
    env = toy(budgets=["avg_weight_bits=3.5"], act_bits=4)
    assert words(played("uniform", env, 1)[0].info["policy"]) == "34" * 6


def test_where_no_width_fits_the_fewest_bits_are_lowered() -> None:
    """On a measured target two bits may cost more than a mix of two and eight."""
    layers = tuple(Layer(name, "conv", 1, 1) for name in "ab")
    pairs = {name: (Bits(2, 8), Bits(8, 8)) for name in "ab"}
    rows = {"latency": {"a": np.array([1.0, 5.0]), "b": np.array([5.0, 1.0])}}
    table = CostTable(layers, pairs, rows, {"latency": "us"})
    env = QuantizationEnv(table, lambda _: Score(0.5), [Budget("latency", 3.0)])
    policies = [episode.info["policy"] for episode in played("uniform", env, 2)]
    assert policies == [{"a": Bits(2, 8), "b": Bits(8, 8)}] * 2


def test_where_nothing_fits_it_says_so() -> None:
    with pytest.raises(BudgetError, match="no policy fits"):
        Uniform(toy(budgets=["avg_weight_bits=1.9"]), 2, 0)


def test_two_episodes_are_all_that_matter() -> None:
    assert Uniform.episodes_for(0.1, 20) == EPISODES == Uniform.references == 2
    notes = [episode.notes for episode in played("uniform", toy(budgets=["avg_weight_bits=5"]), 2)]
    assert notes == [{"width": 5.0}, {"width": 6.0}]
