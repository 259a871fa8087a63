"""The networks of DDPG and their gradient step: those of stable-baselines3, in half the time.

The step is worked out by hand on one vector of numbers for each network, since for networks this
small automatic differentiation, many small tensors and gradients that nobody needs take as long as
the products. It gives what ``stable_baselines3.DDPG.train`` gives, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from haq.agents.base import Array, Step

ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
BETAS, EPSILON, TINY = (0.9, 0.999), 1e-8, 1e-30
HIDDEN = [300, 300]
BATCH = 64
TAU = 0.01
REMEMBERED_EPISODES = 128
BASELINE_RATE = 0.5


class Replay(ReplayBuffer):
    """A replay that hands out rewards relative to their moving average over the batches.

    Attributes:
        scaled: Whether rewards are divided by the standard deviation of all in the replay, so that
            the networks learn alike in whatever unit they come.
    """

    baseline: float | None = None
    scaled: bool = False
    _known: tuple[tuple[bool, int] | None, float] = None, 1.0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return random transitions, the moving average brought up to date and subtracted."""
        batch = super().sample(batch_size, env)
        if self.scaled:
            batch = batch._replace(rewards=batch.rewards / self._spread())
        mean = float(batch.rewards.mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = before + BASELINE_RATE * (mean - before)
        return batch._replace(rewards=batch.rewards - self.baseline)

    def _spread(self) -> float:
        """Return the standard deviation of all rewards, worked out once for so many of them."""
        if self._known[0] != (self.full, self.pos):
            deviation = float(self.rewards[: self.size()].std())
            self._known = (self.full, self.pos), deviation or 1.0
        return self._known[1]


class Perceptron:
    """A multilayer perceptron with ReLU between its layers, all of its numbers in one vector.

    Args:
        network: Linear layers and whatever stands between them; its parameters become views of the
            vector, so that it stays the same network.
        rate: Of Adam.
    """

    def __init__(self, network: nn.Module, rate: float = 0.0) -> None:
        parameters = list(network.parameters())
        self.values = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient = torch.zeros_like(self.values)
        self.layers = _paired(self.values, parameters)
        self.gradients = _paired(self.gradient, parameters)
        for parameter, view in zip(parameters, sum(self.layers, ()), strict=True):
            parameter.data = view
        self.rate, self.steps = rate, 0
        self.mean, self.variance = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self._deviation = torch.empty_like(self.values)  # memory anew takes longer than the root

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return what each layer reads, and behind it what the last one gives."""
        read = [inputs]
        for place, (weight, bias) in enumerate(self.layers):
            if place:
                read[-1].relu_()
            read.append(torch.addmm(bias, read[-1], weight.t()))
        return read

    def backward(self, read: Sequence[Tensor], gradient: Tensor, learns: bool = True) -> Tensor:
        """Work out the gradients of all layers, or else return that of what the first one read.

        Args:
            read: What ``forward`` returned.
            gradient: Of what the last layer gave.
            learns: Whether those of the layers are wanted; they replace the ones before.
        """
        for place in reversed(range(len(self.layers))):
            if learns:
                of_weight, of_bias = self.gradients[place]
                torch.mm(gradient.t(), read[place], out=of_weight)
                torch.sum(gradient, 0, out=of_bias)
            if place or not learns:
                gradient = gradient @ self.layers[place][0]
            if place:
                gradient = torch.ops.aten.threshold_backward(gradient, read[place], 0)
        return gradient

    def step(self) -> None:
        """Take a step of Adam down the gradient."""
        self.steps += 1
        self.mean.lerp_(self.gradient, 1 - BETAS[0])
        self.variance.mul_(BETAS[1]).addcmul_(self.gradient, self.gradient, value=1 - BETAS[1])
        deviation = torch.div(self.variance, 1 - BETAS[1] ** self.steps, out=self._deviation)
        # The root of a denormal number takes thirty times as long as that of another one.
        deviation.add_(TINY).sqrt_().add_(EPSILON)
        length = self.rate / (1 - BETAS[0] ** self.steps)
        self.values.addcdiv_(self.mean, deviation, value=-length)


def _paired(vector: Tensor, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    sizes = [p.numel() for p in parameters]
    views = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]
    return list(zip(views[::2], views[1::2], strict=True))


class Losses(NamedTuple):
    """What both networks minimize, the mean over some gradient steps.

    Attributes:
        critic: Squared distance of its values to the rewards, in the units of the replay.
        actor: Minus the value that the critic gives to what it does.
    """

    critic: float
    actor: float


class Learner(DDPG):
    """The networks, what they learn from and the gradient step, without the episodes.

    Args:
        env: Says how long observations and actions are.
        capacity: Of the replay, in transitions.
        still: The actor's loss has that many times the squared input of its tanh, which pulls its
            actions to the middle of their range.
        scaled: Whether rewards count in units of their standard deviation.

    Attributes:
        losses: Of the last training; None before the first one.
    """

    replay_buffer: Replay
    losses: Losses | None = None

    def __init__(
        self,
        env: gym.Env[Array, Array],
        capacity: int,
        *,
        still: float = 0.0,
        scaled: bool = False,
    ) -> None:
        super().__init__(
            "MlpPolicy",
            env,
            buffer_size=capacity,
            tau=TAU,
            gamma=1.0,
            replay_buffer_class=Replay,
            policy_kwargs={"net_arch": HIDDEN},
            device="cpu",
        )
        self.set_logger(Logger(None, []))  # or it looks for a folder and prints
        self.still, self.replay_buffer.scaled = still, scaled
        self._actor = Perceptron(self.actor.mu, ACTOR_RATE)
        self._critic = Perceptron(self.critic.q_networks[0], CRITIC_RATE)
        self._actor_target = Perceptron(self.actor_target.mu)
        self._critic_target = Perceptron(self.critic_target.q_networks[0])

    @torch.no_grad()
    def train(self, gradient_steps: int, batch_size: int = BATCH) -> None:
        """Update both networks so often, each time from other transitions; see ``losses``."""
        critic, actor = torch.zeros(()), torch.zeros(())
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size)
            critic += self._update_critic(batch)
            actor += self._update_actor(batch.observations)
            for network, target in (
                (self._critic, self._critic_target), (self._actor, self._actor_target),
            ):  # fmt: skip
                target.values.lerp_(network.values, self.tau)
        if gradient_steps:
            self.losses = Losses(float(critic) / gradient_steps, float(actor) / gradient_steps)

    def noted(self) -> dict[str, float]:
        """Return the losses as notes of a proposal; none before the first training."""
        losses = {} if self.losses is None else self.losses._asdict()
        return {f"{name}_loss": value for name, value in losses.items()}

    def _update_critic(self, batch: ReplayBufferSamples) -> Tensor:
        """Take a step down the squared distance to the reward and the value of what follows.

        Returns:
            The distance before the step.
        """
        action = self._actor_target.forward(batch.next_observations)[-1].tanh_()
        following = torch.cat([batch.next_observations, action], 1)
        value = self._critic_target.forward(following)[-1]
        wanted = batch.rewards + (1 - batch.dones) * value  # (batch, 1), a discount of 1
        read = self._critic.forward(torch.cat([batch.observations, batch.actions], 1))
        away = read[-1] - wanted
        self._critic.backward(read, away * (2 / len(wanted)))
        self._critic.step()
        return away.square().mean()

    def _update_actor(self, observations: Tensor) -> Tensor:
        """Take a step up the value of what the actor does, and return minus that value."""
        read = self._actor.forward(observations)
        action, count = read[-1].tanh(), len(observations)
        of_critic = self._critic.forward(torch.cat([observations, action], 1))
        ascent = torch.full_like(action, -1 / count)
        of_action = self._critic.backward(of_critic, ascent, learns=False)[:, -1:]
        of_input = of_action * (1 - action * action) + 2 * self.still / count * read[-1]
        self._actor.backward(read, of_input)
        self._actor.step()
        return -of_critic[-1].mean()

    def explore(self, observation: Array, sigma: float, generator: np.random.Generator) -> Array:
        """Return an action around what the actor says."""
        return truncated_normal(self.act(observation), sigma, generator)

    def act(self, observation: Array) -> Array:
        """Return what the actor says, in [0, 1]: in numpy, which takes a tenth of the time."""
        values = observation.ravel().astype(np.float32)
        for weight, bias in self._numpy[:-1]:
            values = np.maximum(weight @ values + bias, 0)
        weight, bias = self._numpy[-1]
        action: Array = 0.5 * (np.tanh((weight @ values + bias).astype(np.float64)) + 1)
        return action

    @property
    def _numpy(self) -> list[tuple[Array, Array]]:
        return [(weight.numpy(), bias.numpy()) for weight, bias in self._actor.layers]

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
