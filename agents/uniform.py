"""The same bits everywhere: the policies anybody would try first, lowered where over the budget."""

from collections.abc import Iterator
from functools import partial

import gymnasium as gym
import numpy as np

from haq.agents.episode import Array, Episode, roll

WIDTHS = 7
"""From 2 bits up to 8."""


def play(env: gym.Env[Array, Array], episodes: int, seed: int) -> Iterator[Episode]:
    """Yield an episode of the same action in every step, for each width from the lowest up.

    A policy over the budget is lowered by the environment, layer by layer from the last one.

    Args:
        env: A ``QuantizationEnv``, or any environment with actions in [0, 1].
        episodes: At most this many; after the highest width it starts again.
        seed: Passed to the environment; nothing here is random.
    """
    assert env.action_space.shape is not None
    shape = env.action_space.shape
    for number in range(episodes):
        share = (number % WIDTHS + 0.5) / WIDTHS
        action = np.full(shape, share)
        episode, _ = roll(env, partial(_always, action), None if number else seed)
        yield episode._replace(notes={"action": share})


def _always(action: Array, _observation: Array) -> Array:
    return action
