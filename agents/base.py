"""What an agent is: it proposes episodes, and learns or not from their rewards.

What the environment shows depends on the actions alone, so an agent proposes all actions of an
episode at once, before any of them is played; ``haq.agents.driver.play`` plays what it proposes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from haq.envs.quantization import QuantizationEnv

Array = NDArray[Any]


class Step(NamedTuple):
    """One step of an episode; ``terminated`` is true where no value follows."""

    observation: Array
    action: Array
    next_observation: Array
    terminated: bool


class Proposal(NamedTuple):
    """An episode that is decided on, but not played yet.

    Attributes:
        actions: What the environment is to be sent, a number in [0, 1] for each step.
        steps: What the agent learns from once it knows the reward.
        notes: What the agent says about itself, by name, such as ``{"sigma": 0.5}``.
    """

    actions: Sequence[float]
    steps: Sequence[Step] = ()
    notes: Mapping[str, float] = MappingProxyType({})


class Agent(ABC):
    """An agent; subclasses propose, and learn if they can.

    Equal environment, episodes, seed and rewards give equal proposals, whatever else draws from the
    process's random generators in between: a resumed run plays its first episodes again with the
    rewards that are on disk. ``propose`` is called once for each episode, in order, and ``learn``
    once for each reward, in order.

    Attributes:
        env: The environment without its wrappers.
        episodes: How many will be played.
        seed: Decides everything that is random.
        informed: Whether the environment must have sensitivities. An attribute of the class.
        window: How many proposals may wait for their rewards; the driver says so before the first
            one. What is learned once for many of them keeps as many workers busy.
        references: How many of the first episodes play a known good answer rather than a try. An
            attribute of the class; a search that fine-tunes its best policies fine-tunes these too.

    Raises:
        ValueError: The environment is another one, or lacks the sensitivities that are needed.
    """

    informed: ClassVar[bool] = False
    references: ClassVar[int] = 0
    window: int = 1

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        self.env = unwrapped(env)
        self.episodes = episodes
        self.seed = seed
        if self.informed and self.env.sensitivity is None:
            raise ValueError(
                f"{type(self).__name__} plays a QuantizationEnv made with sensitivity="
            )

    @abstractmethod
    def propose(self, number: int) -> Proposal:
        """Return what to do in an episode, counted from 0."""

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:  # noqa: B027
        """Take note of the reward of an episode; most agents learn nothing."""

    def networks(self) -> Mapping[str, Array]:
        """Return what the agent learned, by name, as a run keeps it; most agents keep nothing."""
        return {}

    @classmethod
    def episodes_for(cls, seconds: float, layers: int) -> int:
        """Return how many episodes suit an evaluation that takes so long; 60 by default.

        Args:
            seconds: CPU or wall seconds that one evaluation takes.
            layers: Layers that are quantized.
        """
        return 60


def unwrapped(env: gym.Env[Array, Array]) -> QuantizationEnv:
    """Return the environment without its wrappers.

    Raises:
        ValueError: It is another one.
    """
    inner: Any = env.unwrapped
    if not isinstance(inner, QuantizationEnv):
        raise ValueError(f"agents play a QuantizationEnv, not a {type(inner).__name__}")
    return inner


def walk(
    env: QuantizationEnv, choose: Callable[[Array], Array], previous: float = 0.0
) -> list[Step]:
    """Return the steps of an episode without playing it: what is seen depends on actions alone.

    Args:
        env: Nothing happens to it.
        choose: From the observation to the action, an array of one number in [0, 1].
        previous: The action that the first observation shows as the one before.
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
