"""Small searches with a known answer, for the tests of the agents."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from haq.agents import Agent, Episode, Proposal, find, play
from haq.agents.base import Array
from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.network.layers import Layer

# The start of a MobileNet, and a head.
LAYERS = (
    Layer("stem", "conv", 3, 16, (3, 3), (2, 2), (1, 1), 1, (32, 32), (16, 16), 432, reads="stem"),
    Layer(
        "dw1", "depthwise", 16, 16, (3, 3), (1, 1), (1, 1), 16, (16, 16), (16, 16), 144, reads="dw1"
    ),
    Layer(
        "pw1", "pointwise", 16, 32, in_size=(16, 16), out_size=(16, 16), weights=512, reads="pw1"
    ),
    Layer(
        "dw2", "depthwise", 32, 32, (3, 3), (2, 2), (1, 1), 32, (16, 16), (8, 8), 288, reads="dw2"
    ),
    Layer("pw2", "pointwise", 32, 64, in_size=(8, 8), out_size=(8, 8), weights=2048, reads="pw2"),
    Layer("head", "linear", 64, 10, weights=640, reads="head"),
)


def closeness(policy: Policy) -> Score:
    """1 where depthwise layers have 8 bits and the others 2; each bit away costs 1/72."""
    wanted = {layer.name: 8 if layer.kind == "depthwise" else 2 for layer in LAYERS}
    away = sum(abs(bits - wanted[name]) for name, pair in policy.items() for bits in pair)
    return Score(1 - away / (6 * 2 * len(LAYERS)))


def weight_closeness(policy: Policy) -> Score:
    """1 where the weights of depthwise layers have 8 bits and of others 2; else down to 0."""
    wanted = {layer.name: 8 if layer.kind == "depthwise" else 2 for layer in LAYERS}
    return Score(1 - sum(abs(b.weight - wanted[n]) for n, b in policy.items()) / (6 * len(LAYERS)))


def toy(
    evaluate: Callable[[Policy], Score] = closeness,
    layers: int = 6,
    budgets: Sequence[str] = (),
    act_bits: int | None = None,
    **options: Any,
) -> QuantizationEnv:
    """Return an environment in which all that is known is that few bits hurt, alike everywhere."""
    some = LAYERS[:layers]
    table = tabulate(some, permitted(some, None, act_bits=act_bits))
    known = {
        name: np.array([4.0**-bits.weight + 4.0**-bits.act for bits in choices])
        for name, choices in table.choices.items()
    }
    limits = [parse_budget(text, some, None) for text in budgets]
    return QuantizationEnv(table, evaluate, limits, sensitivity=known, **options)


def played(
    name: str, env: gym.Env[Array, Array], episodes: int, seed: int = 0, **options: Any
) -> list[Episode]:
    """Return the episodes of an agent of that name."""
    return list(play(find(name)(env, episodes, seed), env, episodes, **options))


def words(policy: Policy) -> str:
    """Return the bits of weights and activations of each layer in order, such as "8844"."""
    return "".join(str(width) for bits in policy.values() for width in bits)


class Climber(Agent):
    """An agent of somebody else's: keeps the best actions so far and moves one of them."""

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.generator = np.random.default_rng(seed)
        self.best, self.reward = [0.5] * self.env.n_steps, -np.inf

    def propose(self, number: int) -> Proposal:
        """Return the best actions, one of them drawn anew."""
        actions = list(self.best)
        actions[self.generator.integers(len(actions))] = float(self.generator.random())
        return Proposal(actions)

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:
        """Keep the actions if they are better."""
        if reward > self.reward:
            self.best, self.reward = list(proposal.actions), reward
