"""Random search: every action uniform in [0, 1]. The floor that an agent has to beat."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np

from haq.agents.episode import (
    Ahead,
    Array,
    Episode,
    Proposal,
    direct,
    play_proposals,
    unwrapped,
    walk,
)


def play(
    env: gym.Env[Array, Array],
    episodes: int,
    seed: int,
    *,
    window: int = 1,
    ahead: Ahead | None = None,
) -> Iterator[Episode]:
    """Play ``episodes`` episodes of uniform actions, yielding each as it ends.

    With the same seed its first episodes are those in which ``ddpg`` warms up, so that the two
    are compared from the same start.

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one.
        episodes: How many to play.
        seed: Decides every action.
        window: See ``haq.agents.episode.play_proposals``; changes nothing here.
        ahead: Told of every policy before it is evaluated.
    """
    inner, generator = unwrapped(env), np.random.default_rng(seed)

    def propose(_: int) -> Proposal:
        return direct(walk(inner, lambda _: generator.random(1)))

    return play_proposals(env, episodes, seed, propose, window=window, ahead=ahead)
