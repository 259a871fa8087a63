"""DDPG as HAQ plays it: the networks and the gradient step of stable-baselines3, our own episodes.

Every transition carries the reward of its whole episode, and learning happens between episodes.
The room's README lists where this differs from the paper and from the original code, and why.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize

from haq.agents.base import Agent, Array, Proposal, Step, direct, walk

WARM_UP = 20
"""Episodes of uniform actions before the actor takes over."""

UPDATES, PAPER_UPDATES = 3, 1
"""Gradient steps for each step of an episode."""

SIGMA, LAST_SIGMA, PAPER_DECAY = 0.5, 0.05, 0.99
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
HIDDEN = [300, 300]
BATCH = 64
REMEMBERED_EPISODES = 128
BASELINE_RATE = 0.5


class Ddpg(Agent):
    """An actor and a critic that learn from every episode, between the episodes.

    The actions of the first 20 episodes are uniform. From then on an action is drawn from a normal
    distribution around what the actor says, truncated to [0, 1]; its width stands in the notes as
    "sigma".

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one.
        episodes: How many will be played, and over how many the exploration dies down.
        seed: Decides the actions, the networks and what is drawn from the replay.
        paper: Follow the paper to the letter: one update a step instead of three, and a sigma
            that falls by 1 % an episode instead of down to 0.05 in the last one.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
    arXiv:1811.08886; Lillicrap et al., "Continuous control with deep reinforcement learning",
    arXiv:1509.02971.
    """

    def __init__(
        self, env: gym.Env[Array, Array], episodes: int, seed: int, *, paper: bool = False
    ) -> None:
        super().__init__(env, episodes, seed)
        self.paper = paper
        # The actions have a generator to themselves, so that they start like random search's.
        self.actions = np.random.default_rng(seed)
        self.learning = np.random.default_rng([seed, 1])
        with secluded(self.learning):
            self.learner = Learner(self.env, REMEMBERED_EPISODES * self.env.n_steps)

    def propose(self, number: int) -> Proposal:
        """Return an episode of uniform actions in the warm-up, then one around the actor's."""
        if number < WARM_UP:
            return direct(walk(self.env, lambda _: self.actions.random(1)))
        sigma = exploration(number, self.episodes, self.paper)
        explore = partial(self.learner.explore, sigma=sigma, generator=self.actions)
        return direct(walk(self.env, explore), sigma=sigma)

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:
        """Remember the steps with the reward and, after the warm-up, update both networks."""
        self.learner.remember(proposal.steps, reward)
        if number >= WARM_UP and number % learning_interval(self.window) == 0:
            updates = PAPER_UPDATES if self.paper else UPDATES
            with secluded(self.learning):
                self.learner.train(updates * self.env.n_steps, BATCH)


def learning_interval(window: int) -> int:
    """Return after how many episodes the networks are updated, where so many wait for rewards.

    After each one, as the paper does, while few wait. The workers of a wide window would wait for
    the updates: those of one episode take longer than many evaluations.

    >>> [learning_interval(window) for window in (1, 6, 24, 192)]
    [1, 1, 6, 48]
    """
    return max(1, window // 4)


def exploration(number: int, episodes: int, paper: bool) -> float:
    """Return sigma of episode ``number``, counted from 0, the warm-up included."""
    since = number - WARM_UP
    if paper:
        return SIGMA * PAPER_DECAY**since
    return float(SIGMA * (LAST_SIGMA / SIGMA) ** (since / max(episodes - WARM_UP - 1, 1)))


def truncated_normal(mean: Array, sigma: float, generator: np.random.Generator) -> Array:
    """Draw from normal distributions around ``mean``, cut off below 0 and above 1.

    Args:
        mean: In [0, 1], any shape.
        sigma: Standard deviation before the cut, positive.
        generator: Gives one uniform number for each drawn one.
    """
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn: Array = mean + sigma * ndtri(low + (high - low) * generator.random(mean.shape))
    return drawn.clip(0.0, 1.0)  # for what ndtri rounds


class Replay(ReplayBuffer):
    """A replay that hands out rewards relative to their moving average over the batches."""

    baseline: float | None = None

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return random transitions, the moving average brought up to date and subtracted."""
        batch = super().sample(batch_size, env)
        mean = float(batch.rewards.mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = before + BASELINE_RATE * (mean - before)
        return batch._replace(rewards=batch.rewards - self.baseline)


class Learner(DDPG):
    """The networks, what they learn from and the gradient step, without the episodes.

    With ``still`` the actor's loss has that many times the squared input of its tanh, which pulls
    its actions to the middle of their range.
    """

    replay_buffer: Replay
    _actor: list[tuple[Array, Array]] | None = None  # views of its weights and biases

    def __init__(self, env: gym.Env[Array, Array], capacity: int, still: float = 0.0) -> None:
        super().__init__(
            "MlpPolicy",
            env,
            buffer_size=capacity,
            tau=0.01,
            gamma=1.0,
            replay_buffer_class=Replay,
            policy_kwargs={"net_arch": HIDDEN, "optimizer_kwargs": {"fused": True}},
            device="cpu",
        )
        self.set_logger(Logger(None, []))  # or it looks for a folder and prints

        def penalise(_layer: torch.nn.Module, _input: Any, output: torch.Tensor) -> None:
            if output.requires_grad:
                pull = 2 * still / len(output) * output.detach()
                output.register_hook(lambda gradient: gradient + pull)

        if still:
            self.actor.mu[-2].register_forward_hook(penalise)  # what goes into the tanh

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        # stable-baselines3 has one rate for both networks.
        update_learning_rate(self.actor.optimizer, ACTOR_RATE)
        update_learning_rate(self.critic.optimizer, CRITIC_RATE)

    def explore(self, observation: Array, sigma: float, generator: np.random.Generator) -> Array:
        """Return an action around what the actor says."""
        return truncated_normal(self.act(observation), sigma, generator)

    def act(self, observation: Array) -> Array:
        """Return what the actor says, in [0, 1]: in numpy, which takes a tenth of the time."""
        if self._actor is None:
            parameters = [p.detach().numpy() for p in self.actor.mu.parameters()]
            self._actor = list(zip(parameters[::2], parameters[1::2], strict=True))
        values = observation.ravel().astype(np.float32)
        for weight, bias in self._actor[:-1]:
            values = np.maximum(weight @ values + bias, 0)
        weight, bias = self._actor[-1]
        action: Array = 0.5 * (np.tanh((weight @ values + bias).astype(np.float64)) + 1)
        return action

    def remember(self, steps: Sequence[Step], reward: float) -> None:
        """Keep the steps of an episode, each with the reward of the whole."""
        for step in steps:
            self.replay_buffer.add(
                step.observation[None],
                step.next_observation[None],
                self.policy.scale_action(step.action)[None],  # the networks live in [-1, 1]
                np.array([reward]),
                np.array([step.terminated]),
                [{}],
            )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: for networks this small more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def secluded(generator: np.random.Generator) -> Iterator[None]:
    """Seed the global random generators from ``generator``, and put them back afterwards.

    stable-baselines3 draws from those of numpy and torch. So neither does an evaluation between two
    episodes change what the agent does, nor the agent what an evaluation draws.
    """
    seed = int(generator.integers(2**32))
    before = np.random.get_state()
    with one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            np.random.set_state(before)
