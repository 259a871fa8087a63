"""What every agent owes the search: those of the table, and one of somebody else's."""

import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import closeness, played, toy, weight_closeness

from haq.agents import AGENTS, Agent, Episode, find, play
from haq.agents.base import Array
from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv

EVERY = [*AGENTS, "toys:Climber"]
LEARNS = {"ddpg": 21, "guided": 4, "trust": 3, "toys:Climber": 1}
"""Agents that learn, and the first episode in which a result can count."""


class Recorded(gym.Wrapper[Array, Array, Array, Array]):
    """An environment that keeps the actions it is sent."""

    def __init__(self, env: gym.Env[Array, Array]) -> None:
        super().__init__(env)
        self.actions: list[float] = []

    def step(self, action: Array) -> Any:
        self.actions.append(float(action[0]))
        return super().step(action)


def actions(
    name: str, seed: int = 0, evaluate: Callable[[Policy], Score] = closeness
) -> list[float]:
    """Return the 2 x 23 actions of a run on the stem alone, three episodes after the warm-up."""
    env = Recorded(toy(evaluate, layers=1))
    assert len(played(name, env, 23, seed)) == 23
    return env.actions


def logged(name: str, window: int, episodes: int = 26) -> tuple[list[Any], list[Policy]]:
    """Return what an agent announced and had evaluated, in order, and the policies it yielded."""
    log: list[Any] = []

    def evaluate(policy: Policy) -> Score:
        log.append(("evaluated", policy))
        return weight_closeness(policy)

    def ahead(number: int, policy: Policy) -> None:
        log.append((number, policy))

    env = toy(evaluate, budgets=["avg_weight_bits=5"], act_bits=8)
    episodes_played = played(name, env, episodes, window=window, ahead=ahead)
    return log, [episode.info["policy"] for episode in episodes_played]


@pytest.mark.parametrize("name", EVERY)
class TestEveryAgent:
    """Whoever joins the table has these duties; so has an agent named by module:Class."""

    @pytest.mark.parametrize("episodes", [0, 1, 20, 21, 23])
    def test_it_plays_as_many_episodes_as_asked_for(self, name: str, episodes: int) -> None:
        some = played(name, toy(layers=1), episodes)
        assert [type(episode) for episode in some] == [Episode] * episodes
        for episode in some:
            assert episode.reward == pytest.approx(10 * (episode.info["accuracy"] - 1))
            assert all(isinstance(value, float) for value in episode.notes.values())

    def test_equal_seeds_give_equal_actions_in_the_allowed_range(self, name: str) -> None:
        first = actions(name)
        assert len(first) == 46
        assert all(0 <= action <= 1 for action in first)
        assert actions(name) == first

    @pytest.mark.parametrize("draw", ["reseed", "consume"])
    def test_an_evaluation_that_draws_random_numbers_changes_no_action(
        self, name: str, draw: str
    ) -> None:
        def evaluate(policy: Policy) -> Score:
            if draw == "reseed":
                random.seed(5), np.random.seed(5), torch.manual_seed(5)
            torch.rand(7), np.random.rand(7), random.random()
            return closeness(policy)

        assert actions(name, evaluate=evaluate) == actions(name)

    def test_it_leaves_random_generators_and_threads_as_they_were(self, name: str) -> None:
        threads = torch.get_num_threads()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = random.random(), np.random.rand(), torch.rand(()).item()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        actions(name)
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
        assert torch.get_num_threads() == threads

    def test_two_of_them_side_by_side_do_not_disturb_each_other(self, name: str) -> None:
        env = toy(layers=1)
        both = [play(find(name)(env, 23, seed), env, 23) for seed in (0, 1)]
        policies = [[], []]
        for pair in zip(*both, strict=True):
            for own, episode in zip(policies, pair, strict=True):
                own.append(episode.info["policy"])
        for seed, own in enumerate(policies):
            assert own == [e.info["policy"] for e in played(name, toy(layers=1), 23, seed)]

    def test_it_can_be_stopped_early_and_plays_no_episode_ahead(self, name: str) -> None:
        evaluated: list[Policy] = []

        def evaluate(policy: Policy) -> Score:
            evaluated.append(policy)
            return closeness(policy)

        env = toy(evaluate, layers=1)
        assert len(list(islice(play(find(name)(env, 23, 0), env, 23), 22))) == 22
        assert len(evaluated) == 22

    @pytest.mark.parametrize("window", [1, 4, 40])
    def test_it_proposes_with_all_results_but_those_in_its_window(
        self, name: str, window: int
    ) -> None:
        log, yielded = logged(name, window)
        announced = [(at, entry) for at, entry in enumerate(log) if entry[0] != "evaluated"]
        assert [number for _, (number, _) in announced] == list(range(26))
        assert [policy for _, (_, policy) in announced] == yielded
        assert [policy for what, policy in log if what == "evaluated"] == yielded
        for number, (at, _) in enumerate(announced):
            known = sum(what == "evaluated" for what, _ in log[:at])
            assert known == max(0, number + 1 - window)

    def test_the_window_changes_nothing_until_a_result_could_count(self, name: str) -> None:
        alone, together = logged(name, 1)[1], logged(name, 4)[1]
        first = LEARNS.get(name, 26)
        assert alone[:first] == together[:first]
        assert alone[first:] != together[first:] or first == 26

    @pytest.mark.parametrize("budgets", [["avg_weight_bits=4", "size=2.5kB"], ["size=1.8kB"]])
    @pytest.mark.parametrize("window", [1, 6])
    def test_no_policy_is_evaluated_that_breaks_a_budget(
        self, name: str, budgets: list[str], window: int
    ) -> None:
        evaluated: list[Policy] = []

        def evaluate(policy: Policy) -> Score:
            evaluated.append(policy)
            return closeness(policy)

        env = toy(evaluate, budgets=budgets)
        some = played(name, env, 12, window=window)
        assert [episode.info["policy"] for episode in some] == evaluated
        assert all(env.keeps_budgets(policy) for policy in evaluated)

    @pytest.mark.parametrize("stop", [3, 22])
    def test_a_search_goes_on_from_its_first_scores_as_if_it_had_never_stopped(
        self, name: str, stop: int
    ) -> None:
        scores: list[Score] = []

        def evaluate(policy: Policy) -> Score:
            scores.append(weight_closeness(policy))
            return scores[-1]

        whole = played(name, toy(evaluate, act_bits=8), 25)
        memory = iter(scores[:stop])

        def resumed(policy: Policy) -> Score:
            return next(memory, None) or weight_closeness(policy)

        again = played(name, toy(resumed, act_bits=8), 25)
        assert [(e.info["policy"], e.reward, e.notes) for e in again] == [
            (e.info["policy"], e.reward, e.notes) for e in whole
        ]

    def test_it_plays_behind_a_wrapper_as_without(self, name: str) -> None:
        env = Recorded(toy(layers=2))
        assert [e.info["policy"] for e in played(name, env, 5)] == [
            e.info["policy"] for e in played(name, toy(layers=2), 5)
        ]

    def test_it_plays_no_other_environment(self, name: str) -> None:
        with pytest.raises(ValueError, match="agents play a QuantizationEnv, not a CartPoleEnv"):
            find(name)(gym.make("CartPole-v1"), 1, 0)

    def test_it_asks_for_sensitivities_if_it_needs_them(self, name: str) -> None:
        agent, known = find(name), toy()
        env = QuantizationEnv(known.table, closeness)
        if agent.informed:
            with pytest.raises(ValueError, match="plays a QuantizationEnv made with sensitivity="):
                agent(env, 1, 0)
        else:
            assert len(played(name, env, 1)) == 1

    def test_it_says_how_many_episodes_suit_it(self, name: str) -> None:
        asked = [find(name).episodes_for(seconds, 20) for seconds in (1e-3, 1.0, 1e3, 1e6)]
        assert asked == sorted(asked, reverse=True)
        assert asked[-1] >= max(1, find(name).references)


def test_only_those_that_weigh_sensitivities_are_informed() -> None:
    assert {name for name, agent in AGENTS.items() if agent.informed} == {
        "guided", "ilp", "trust"
    }  # fmt: skip


def test_an_agent_without_proposals_is_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Agent(toy(), 1, 0)  # type: ignore[abstract]
