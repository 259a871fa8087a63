"""The same bits everywhere: the policies anybody would try first, lowered where over the budget."""

from collections.abc import Iterator

import gymnasium as gym

from haq.agents.episode import Ahead, Array, Episode, Proposal, play_proposals, unwrapped

WIDTHS = 7
"""From 2 bits up to 8."""


def play(
    env: gym.Env[Array, Array],
    episodes: int,
    seed: int,
    *,
    window: int = 1,
    ahead: Ahead | None = None,
) -> Iterator[Episode]:
    """Yield an episode of the same action in every step, for each width from the lowest up.

    A policy over the budget is lowered by the environment, layer by layer from the last one.

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one.
        episodes: At most this many; after the highest width it starts again.
        seed: Passed to the environment; nothing here is random.
        window: See ``haq.agents.episode.play_proposals``; changes nothing here.
        ahead: Told of every policy before it is evaluated.
    """
    steps = unwrapped(env).n_steps

    def propose(number: int) -> Proposal:
        share = (number % WIDTHS + 0.5) / WIDTHS
        return Proposal([share] * steps, notes={"action": share})

    return play_proposals(env, episodes, seed, propose, window=window, ahead=ahead)
