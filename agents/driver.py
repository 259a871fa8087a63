"""The driver: plays what an agent proposes, and hands on each episode when it is over."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal, Step, unwrapped
from haq.allocation.policy import Policy

Ahead = Callable[[int, Policy], None]
"""Called with the number of an episode and the policy that it will evaluate."""


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


def play(
    agent: Agent,
    env: gym.Env[Array, Array],
    episodes: int,
    *,
    window: int = 1,
    ahead: Ahead | None = None,
) -> Iterator[Episode]:
    """Play what an agent proposes, up to ``window`` proposals behind, yielding each as it ends.

    So whoever listens to ``ahead`` can work on ``window`` evaluations at once. What the agent knows
    when it proposes episode k are the rewards of episodes 0 to k - window, whenever they came. The
    listener may stop at any time.

    Args:
        agent: Learns the rewards in order, as long as there is something left to propose.
        env: The agent's ``QuantizationEnv``, or a wrapper of it that changes nothing.
        episodes: How many to play.
        window: Proposals that may wait; with 1 each is played before the next one is made.
        ahead: Called with each proposal.

    Raises:
        ValueError: The agent proposes too many or too few actions.
    """
    inner, agent.window = unwrapped(env), window
    waiting: deque[tuple[int, Proposal]] = deque()
    for latest in range(episodes):
        proposal = agent.propose(latest)
        _check(proposal, inner.n_steps)
        waiting.append((latest, proposal))
        if ahead is not None:
            ahead(latest, inner.policy(proposal.actions))
        last = latest == episodes - 1
        while waiting and (last or len(waiting) == window):
            number, oldest = waiting.popleft()
            episode, _ = roll(env, partial(_next, iter(oldest.actions)))
            yield episode._replace(notes=dict(oldest.notes))
            if not last:
                agent.learn(number, oldest, episode.reward)


def _next(actions: Iterator[float], _observation: Array) -> Array:
    return np.array([next(actions)])


def _check(proposal: Proposal, steps: int) -> None:
    if len(proposal.actions) != steps:
        raise ValueError(
            f"the agent proposed {len(proposal.actions)} actions; an episode has {steps} steps, "
            "and each needs one"
        )


def roll(
    env: gym.Env[Array, Array], choose: Callable[[Array], Array]
) -> tuple[Episode, list[Step]]:
    """Play one episode from reset to end.

    Args:
        env: Observations and actions are Boxes, actions in [0, 1].
        choose: From the observation to the action, in the shapes of their spaces.

    Returns:
        The episode, without notes, and its steps in order.
    """
    observation, _ = env.reset()
    steps, reward, ended = [], 0.0, False
    while not ended:
        action = choose(observation).astype(np.float32)
        following, gained, terminated, truncated, info = env.step(action)
        # Copies, because an environment may write every observation into the same array.
        steps.append(Step(observation.copy(), action.copy(), following.copy(), terminated))
        observation, reward, ended = following, reward + float(gained), terminated or truncated
    return Episode(info, reward, {}), steps
