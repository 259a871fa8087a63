"""Episodes: how any agent proposes and plays them, and what it hands on when one is finished."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import Policy
from haq.envs.quantization import QuantizationEnv

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


class Proposal(NamedTuple):
    """An episode that is decided on, but not played yet.

    Attributes:
        actions: What the environment is to be sent, a number for each step.
        steps: What the agent learns from once it knows the reward.
        notes: As those of the episode.
    """

    actions: Sequence[float]
    steps: Sequence[Step] = ()
    notes: Mapping[str, float] = MappingProxyType({})


def walk(
    env: QuantizationEnv, choose: Callable[[Array], Array], previous: float = 0.0
) -> list[Step]:
    """Return the steps of an episode without playing it: what is seen depends on actions alone.

    Args:
        env: Nothing happens to it.
        choose: From the observation to the action, an array of one number in [0, 1].
        previous: The action that the first observation tells of.
    """
    steps: list[Step] = []
    observation = env.observe(0, previous)
    for number in range(1, env.n_steps + 1):
        action = choose(observation).astype(np.float32)
        following = env.observe(number, float(action[0]))
        steps.append(Step(observation, action, following, number == env.n_steps))
        observation = following
    return steps


def direct(steps: Sequence[Step], **notes: float) -> Proposal:
    """Return the proposal of an agent whose actions are those of the environment."""
    return Proposal([float(step.action[0]) for step in steps], steps, notes)


Ahead = Callable[[int, Policy], None]
"""Told the number of an episode and the policy that it will evaluate."""


def play_proposals(
    env: gym.Env[Array, Array],
    episodes: int,
    seed: int,
    propose: Callable[[int], Proposal],
    learn: Callable[[int, Proposal, float], None] | None = None,
    *,
    window: int = 1,
    ahead: Ahead | None = None,
) -> Iterator[Episode]:
    """Play what an agent proposes, up to ``window`` proposals behind, yielding each as it ends.

    So whoever listens to ``ahead`` can work on ``window`` evaluations at once. What the agent knows
    when it proposes episode k are the rewards of episodes 0 to k - window, whenever they came.

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one that changes nothing.
        episodes: How many to play.
        seed: Passed on to ``env.reset`` for the first episode.
        propose: From the number of an episode, counted from 0, to what to do in it.
        learn: Told number, proposal and reward of an episode, in order, as long as there is
            something left to propose.
        window: Proposals that may wait; with 1 each is played before the next one is made.
        ahead: Called with each proposal.
    """
    inner = unwrapped(env)
    waiting: deque[tuple[int, Proposal]] = deque()
    for latest in range(episodes):
        waiting.append((latest, propose(latest)))
        if ahead is not None:
            ahead(latest, inner.policy(waiting[-1][1].actions))
        last = latest == episodes - 1
        while waiting and (last or len(waiting) == window):
            number, proposal = waiting.popleft()
            actions = iter(proposal.actions)
            episode, _ = roll(env, partial(_next, actions), None if number else seed)
            yield episode._replace(notes=dict(proposal.notes))
            if learn is not None and not last:
                learn(number, proposal, episode.reward)


def _next(actions: Iterator[float], _observation: Array) -> Array:
    return np.array([next(actions)])


def unwrapped(env: gym.Env[Array, Array]) -> QuantizationEnv:
    """Return the environment without its wrappers.

    Raises:
        ValueError: It is another one.
    """
    inner: Any = env.unwrapped
    if not isinstance(inner, QuantizationEnv):
        raise ValueError(f"agents play a QuantizationEnv, not a {type(inner).__name__}")
    return inner
