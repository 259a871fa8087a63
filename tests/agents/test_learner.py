"""The learner: the gradient step of stable-baselines3, worked out by hand."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.utils import update_learning_rate
from toys import toy

from haq.agents.base import walk
from haq.agents.learner import ACTOR_RATE, CRITIC_RATE, Learner, secluded


class Theirs(Learner):
    """The same networks and replay, with the gradient step of stable-baselines3."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        DDPG.train(self, gradient_steps, batch_size)

    def _update_learning_rate(self, optimizers: object) -> None:
        update_learning_rate(self.actor.optimizer, ACTOR_RATE)
        update_learning_rate(self.critic.optimizer, CRITIC_RATE)


def taught(kind: type[Learner], updates: int) -> Learner:
    """Return a learner after some updates on random episodes."""
    env, generator = toy(), np.random.default_rng(1)
    with secluded(np.random.default_rng(0)):
        learner = kind(env, 20 * env.n_steps)
    for _ in range(20):
        learner.remember(walk(env, lambda _: generator.random(1)), generator.random())
    with secluded(np.random.default_rng(2)), torch.enable_grad():
        learner.train(updates)
    return learner


@pytest.mark.parametrize("updates", [1, 20])
def test_the_networks_learn_what_those_of_stable_baselines3_learn(updates: int) -> None:
    start, ours, theirs = (
        taught(kind, count) for kind, count in ((Learner, 0), (Learner, updates), (Theirs, updates))
    )
    for name in ("actor", "critic", "actor_target", "critic_target"):
        values = [
            torch.nn.utils.parameters_to_vector(getattr(learner, name).parameters())
            for learner in (start, ours, theirs)
        ]
        moved = [(after - values[0]).norm().item() for after in values[1:]]
        assert moved[0] == pytest.approx(moved[1], rel=1e-3)
        assert (values[1] - values[2]).norm().item() < 1e-2 * moved[0]
    assert ours.replay_buffer.baseline == theirs.replay_buffer.baseline


def test_the_losses_are_those_of_one_known_transition() -> None:
    env = toy(
        layers=1, act_bits=8
    )  # one step an episode: no value follows, and the baseline is the reward
    with secluded(np.random.default_rng(0)):
        learner = Learner(env, 8)
    (step,) = walk(env, lambda _: np.full(1, 0.25))
    learner.remember([step], 0.7)
    observation = torch.from_numpy(step.observation[None])
    action = torch.tensor([[2 * 0.25 - 1]])
    with torch.no_grad():
        (before,) = learner.critic(observation, action)
    learner.train(1)
    with torch.no_grad():
        learner.train(0)  # says nothing new
    assert learner.losses is not None
    assert learner.losses.critic == pytest.approx(float(before) ** 2, rel=1e-4)
    assert learner.noted() == {"critic_loss": learner.losses[0], "actor_loss": learner.losses[1]}


def test_the_loss_of_the_actor_is_minus_the_value_of_what_it_does() -> None:
    env = toy(layers=1)
    with secluded(np.random.default_rng(0)):
        learner = Learner(env, 8)
    learner.remember(walk(env, lambda _: np.full(1, 0.25)), 0.7)
    observations = learner.replay_buffer.sample(1).observations
    with torch.no_grad():
        (value,) = learner.critic(observations, learner.actor(observations))
        assert float(learner._update_actor(observations)) == pytest.approx(-float(value), rel=1e-5)
