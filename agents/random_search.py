"""Random search: every action uniform in [0, 1]. The floor that an agent has to beat."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np

from haq.agents.episode import Array, Episode, roll_uniform


def play(env: gym.Env[Array, Array], episodes: int, seed: int) -> Iterator[Episode]:
    """Play ``episodes`` episodes of uniform actions, yielding each as it ends.

    With the same seed its first episodes are those in which ``ddpg`` warms up, so that the two
    are compared from the same start.

    Args:
        env: Observations and actions are Boxes, actions in [0, 1].
        episodes: How many to play.
        seed: Decides every action.
    """
    for episode, _ in roll_uniform(env, episodes, np.random.default_rng(seed), seed):
        yield episode
