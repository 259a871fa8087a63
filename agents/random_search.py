"""Random search: every action uniform in [0, 1]. The floor that an agent has to beat."""

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal, direct, walk


class RandomSearch(Agent):
    """Uniform actions, drawn from the seed.

    With the same seed its first episodes are those in which ``ddpg`` warms up, so that the two are
    compared from the same start.
    """

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.generator = np.random.default_rng(seed)

    def propose(self, number: int) -> Proposal:
        """Return an episode of uniform actions."""
        return direct(walk(self.env, lambda _: self.generator.random(1)))
