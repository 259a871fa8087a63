"""Agents: what each of them owes the search, and that DDPG finds the answer of a toy."""

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from haq.agents import AGENTS, INFORMED, Episode
from haq.agents.ddpg import WARM_UP, Learner, Replay, exploration, secluded, truncated_normal
from haq.agents.episode import Array, roll
from haq.agents.guided import FARTHEST, believed
from haq.agents.ilp import optimum
from haq.allocation.budgets import parse_budget
from haq.allocation.costs import permitted, tabulate, total
from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.network.layers import Layer

# The start of a MobileNet, and a head.
LAYERS = (
    Layer("stem", "conv", 3, 16, (3, 3), (2, 2), (1, 1), 1, (32, 32), (16, 16), 432, reads="stem"),
    Layer(
        "dw1", "depthwise", 16, 16, (3, 3), (1, 1), (1, 1), 16, (16, 16), (16, 16), 144, reads="dw1"
    ),
    Layer(
        "pw1", "pointwise", 16, 32, in_size=(16, 16), out_size=(16, 16), weights=512, reads="pw1"
    ),
    Layer(
        "dw2", "depthwise", 32, 32, (3, 3), (2, 2), (1, 1), 32, (16, 16), (8, 8), 288, reads="dw2"
    ),
    Layer("pw2", "pointwise", 32, 64, in_size=(8, 8), out_size=(8, 8), weights=2048, reads="pw2"),
    Layer("head", "linear", 64, 10, weights=640, reads="head"),
)


def closeness(policy: Policy) -> Score:
    """1 where depthwise layers have 8 bits and the others 2; each bit away costs 1/72."""
    wanted = {layer.name: 8 if layer.kind == "depthwise" else 2 for layer in LAYERS}
    away = sum(abs(bits - wanted[name]) for name, pair in policy.items() for bits in pair)
    return Score(1 - away / (6 * 2 * len(LAYERS)))


def weight_closeness(policy: Policy) -> Score:
    """1 where the weights of depthwise layers have 8 bits and of others 2; else down to 0."""
    wanted = {layer.name: 8 if layer.kind == "depthwise" else 2 for layer in LAYERS}
    return Score(1 - sum(abs(b.weight - wanted[n]) for n, b in policy.items()) / (6 * len(LAYERS)))


def toy(
    evaluate: Callable[[Policy], Score] = closeness,
    layers: int = 6,
    budgets: Sequence[str] = (),
    act_bits: int | None = None,
) -> QuantizationEnv:
    """Return an environment in which all that is known is that few bits hurt, alike everywhere."""
    some = LAYERS[:layers]
    table = tabulate(some, permitted(some, None, act_bits=act_bits))
    known = {
        name: np.array([4.0**-bits.weight + 4.0**-bits.act for bits in choices])
        for name, choices in table.choices.items()
    }
    limits = [parse_budget(text, some, None) for text in budgets]
    return QuantizationEnv(table, evaluate, limits, sensitivity=known)


class Recorded(gym.Wrapper[Array, Array, Array, Array]):
    """An environment that keeps the actions it is sent."""

    def __init__(self, env: gym.Env[Array, Array]) -> None:
        super().__init__(env)
        self.actions: list[Array] = []

    def step(self, action: Array) -> Any:
        self.actions.append(action.copy())
        return super().step(action)


def actions(
    name: str, seed: int = 0, evaluate: Callable[[Policy], Score] = closeness
) -> list[float]:
    """Return the 2 x 23 actions of a run on the stem alone, three episodes after the warm-up."""
    env = Recorded(toy(evaluate, layers=1))
    assert len(list(AGENTS[name](env, 23, seed))) == 23
    return [float(action[0]) for action in env.actions]


every_agent = pytest.mark.parametrize("name", AGENTS)


@every_agent
@pytest.mark.parametrize("episodes", [0, 1, 20, 21, 23])
def test_an_agent_yields_as_many_episodes_as_asked_for(name: str, episodes: int) -> None:
    played = list(AGENTS[name](toy(layers=1), episodes, 0))
    assert [type(episode) for episode in played] == [Episode] * episodes
    for episode in played:
        assert episode.reward == pytest.approx(10 * (episode.info["accuracy"] - 1))
        assert all(isinstance(value, float) for value in episode.notes.values())


# --- how far an agent may be ahead of the results --------------------------------------------


def told(name: str, window: int, episodes: int = 26) -> tuple[list[Any], list[Policy]]:
    """Return what an agent announced and had evaluated, in order, and the policies it yielded."""
    seen: list[Any] = []

    def evaluate(policy: Policy) -> Score:
        seen.append(("evaluated", policy))
        return weight_closeness(policy)

    env = toy(evaluate, budgets=["avg_weight_bits=5"])
    played = AGENTS[name](
        env, episodes, 0, window=window, ahead=lambda number, policy: seen.append((number, policy))
    )
    return seen, [episode.info["policy"] for episode in played]


@every_agent
@pytest.mark.parametrize("window", [1, 4, 40])
def test_an_agent_proposes_with_all_results_but_those_in_its_window(name: str, window: int) -> None:
    seen, yielded = told(name, window)
    announced = [(at, what) for at, what in enumerate(seen) if what[0] != "evaluated"]
    assert [number for _, (number, _) in announced] == list(range(26))
    assert [policy for _, (_, policy) in announced] == yielded
    assert [policy for what, policy in seen if what == "evaluated"] == yielded
    for number, (at, _) in enumerate(announced):
        known = sum(what == "evaluated" for what, _ in seen[:at])
        assert known == max(0, number + 1 - window)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"ddpg", "guided"}))
def test_who_does_not_learn_plays_the_same_in_any_window(name: str) -> None:
    assert told(name, 7)[1] == told(name, 1)[1]


@pytest.mark.parametrize("name", ["ddpg", "guided"])
def test_who_learns_plays_the_same_until_results_would_count(name: str) -> None:
    # ddpg learns at the end of its warm-up, guided as soon as it knows three rewards.
    first = {"ddpg": 21, "guided": 3}[name]
    alone, together = told(name, 1)[1], told(name, 4)[1]
    assert alone[:first] == together[:first]
    assert alone[first:] != together[first:]


def test_other_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="agents play a QuantizationEnv, not a CartPoleEnv"):
        AGENTS["random"](gym.make("CartPole-v1"), 1, 0)


@pytest.mark.parametrize("name", ["ddpg", "ilp", "random", "uniform"])
def test_episodes_are_those_of_before_windows(name: str) -> None:
    # Written at commit a528058, when each episode was played as it was proposed: 24 episodes on
    # the toy with an average of 5 bits; the bits of weights and activations of each layer in order.
    golden = json.loads((Path(__file__).parents[1] / "golden/agents.json").read_text())
    played = AGENTS[name](toy(weight_closeness, budgets=["avg_weight_bits=5"]), 24, 0)
    found = [
        "".join(str(width) for bits in episode.info["policy"].values() for width in bits)
        for episode in played
    ]
    assert found == golden[name]


@every_agent
def test_equal_seeds_give_equal_actions_in_the_allowed_range(name: str) -> None:
    first = actions(name)
    assert len(first) == 46
    assert all(0 <= action <= 1 for action in first)
    assert actions(name) == first


@every_agent
@pytest.mark.parametrize("draw", ["reseed", "consume"])
def test_an_evaluation_that_draws_random_numbers_changes_no_action(name: str, draw: str) -> None:
    def evaluate(policy: Policy) -> Score:
        if draw == "reseed":
            random.seed(5), np.random.seed(5), torch.manual_seed(5)
        torch.rand(7), np.random.rand(7), random.random()
        return closeness(policy)

    assert actions(name, evaluate=evaluate) == actions(name)


@every_agent
def test_an_agent_leaves_random_generators_and_threads_as_they_were(name: str) -> None:
    threads = torch.get_num_threads()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    actions(name)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert torch.get_num_threads() == threads


@every_agent
def test_an_agent_can_be_stopped_early_and_plays_no_episode_ahead(name: str) -> None:
    met: list[Policy] = []

    def evaluate(policy: Policy) -> Score:
        met.append(policy)
        return closeness(policy)

    assert len(list(islice(AGENTS[name](toy(evaluate, layers=1), 23, 0), 22))) == 22
    assert len(met) == 22


@pytest.mark.parametrize("name", ["ddpg", "random"])
def test_the_first_twenty_episodes_are_uniform_numbers_of_the_seed(name: str) -> None:
    expected = np.random.default_rng(7).random(2 * WARM_UP).astype(np.float32)
    assert actions(name, seed=7)[: 2 * WARM_UP] == expected.tolist()


def test_random_search_stays_at_its_expectation() -> None:
    # A uniform width from 2 to 8 is 3 bits away from either end on average: 1 - 3 / 6. Each of the
    # 12 widths has a standard deviation of 2 bits, so the mean over 200 episodes one of
    # 2 / 6 / sqrt(12 * 200) = 0.0068.
    scores = [episode.info["accuracy"] for episode in AGENTS["random"](toy(), 200, 0)]
    assert np.mean(scores) == pytest.approx(0.5, abs=3 * 0.0068)


def test_sigma_falls_to_a_twentieth_at_the_last_episode() -> None:
    # 0.5 * 0.1 ** (k / 100) after k of the 100 steps from episode 20 to episode 120
    assert exploration(20, 121, paper=False) == 0.5
    assert exploration(70, 121, paper=False) == pytest.approx(0.5 * 0.1**0.5)
    assert exploration(120, 121, paper=False) == pytest.approx(0.05)
    assert exploration(20, 21, paper=False) == 0.5


def test_sigma_of_the_paper_falls_by_one_percent_an_episode() -> None:
    sigmas = [exploration(number, 600, paper=True) for number in (20, 21, 22)]
    assert sigmas == pytest.approx([0.5, 0.495, 0.49005])


def test_an_episode_notes_the_sigma_it_was_played_with() -> None:
    notes = [episode.notes for episode in AGENTS["ddpg"](toy(layers=1), 22, 0, paper=True)]
    assert notes == [{}] * 20 + [{"sigma": 0.5}, {"sigma": 0.495}]


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_truncated_normal_is_that_of_scipy(mean: float, sigma: float) -> None:
    shares = np.random.default_rng(3).random(1000)
    drawn = truncated_normal(np.full(1000, mean), sigma, np.random.default_rng(3))
    expected = truncnorm.ppf(shares, -mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert drawn == pytest.approx(expected, abs=1e-6)
    assert drawn.min() >= 0 and drawn.max() <= 1


def test_every_step_is_remembered_with_the_reward_of_its_episode() -> None:
    learner = Learner(toy(layers=1), capacity=5)
    _, steps = roll(toy(layers=1), lambda _: np.array([0.75]))
    learner.remember(steps, -2.5)
    learner.remember(steps, 4.0)
    kept = learner.replay_buffer
    assert kept.rewards[:4, 0].tolist() == [-2.5, -2.5, 4.0, 4.0]
    assert kept.dones[:4, 0].tolist() == [0, 1, 0, 1]
    assert kept.actions[:4, 0, 0].tolist() == [0.5] * 4  # 0.75 of [0, 1], in [-1, 1]
    assert kept.observations[:2, 0, 9].tolist() == [0, 0.75]  # the previous action
    assert kept.next_observations[:2, 0, 9].tolist() == [0.75, 0.75]


def test_rewards_come_relative_to_their_moving_average() -> None:
    space = gym.spaces.Box(0, 1, (1,))
    replay = Replay(1, space, space, device="cpu")
    for reward, expected in [(4.0, 0.0), (10.0, 3.0), (10.0, 1.5)]:  # averages 4, 7, 8.5
        replay.add(*np.zeros((3, 1, 1)), np.array([reward]), np.zeros(1), [{}])
        assert replay.sample(2).rewards.tolist() == [[expected]] * 2


def test_actor_and_critic_learn_at_their_own_rates() -> None:
    learner = Learner(toy(layers=1), capacity=5)
    _, steps = roll(toy(layers=1), lambda _: np.array([0.75]))
    learner.remember(steps, 1.0)
    before = learner.actor.mu[0].weight.clone(), learner.critic.qf0[0].weight.clone()
    learner.train(1, 64)
    # Adam's first step is as long as the rate wherever the gradient is not zero.
    moved = learner.actor.mu[0].weight - before[0], learner.critic.qf0[0].weight - before[1]
    assert [change.abs().max().item() for change in moved] == pytest.approx([1e-4, 1e-3], rel=0.01)


def test_secluded_draws_depend_on_its_generator_alone() -> None:
    def draw() -> Iterator[float]:
        generator = np.random.default_rng(2)
        for _ in range(2):
            with secluded(generator):
                assert torch.get_num_threads() == 1
                yield from (np.random.rand(), torch.rand(()).item())

    first = list(draw())
    assert len(set(first)) == 4
    assert list(draw()) == first


def test_ddpg_differs_from_the_paper_only_after_the_warm_up() -> None:
    ours, papers = (
        [episode.info["proposed"] for episode in AGENTS["ddpg"](toy(), 24, 0, paper=paper)]
        for paper in (False, True)
    )
    assert ours[:20] == papers[:20]
    assert ours[20:] != papers[20:]


# --- agents that know the sensitivities ------------------------------------------------------


every_informed = pytest.mark.parametrize("name", sorted(INFORMED))


@every_informed
def test_an_informed_agent_needs_sensitivities(name: str) -> None:
    env = QuantizationEnv(tabulate(LAYERS, permitted(LAYERS, None)), closeness)
    with pytest.raises(ValueError, match="made with sensitivity="):
        next(AGENTS[name](env, 1, 0))


@every_informed
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

    first = next(AGENTS[name](env, 1, 0))
    assert predicted(first.info["policy"]) == pytest.approx(min(map(predicted, allowed)))
    assert first.notes["predicted"] == pytest.approx(predicted(first.info["policy"]))


@every_informed
@pytest.mark.parametrize("window", [1, 6])
def test_it_meets_no_policy_twice_and_keeps_every_budget(name: str, window: int) -> None:
    budgets = ["avg_weight_bits=4", "size=2.5kB"]
    played = list(AGENTS[name](toy(budgets=budgets), 12, 0, window=window))
    policies = [tuple(sorted(episode.info["policy"].items())) for episode in played]
    assert len(set(policies)) == 12
    for episode in played:
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
    kinds = [decision.of_weights for decision in env.decisions]
    factors = np.where(kinds, 1.0, 1e-9)
    policy = optimum(env, factors)
    assert {n: b.weight for n, b in policy.items()} == {
        n: b.weight for n, b in optimum(env, np.ones(len(kinds))).items()
    }


def test_few_or_equal_rewards_change_no_belief() -> None:
    parts = np.random.default_rng(0).random((5, 3))
    assert believed(parts[:0], np.zeros(0)).tolist() == [1, 1, 1]
    assert believed(parts[:2], np.array([1.0, 2.0])).tolist() == [1, 1, 1]
    assert believed(parts, np.full(5, 0.7)).tolist() == [1, 1, 1]


def test_rewards_in_any_unit_tell_by_what_factor_each_sensitivity_counts() -> None:
    generator = np.random.default_rng(0)
    parts, factors = generator.random((400, 6)), np.array([0.5, 0.8, 1.0, 1.0, 1.2, 1.5])
    rewards = 3.0 - 7.0 * parts @ factors
    found = believed(parts, rewards)
    assert found == pytest.approx(factors, rel=0.1)
    assert believed(parts, 0.01 * rewards + 5) == pytest.approx(found)
    # What three rewards say is next to nothing against what was believed before.
    assert believed(parts[:3], rewards[:3]) == pytest.approx(np.ones(6), abs=0.5)


def test_a_belief_stays_within_its_limits() -> None:
    parts = np.eye(4)[np.arange(200) % 4]
    rewards = np.where(np.arange(200) % 4 == 0, -1e6, 0.0)  # one decision does all the harm
    found = believed(parts, rewards)
    assert found[0] == max(found) <= FARTHEST and min(found) >= 1 / FARTHEST


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_guided_finds_what_the_sensitivities_do_not_know(seed: int) -> None:
    # That depthwise layers need all the bits is only in the score.
    env = toy(weight_closeness, budgets=["avg_weight_bits=4"], act_bits=8)
    scores = [episode.info["accuracy"] for episode in AGENTS["guided"](env, 60, seed)]
    assert max(scores) > scores[0]
    assert np.mean(scores[-15:]) > np.mean(scores[1:9])


def late_means(window: int) -> list[float]:
    """Return the mean scores of the last 30 of 120 episodes of ddpg, for three seeds."""
    # One decision a layer: with the activations fixed, the weights alone are searched.
    table, means = tabulate(LAYERS, permitted(LAYERS, None, act_bits=8)), []
    for seed in (0, 1, 2):
        played = AGENTS["ddpg"](QuantizationEnv(table, weight_closeness), 120, seed, window=window)
        means.append(float(np.mean([episode.info["accuracy"] for episode in played][-30:])))
    return means


# Random actions score 0.5, give or take 0.025 in the mean of 30 episodes. One actor in ten is lost
# behind a saturated tanh without a window, two in ten with one (the agents' README), and which ones
# depends on how the CPU rounds.


@pytest.mark.slow
def test_ddpg_learns_which_layers_need_bits() -> None:
    assert sorted(late_means(window=1))[1] >= 0.9


@pytest.mark.slow
def test_ddpg_learns_behind_a_window_too() -> None:
    assert max(late_means(window=4)) >= 0.9
