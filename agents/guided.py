"""Guided DDPG: what the agent learns is where the sensitivities are wrong.

Every policy is the best by corrected sensitivities, found exactly, so it fills the budgets; the
first one is that of ``ilp``. Two learners correct. A linear model of all episodes so far says by
what factor the sensitivity of each decision counts (``believed``): forty rewards suffice for that.
Around it the actor of DDPG moves, from its observation (the paper's ten numbers and the sensitivity
itself), and its noise explores.
"""

from collections.abc import Callable, Iterator, Mapping
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
from haq.agents.ilp import RETRIES, Key, informed, key, of_the_weights, optimum, predicted
from haq.allocation.policy import Bits
from haq.envs.quantization import QuantizationEnv

SPAN = 4.0
"""The actor's largest factor, for an action of 1; 0 divides by as much, 0.5 changes nothing."""

FARTHEST = 8.0
"""The largest factor that is believed, and one over the smallest."""

DOUBT = 0.5
"""Standard deviation of the factors before the first episode."""

UNEXPLAINED = 0.5
"""Part of the standard deviation of the rewards that no factors explain."""

SIGMA, LAST_SIGMA = 0.12, 0.05
"""Exploration in the first and in the last episode, in the unit of the action."""

STILL = 0.03
"""Weight of the pull of the actor towards a factor of 1: the sensitivities are mostly right."""

WARM_UP = 8
"""Episodes without the actor, around what is believed so far."""


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
    parts: list[Array] = []
    rewards: list[float] = []

    def explorer(number: int, sigma: float) -> Callable[[Array], Array]:
        if number == 0:
            return lambda _: np.full(1, 0.5)
        if number < WARM_UP:
            return lambda _: truncated_normal(np.full(1, 0.5), sigma, actions)
        return partial(learner.explore, sigma=sigma, generator=actions)

    def propose(number: int) -> Proposal:
        sigma = exploration(number, episodes)
        known = np.array(parts[: len(rewards)]).reshape(-1, inner.n_steps)
        belief = believed(known, np.array(rewards))
        for attempt in range(RETRIES):
            explore = explorer(number, sigma * 1.1**attempt)
            steps, policy = imagine(inner, explore, belief)
            if key(policy) not in met:
                break
        met.add(key(policy))
        parts.append(shares(inner, policy))
        notes = {"predicted": predicted(inner, policy), "sigma": sigma}
        return Proposal(inner.actions(policy), steps, notes)

    def learn(number: int, proposal: Proposal, reward: float) -> None:
        rewards.append(reward)
        learner.remember(proposal.steps, reward)
        if number + 1 >= WARM_UP:
            with secluded(learning):
                learner.train(UPDATES * len(proposal.steps), BATCH)

    return play_proposals(env, episodes, seed, propose, learn, window=window, ahead=ahead)


def exploration(number: int, episodes: int) -> float:
    """Return sigma of episode ``number``, counted from 0."""
    return float(SIGMA * (LAST_SIGMA / SIGMA) ** (number / max(episodes - 1, 1)))


def imagine(
    env: QuantizationEnv, choose: Callable[[Array], Array], belief: Array
) -> tuple[list[Step], dict[str, Bits]]:
    """Walk through the decisions without playing; return the steps and the policy they lead to.

    Args:
        env: With sensitivities; nothing happens to it.
        choose: From the observation to the correction, an array of one number in [0, 1].
        belief: Factors (decisions,) that are corrected.
    """
    steps = walk(env, choose, previous=0.5)
    factors = [SPAN ** (2 * float(step.action[0]) - 1) for step in steps]
    return steps, optimum(env, belief * factors)


def believed(parts: Array, rewards: Array) -> Array:
    """Return by what factor the sensitivity of each decision counts, as far as rewards tell.

    A policy's loss, its reward with the sign turned, is taken for a constant plus the sum of its
    sensitivities, each times a factor that is 1 give or take ``DOUBT``, times the exchange rate of
    the two units. The factors' mean after the episodes is that of Bayesian linear regression.

    Args:
        parts: Sensitivities of what each policy decided, (episodes, decisions).
        rewards: (episodes,).

    Returns:
        (decisions,), within a factor of ``FARTHEST`` of 1.
    """
    count = parts.shape[-1]
    sums = parts.sum(axis=1)
    if len(rewards) < 3 or rewards.std() == 0 or sums.std() == 0:
        return np.ones(count)
    losses = rewards.mean() - rewards
    rate = losses.std() / sums.std()
    inputs = rate * (parts - parts.mean(axis=0))  # (episodes, decisions)
    # Of the factors: each for itself, and the rate, which all share.
    prior = DOUBT**2 * np.eye(count) + np.ones((count, count))
    noise = (UNEXPLAINED * losses.std()) ** 2 * np.eye(len(losses))
    gain = prior @ inputs.T @ np.linalg.inv(inputs @ prior @ inputs.T + noise)
    factors = 1 + gain @ (losses - inputs.sum(axis=1))
    factors /= max(factors.mean(), 1 / FARTHEST)
    result: Array = factors.clip(1 / FARTHEST, FARTHEST)
    return result


def shares(env: QuantizationEnv, policy: Mapping[str, Bits]) -> Array:
    """Return the sensitivity of what each decision of a policy does: (decisions,)."""
    assert env.sensitivity is not None
    found = []
    for layer, of_weights in env.decisions:
        place = env.table.positions[layer][policy[layer]]
        values = env.sensitivity[layer]
        part = of_the_weights(env.table.choices[layer], values)[place]
        found.append(part if of_weights else values[place] - part)
    return np.array(found)
