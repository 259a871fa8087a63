"""DDPG as HAQ plays it: the networks and the gradient step of stable-baselines3, our own episodes.

Every transition carries the reward of its whole episode, and learning happens between episodes.
The room's README lists where this differs from the paper and from the original code, and why.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

from haq.agents.episode import Array, Episode, Step, roll, roll_uniform

WARM_UP = 20
"""Episodes of uniform actions before the actor takes over."""

UPDATES, PAPER_UPDATES = 3, 1
"""Gradient steps for each step of an episode."""

SIGMA, LAST_SIGMA, PAPER_DECAY = 0.5, 0.05, 0.99
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
HIDDEN = 300
REMEMBERED_EPISODES = 128
BASELINE_RATE = 0.5


def play(
    env: gym.Env[Array, Array], episodes: int, seed: int, *, paper: bool = False
) -> Iterator[Episode]:
    """Play ``episodes`` episodes and learn between them, yielding each as it ends.

    The actions of the first 20 episodes are uniform. From then on an action is drawn from a normal
    distribution around what the actor says, truncated to [0, 1]; its width stands in the notes as
    "sigma".

    Args:
        env: Observations and actions are Boxes, actions in [0, 1]; all episodes are equally long.
        episodes: How many to play, and over how many the exploration dies down.
        seed: Decides the actions, the networks and what is drawn from the replay.
        paper: Follow the paper to the letter: one update a step instead of three, and a sigma
            that falls by 1 % an episode instead of down to 0.05 in the last one.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
    arXiv:1811.08886; Lillicrap et al., "Continuous control with deep reinforcement learning",
    arXiv:1509.02971.
    """
    # The actions have a generator to themselves: they start like those of random search.
    actions, learning = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    seen: list[tuple[Sequence[Step], float]] = []
    for episode, steps in roll_uniform(env, min(episodes, WARM_UP), actions, seed):
        seen.append((steps, episode.reward))
        yield episode
    if episodes <= WARM_UP:
        return

    with secluded(learning):
        learner = Learner(env, REMEMBERED_EPISODES * len(seen[0][0]))
    for steps, reward in seen:
        learner.remember(steps, reward)
    updates = CATCHUP * sum(len(s) for s, _ in seen)
    for number in range(WARM_UP, episodes):
        with secluded(learning):
            learner.learn_(updates)
        sigma = noise(number, episodes, paper)
        episode, steps = roll(
            env, lambda observation: truncated_normal(learner.act(observation), sigma, actions)
        )
        yield episode._replace(notes={"sigma": sigma})
        learner.remember(steps, episode.reward)
        updates = (PAPER_UPDATES if paper else UPDATES) * len(steps)
CATCHUP=0
INIT=0

def noise(number: int, episodes: int, paper: bool) -> float:
    past = number - WARM_UP
    if paper:
        return SIGMA * PAPER_DECAY**past
    return SIGMA * (LAST_SIGMA / SIGMA) ** (past / max(episodes - WARM_UP - 1, 1))


def truncated_normal(mean: Array, sigma: float, generator: np.random.Generator) -> Array:
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn = mean + sigma * ndtri(low + (high - low) * generator.random(mean.shape))
    return drawn.clip(0.0, 1.0)


class EpisodeReplay(ReplayBuffer):
    baseline: float | None = None

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        batch = super().sample(batch_size, env)
        mean = float(batch.rewards.mean())
        if self.baseline is None:
            self.baseline = mean
        self.baseline += BASELINE_RATE * (mean - self.baseline)
        return batch._replace(rewards=batch.rewards - self.baseline)


class Learner(DDPG):
    def __init__(self, env, memory):
        super().__init__("MlpPolicy", env, learning_rate=CRITIC_RATE, buffer_size=memory, batch_size=64, tau=.01, gamma=1.0,
            replay_buffer_class=EpisodeReplay, policy_kwargs={"net_arch": [HIDDEN, HIDDEN], "optimizer_kwargs": {"fused": True}}, device="cpu")
        self.set_logger(Logger(None, []))
        if INIT:
            for net in (self.actor.mu[-2], self.critic.qf0[-1]):
                torch.nn.init.uniform_(net.weight, -.003,.003); torch.nn.init.uniform_(net.bias, -.003,.003)
            self.actor_target.load_state_dict(self.actor.state_dict()); self.critic_target.load_state_dict(self.critic.state_dict())

    def _update_learning_rate(self, optimizers) -> None:
        for optimizer, rate in zip(optimizers, (ACTOR_RATE, CRITIC_RATE), strict=True):
            update_learning_rate(optimizer, rate)

    def act(self, observation):
        with one_thread():
            return self.policy.predict(observation)[0].astype(np.float64)

    def remember(self, steps, reward):
        for s in steps:
            self.replay_buffer.add(s.observation[None], s.next_observation[None], self.policy.scale_action(s.action)[None], np.array([reward]), np.array([s.terminated]), [{}])

    def learn_(self, n):
        if n: self.train(n, self.batch_size)

@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield
    finally: torch.set_num_threads(threads)

@contextmanager
def secluded(generator):
    seed = int(generator.integers(2**32))
    state = np.random.get_state()
    with one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            np.random.seed(seed); torch.default_generator.manual_seed(seed)
            yield
        finally: np.random.set_state(state)
