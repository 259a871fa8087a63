"""DDPG as HAQ plays it: the networks and the gradient step of stable-baselines3, our own episodes.

Every transition carries the reward of its whole episode, and learning happens between episodes.
The room's README lists where this differs from the paper and from the original code, and why.
"""

from collections.abc import Mapping
from functools import partial

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal, direct, walk
from haq.agents.learner import REMEMBERED_EPISODES, Learner, secluded

WARM_UP = 20
"""Episodes of uniform actions before the actor takes over."""

UPDATES, MOST_UPDATES = 3, 16
"""Gradient steps for each step of an episode, and at most after one: some 35 ms, a thirtieth of
an evaluation of one second."""

SIGMA, LAST_SIGMA, PAPER_DECAY = 0.5, 0.05, 0.99


class Ddpg(Agent):
    """An actor and a critic that learn from every episode, between the episodes.

    The actions of the first 20 episodes are uniform. From then on an action is drawn from a normal
    distribution around what the actor says, truncated to [0, 1]; its width stands in the notes as
    "sigma", and beside it what both networks lost in the training before: "critic_loss" and
    "actor_loss", see ``haq.agents.learner.Losses``.

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one.
        episodes: How many will be played, and over how many the exploration dies down.
        seed: Decides the actions, the networks and what is drawn from the replay.
        paper: Follow the paper to the letter: one update a step however many there are, rewards
            in their own unit, and a sigma that falls by 1 % an episode instead of down to 0.05 in
            the last one.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
    arXiv:1811.08886; Lillicrap et al., "Continuous control with deep reinforcement learning",
    arXiv:1509.02971.
    """

    def __init__(
        self, env: gym.Env[Array, Array], episodes: int, seed: int, *, paper: bool = False
    ) -> None:
        super().__init__(env, episodes, seed)
        self.paper = paper
        # The actions have a generator to themselves, so that they start like random search's.
        self.actions = np.random.default_rng(seed)
        self.learning = np.random.default_rng([seed, 1])
        with secluded(self.learning):
            self.learner = Learner(
                self.env,
                REMEMBERED_EPISODES * self.env.n_steps,
                scaled=not paper,
            )

    def propose(self, number: int) -> Proposal:
        """Return an episode of uniform actions in the warm-up, then one around the actor's."""
        if number < WARM_UP:
            return direct(walk(self.env, lambda _: self.actions.random(1)))
        sigma = exploration(number, self.episodes, self.paper)
        explore = partial(self.learner.explore, sigma=sigma, generator=self.actions)
        return direct(walk(self.env, explore), sigma=sigma, **self.learner.noted())

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:
        """Remember the steps with the reward and, after the warm-up, update both networks."""
        self.learner.remember(proposal.steps, reward)
        if number >= WARM_UP and number % learning_interval(self.window) == 0:
            steps = self.env.n_steps
            with secluded(self.learning):
                self.learner.train(steps if self.paper else updates_of(steps))

    def networks(self) -> Mapping[str, Array]:
        """Return the parameters of the actor, the critic and their targets."""
        return {name: tensor.numpy() for name, tensor in self.learner.policy.state_dict().items()}


def updates_of(steps: int) -> int:
    """Return how many gradient steps follow an episode of so many steps.

    >>> [updates_of(steps) for steps in (1, 6, 20, 105)]
    [3, 16, 16, 16]
    """
    return min(UPDATES * steps, MOST_UPDATES)


def learning_interval(window: int) -> int:
    """Return after how many episodes the networks are updated, where so many wait for rewards.

    After each one, as the paper does, while few wait. The workers of a wide window would wait for
    the updates: those of one episode take longer than many evaluations.

    >>> [learning_interval(window) for window in (1, 6, 24, 192)]
    [1, 1, 6, 48]
    """
    return max(1, window // 4)


def exploration(number: int, episodes: int, paper: bool) -> float:
    """Return sigma of episode ``number``, counted from 0, the warm-up included."""
    since = number - WARM_UP
    if paper:
        return SIGMA * PAPER_DECAY**since
    return float(SIGMA * (LAST_SIGMA / SIGMA) ** (since / max(episodes - WARM_UP - 1, 1)))
