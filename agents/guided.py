"""Guided DDPG: what the agent learns is where the sensitivities are wrong.

The first episode is the policy of ``ilp``, the next two are those of ``uniform``: the best uniform
width within the budgets, and the next one lowered to fit. So the answer is measured against all of
them. Every further policy is the best by corrected
sensitivities, or nearly so, and fills the budgets. Two learners correct. A linear model of all
episodes so far says by what factor the sensitivity of each decision counts (``believed``): forty
rewards suffice for that. Around it the actor of DDPG moves, from its observation (the paper's ten
numbers and the sensitivity itself), and its noise explores.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal, Step, walk
from haq.agents.ddpg import learning_interval, updates_of
from haq.agents.ilp import RETRIES, Key, corrected_goal, key, optimum, predicted, sensitivity_parts
from haq.agents.learner import REMEMBERED_EPISODES, Learner, secluded, truncated_normal
from haq.agents.uniform import EPISODES, candidates
from haq.allocation.budgets import solve_nearly
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

EVALUATION_SECONDS = 600.0
"""What all evaluations of a search may take together, unless the user says otherwise."""

LEAST, MOST, A_LAYER = 4, 60, 3
"""Episodes of a search at least and at most, and for each layer."""


class Guided(Agent):
    """DDPG that begins at the optimum of the sensitivities and learns where they are wrong.

    A policy that was met before is not played again, if another one is found nearby. The notes
    hold "sigma" and, as with ``ilp``, "predicted".

    Args:
        env: A ``QuantizationEnv`` with sensitivities, or a wrapper of one.
        episodes: How many will be played, and over how many the exploration dies down.
        seed: Decides the actions, the networks and what is drawn from the replay.

    Raises:
        ValueError: The environment has no sensitivities.
    """

    informed = True
    references = 1 + EPISODES

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.actions = np.random.default_rng(seed)
        self.learning = np.random.default_rng([seed, 1])
        with secluded(self.learning):
            self.learner = Learner(self.env, REMEMBERED_EPISODES * self.env.n_steps, still=STILL)
        self.uniform = list(candidates(self.env).values())[:EPISODES]
        self.met: set[Key] = set()
        self.parts: list[Array] = []
        self.rewards: list[float] = []

    def propose(self, number: int) -> Proposal:
        """Return the optimum, then uniform policies, then what corrected sensitivities lead to.

        Raises:
            BudgetError: No policy keeps the budgets.
        """
        sigma = exploration(number, self.episodes)
        if 1 <= number <= len(self.uniform) and key(self.uniform[number - 1]) not in self.met:
            return self._proposal(self.uniform[number - 1], 0.0)
        known = np.array(self.parts[: len(self.rewards)]).reshape(-1, self.env.n_steps)
        belief = believed(known, np.array(self.rewards))
        for attempt in range(RETRIES):
            explore = self._explorer(number, sigma * 1.1**attempt)
            steps, policy = imagine(self.env, explore, belief, exact=number == 0)
            if key(policy) not in self.met:
                break
        self.parts.append(shares(self.env, policy))
        return self._proposal(policy, sigma, steps)

    def _explorer(self, number: int, sigma: float) -> Callable[[Array], Array]:
        if number == 0:
            return lambda _: np.full(1, 0.5)
        if number < WARM_UP:
            return lambda _: truncated_normal(np.full(1, 0.5), sigma, self.actions)
        return partial(self.learner.explore, sigma=sigma, generator=self.actions)

    def _proposal(
        self, policy: Mapping[str, Bits], sigma: float, steps: Sequence[Step] = ()
    ) -> Proposal:
        self.met.add(key(policy))
        notes = {"predicted": predicted(self.env, policy), "sigma": sigma, **self.learner.noted()}
        return Proposal(self.env.actions(policy), steps, notes)

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:
        """Take the reward into the belief and, after the warm-up, update both networks.

        From the uniform policies nothing is learned: they are no corrections, and so far from the
        optimum that they would outweigh all others in the belief.
        """
        if proposal.steps:
            self.rewards.append(reward)
            self.learner.remember(proposal.steps, reward)
        if number + 1 >= WARM_UP and number % learning_interval(self.window) == 0:
            with secluded(self.learning):
                self.learner.train(updates_of(self.env.n_steps))

    @classmethod
    def episodes_for(cls, seconds: float, layers: int) -> int:
        """Return how many episodes suit an evaluation that takes so long.

        Three for each layer, since the belief has that many factors or twice as many to learn, but
        at least 12 and at most 60; as many of them as ten minutes of evaluations hold, but at least
        4: the two known answers and two tries.

        Args:
            seconds: That one evaluation takes, not negative.
            layers: Layers that are quantized.

        Raises:
            ValueError: The seconds are negative or no number.

        >>> [Guided.episodes_for(seconds, layers=20) for seconds in (0.1, 10, 20, 60, 3600)]
        [60, 60, 30, 10, 4]
        >>> Guided.episodes_for(0.1, layers=6)
        18
        """
        if not seconds >= 0:
            raise ValueError(f"an evaluation cannot take {seconds} seconds")
        wanted = min(max(A_LAYER * layers, 12), MOST)
        affordable = EVALUATION_SECONDS / max(seconds, 1e-9)
        return max(LEAST, int(min(wanted, affordable)))


def exploration(number: int, episodes: int) -> float:
    """Return sigma of episode ``number``, counted from 0."""
    return float(SIGMA * (LAST_SIGMA / SIGMA) ** (number / max(episodes - 1, 1)))


def imagine(
    env: QuantizationEnv, choose: Callable[[Array], Array], belief: Array, exact: bool = False
) -> tuple[list[Step], dict[str, Bits]]:
    """Walk through the decisions without playing; return the steps and the policy they lead to.

    Args:
        env: With sensitivities; nothing happens to it.
        choose: From the observation to the correction, an array of one number in [0, 1].
        belief: Factors (decisions,) that are corrected.
        exact: Whether the policy is the best by them to the last digit; else it is nearly so, in a
            hundredth of the time.
    """
    steps = walk(env, choose, previous=0.5)
    factors = belief * [SPAN ** (2 * float(step.action[0]) - 1) for step in steps]
    if exact:
        return steps, optimum(env, factors)
    policy = solve_nearly(corrected_goal(env, factors), env.table, env.budgets)
    return steps, policy or optimum(env, factors)


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
    known, places = sensitivity_parts(env), env.table.positions
    return np.array(
        [known[layer][what][places[layer][policy[layer]]] for layer, what in env.decisions]
    )
