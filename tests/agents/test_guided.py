"""Guided DDPG: where it begins, what it believes, and that it finds what nobody told it."""

import numpy as np
import pytest
import torch
from toys import played, toy, weight_closeness

from haq.agents import play
from haq.agents.guided import FARTHEST, WARM_UP, Guided, believed, exploration, imagine, shares
from haq.agents.ilp import optimum
from haq.allocation.budgets import fit, uniform_policy, uniform_within
from haq.allocation.policy import Policy
from haq.allocation.trials import Score

# --- where it begins -------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4])
def test_it_begins_at_the_optimum_and_at_the_uniform_policies(window: int) -> None:
    env = toy(budgets=["avg_weight_bits=4.5"])
    first, second, third, *others = played("guided", env, 12, window=window)
    assert first.info["policy"] == optimum(env, np.ones(env.n_steps))
    assert second.info["policy"] == uniform_within(env.table, env.budgets)
    assert {bits.weight for bits in second.info["policy"].values()} == {4}
    assert third.info["policy"] == fit(uniform_policy(env.table, 5), env.table, env.budgets)
    policies = [tuple(e.info["policy"].items()) for e in (first, second, third, *others)]
    assert [policies.count(policy) for policy in policies[1:3]] == [1, 1]
    assert Guided.references == 3


def test_a_uniform_policy_that_was_the_optimum_is_not_played_twice() -> None:
    # One layer with one decision: the optimum is uniform.
    first, second = played("guided", toy(layers=1, budgets=["avg_weight_bits=4"], act_bits=8), 2)
    assert first.info["policy"]["stem"].weight == 4
    assert second.notes["sigma"] > 0


def test_the_uniform_policies_teach_nothing() -> None:
    env = toy(weight_closeness, budgets=["avg_weight_bits=4.5"])
    agent = Guided(env, 5, 0)
    first, _, _, fourth, _ = play(agent, env, 5)
    assert agent.rewards == [first.reward, fourth.reward]  # the last one's is of no use any more
    assert [part.tolist() for part in agent.parts[:2]] == [
        shares(env, episode.info["policy"]).tolist() for episode in (first, fourth)
    ]
    assert agent.learner.replay_buffer.size() == 2 * env.n_steps


def test_sigma_falls_from_the_first_episode_to_the_last() -> None:
    assert [exploration(number, 101) for number in (0, 50, 100)] == pytest.approx(
        [0.12, (0.12 * 0.05) ** 0.5, 0.05]
    )


@pytest.mark.parametrize(
    "seconds, layers, episodes",
    [
        (0, 20, 60),  # three a layer, at most 60
        (0.1, 6, 18),
        (0.1, 2, 12),  # at least 12
        (20, 20, 30),  # ten minutes hold 30
        (600, 20, 4),  # the two known answers and two tries
        (float("inf"), 20, 4),
    ],
)
def test_episodes_adapt_to_what_an_evaluation_takes(
    seconds: float, layers: int, episodes: int
) -> None:
    assert Guided.episodes_for(seconds, layers) == episodes


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="an evaluation cannot take"):
        Guided.episodes_for(seconds, 20)


# --- what it believes ------------------------------------------------------------------------


def test_few_or_equal_rewards_change_no_belief() -> None:
    parts = np.random.default_rng(0).random((5, 3))
    assert believed(parts[:0], np.zeros(0)).tolist() == [1, 1, 1]
    assert believed(parts[:2], np.array([1.0, 2.0])).tolist() == [1, 1, 1]
    assert believed(parts, np.full(5, 0.7)).tolist() == [1, 1, 1]


def test_rewards_in_any_unit_tell_by_what_factor_each_sensitivity_counts() -> None:
    generator = np.random.default_rng(0)
    parts, factors = generator.random((400, 6)), np.array([0.5, 0.8, 1.0, 1.0, 1.2, 1.5])
    rewards = 3.0 - 7.0 * parts @ factors
    factors_believed = believed(parts, rewards)
    assert factors_believed == pytest.approx(factors, rel=0.1)
    assert believed(parts, 0.01 * rewards + 5) == pytest.approx(factors_believed)
    # What three rewards say is next to nothing against what was believed before.
    assert believed(parts[:3], rewards[:3]) == pytest.approx(np.ones(6), abs=0.5)


def test_a_belief_stays_within_its_limits() -> None:
    parts = np.eye(4)[np.arange(200) % 4]
    rewards = np.where(np.arange(200) % 4 == 0, -1e6, 0.0)  # one decision does all the harm
    factors_believed = believed(parts, rewards)
    assert factors_believed[0] == max(factors_believed) <= FARTHEST
    assert min(factors_believed) >= 1 / FARTHEST


def test_a_correction_is_the_belief_times_the_factor_of_the_actor() -> None:
    env = toy(layers=3, budgets=["avg_weight_bits=4"], act_bits=8)
    actions = iter([0.0, 1.0, 0.5])  # factors 1/4, 4 and 1
    belief = np.array([1.0, 1.0, 32.0])
    steps, policy = imagine(env, lambda _: np.array([next(actions)]), belief)
    assert [float(step.action[0]) for step in steps] == [0.0, 1.0, 0.5]
    assert steps[0].observation[9] == 0.5  # no correction came before
    assert policy == optimum(env, [0.25, 4.0, 32.0])
    assert policy not in (optimum(env, belief), optimum(env, [0.25, 4.0, 1.0]))


def test_the_networks_are_trained_after_every_episode_from_the_end_of_the_warm_up() -> None:
    agent = Guided(toy(layers=2, act_bits=8), 12, 0)
    trained = []
    for number in range(10):
        before = agent.learner.actor.mu[0].weight.clone()
        agent.learn(number, agent.propose(number), -1.0 / (1 + number))
        trained.append(not torch.equal(before, agent.learner.actor.mu[0].weight))
    assert trained == [False] * (WARM_UP - 1) + [True] * (11 - WARM_UP)


# --- what it finds ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_what_the_sensitivities_do_not_know(seed: int) -> None:
    """The true loss is the sum of the sensitivities, each times a factor nobody tells the agent."""
    factors = np.array([4, 0.25, 1, 4, 0.25, 1])

    def evaluate(policy: Policy) -> Score:
        return Score(0.0, float(shares(env, policy) @ factors))

    env = toy(evaluate, budgets=["avg_weight_bits=4"], act_bits=8, reward="loss")
    least = evaluate(optimum(env, factors)).loss
    regrets = [episode.info["loss"] / least - 1 for episode in played("guided", env, 40, seed)]
    assert regrets[0] == pytest.approx(0.185, abs=0.001)  # of the sensitivities alone
    assert min(regrets) <= 0.6 * regrets[0]  # four of six seeds find the optimum itself
