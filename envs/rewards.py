"""Rewards: what a score is worth, beside that of the float network."""

from collections.abc import Callable, Mapping

from haq.allocation.trials import Score

LEAST_REWARD = -10.0
"""The reward of a policy for which there is no finite one: the least that an accuracy can give."""

Reward = Callable[[Score, Score], float]
"""From the scores of a policy and of the float network to a reward: higher is better."""


def accuracy_reward(score: Score, floats: Score) -> float:
    """Return 0.1 times the percentage points of accuracy gained over the float network."""
    return 0.1 * 100 * (score.accuracy - floats.accuracy)


def loss_reward(score: Score, floats: Score) -> float:
    """Return by how much the loss is less than that of the float network."""
    return floats.loss - score.loss


REWARDS: Mapping[str, Reward] = {"accuracy": accuracy_reward, "loss": loss_reward}
"""How a search may reward, by name."""
