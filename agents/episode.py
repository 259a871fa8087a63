"""One episode: how any agent plays it, and what it hands on when it is finished."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        info: What the environment said at the last step (policy, cost, accuracy, …).
        reward: The sum of the rewards of all steps.
        notes: What the agent says about itself, by name, such as ``{"sigma": 0.5}``.
    """

    info: dict[str, Any]
    reward: float
    notes: dict[str, float]


class Step(NamedTuple):
    """One step of an episode; ``terminated`` is true where no value follows."""

    observation: Array
    action: Array
    next_observation: Array
    terminated: bool


def roll(
    env: gym.Env[Array, Array], choose: Callable[[Array], Array], seed: int | None = None
) -> tuple[Episode, list[Step]]:
    """Play one episode from reset to end.

    Args:
        env: Observations and actions are Boxes, actions in [0, 1].
        choose: From the observation to the action, in the shapes of their spaces.
        seed: Passed on to ``env.reset``; given for the first episode only.

    Returns:
        The episode, without notes, and its steps in order.
    """
    observation, _ = env.reset(seed=seed)
    steps, reward, ended = [], 0.0, False
    while not ended:
        action = choose(observation).astype(np.float32)
        following, gained, terminated, truncated, info = env.step(action)
        # Copies, because an environment may write every observation into the same array.
        steps.append(Step(observation.copy(), action.copy(), following.copy(), terminated))
        observation, reward, ended = following, reward + float(gained), terminated or truncated
    return Episode(info, reward, {}), steps


def roll_uniform(
    env: gym.Env[Array, Array], episodes: int, generator: np.random.Generator, seed: int
) -> Iterator[tuple[Episode, list[Step]]]:
    """Play episodes of uniform actions from ``generator``; ``seed`` is the environment's."""
    shape = env.action_space.shape
    assert shape is not None
    for number in range(episodes):
        yield roll(env, lambda _: generator.random(shape), None if number else seed)
