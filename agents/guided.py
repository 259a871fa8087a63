"""Guided DDPG: what the agent learns is where the sensitivities are wrong.

For each decision it says by what factor the sensitivity is to be multiplied, from its observation
(the paper's ten numbers and the sensitivity itself), and the policy is the best by the corrected
sensitivities, found exactly. Every policy so fills the budgets, the first one is that of ``ilp``,
and an agent that has learned nothing yet stays near it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import gymnasium as gym
import numpy as np

from haq.agents.ddpg import (
    BATCH,
    REMEMBERED_EPISODES,
    UPDATES,
    Learner,
    secluded,
    truncated_normal,
)
from haq.agents.episode import Ahead, Array, Episode, Proposal, Step, play_proposals, walk
from haq.agents.ilp import RETRIES, Key, informed, key, optimum, predicted
from haq.envs.quantization import QuantizationEnv
from haq.policy import Bits

SPAN = 8.0
"""The largest factor, for an action of 1; 0 divides by as much, and 0.5 changes nothing."""

SIGMA, LAST_SIGMA = 0.25, 0.08
"""Exploration in the first and in the last episode, in the unit of the action."""

STILL = 0.03
"""Weight of the pull of the actor towards a factor of 1: the sensitivities are mostly right."""

WARM_UP = 8
"""Episodes around the sensitivities as they are, before the actor takes over."""


def play(
    env: gym.Env[Array, Array],
    episodes: int,
    seed: int,
    *,
    window: int = 1,
    ahead: Ahead | None = None,
) -> Iterator[Episode]:
    """Play ``episodes`` episodes and learn between them, yielding each as it ends.

    A policy that was met before is not played again, if another one is found nearby. The notes
    hold "sigma" and, as with ``ilp``, "predicted".

    Args:
        env: A ``QuantizationEnv`` with sensitivities, or a wrapper of one.
        episodes: How many to play, and over how many the exploration dies down.
        seed: Decides the actions, the networks and what is drawn from the replay.
        window: See ``haq.agents.episode.play_proposals``.
        ahead: Told of every policy before it is evaluated.

    Raises:
        ValueError: The environment has no sensitivities.
        BudgetError: No policy keeps the budgets.
    """
    inner = informed(env)
    actions, learning = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    with secluded(learning):
        learner = Learner(env, REMEMBERED_EPISODES * inner.n_steps, STILL)
    met: set[Key] = set()

    def propose(number: int) -> Proposal:
        sigma = exploration(number, episodes)
        steps, policy = imagine(inner, lambda _: np.full(1, 0.5))
        for attempt in range(RETRIES if number else 0):
            wider = sigma * 1.1**attempt
            explore = partial(learner.explore, sigma=wider, generator=actions)
            if number < WARM_UP:
                explore = partial(_around, sigma=wider, generator=actions)
            steps, policy = imagine(inner, explore)
            if key(policy) not in met:
                break
        met.add(key(policy))
        notes = {"predicted": predicted(inner, policy), "sigma": sigma}
        return Proposal(inner.actions(policy), steps, notes)

    def learn(number: int, proposal: Proposal, reward: float) -> None:
        learner.remember(proposal.steps, reward)
        if number + 1 >= WARM_UP:
            with secluded(learning):
                learner.train(UPDATES * len(proposal.steps), BATCH)

    return play_proposals(env, episodes, seed, propose, learn, window=window, ahead=ahead)


def exploration(number: int, episodes: int) -> float:
    """Return sigma of episode ``number``, counted from 0."""
    return float(SIGMA * (LAST_SIGMA / SIGMA) ** (number / max(episodes - 1, 1)))


def _around(_observation: Array, sigma: float, generator: np.random.Generator) -> Array:
    return truncated_normal(np.full(1, 0.5), sigma, generator)


def imagine(
    env: QuantizationEnv, choose: Callable[[Array], Array]
) -> tuple[list[Step], dict[str, Bits]]:
    """Walk through the decisions without playing; return the steps and the policy they lead to.

    Args:
        env: With sensitivities; nothing happens to it.
        choose: From the observation to the correction, an array of one number in [0, 1].
    """
    steps = walk(env, choose, previous=0.5)
    factors = [SPAN ** (2 * float(step.action[0]) - 1) for step in steps]
    return steps, optimum(env, factors)
