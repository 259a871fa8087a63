"""Integer programming: the policy that is best by the sensitivities, exactly, under all budgets.

That is the first episode. Later ones doubt the sensitivities: each is multiplied by a random
factor, and the policy is the best by those. So a search of many episodes stays among the policies
that could be the best.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal
from haq.allocation.budgets import fit, solve, uniform_policy
from haq.allocation.policy import Bits, Policy
from haq.envs.observations import Decision, What
from haq.envs.quantization import QuantizationEnv

DOUBT = 0.5
"""Standard deviation of the logarithms of the factors."""

RETRIES = 20
"""How often other factors are drawn for a policy that was met before; the doubt grows each time."""


class Ilp(Agent):
    """The optimum first, then the optima of sensitivities that are doubted.

    The sum of the sensitivities stands in the notes as "predicted".

    Args:
        env: A ``QuantizationEnv`` with sensitivities, or a wrapper of one.
        episodes: How many will be played.
        seed: Decides the doubts.

    Raises:
        ValueError: The environment has no sensitivities.
    """

    informed = True
    references = 1

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.generator = np.random.default_rng(seed)
        self.met: set[Key] = set()

    def propose(self, number: int) -> Proposal:
        """Return the optimum, or one by doubted sensitivities that was not met before.

        Raises:
            BudgetError: No policy keeps the budgets.
        """
        for attempt in range(RETRIES):
            doubts = np.zeros(self.env.n_steps)
            if number:
                doubts = DOUBT * 1.1**attempt * self.generator.standard_normal(self.env.n_steps)
            policy = optimum(self.env, np.exp(doubts))
            if key(policy) not in self.met:
                break
        self.met.add(key(policy))
        notes = {"predicted": predicted(self.env, policy)}
        return Proposal(self.env.actions(policy), notes=notes)

    @classmethod
    def episodes_for(cls, seconds: float, layers: int) -> int:
        """Return 1: the first episode is the answer."""
        return 1


Key = tuple[tuple[str, Bits], ...]


def key(policy: Policy) -> Key:
    """Return something hashable that is equal for equal policies."""
    return tuple(sorted(policy.items()))


def optimum(env: QuantizationEnv, factors: Sequence[float] | Array) -> dict[str, Bits]:
    """Return the policy with the least sum of sensitivities, each times a factor.

    Args:
        env: With sensitivities and budgets.
        factors: One for each of its decisions, positive.

    Raises:
        BudgetError: No policy keeps the budgets.
    """
    policy = solve(corrected_goal(env, factors), env.table, env.budgets)
    # Where the solver sees none, fit says what the cheapest one costs.
    return policy or fit(uniform_policy(env.table, 2), env.table, env.budgets)


def corrected_goal(env: QuantizationEnv, factors: Sequence[float] | Array) -> dict[str, Array]:
    """Return the sensitivities, each times the factor of its decision, for ``budgets.solve``."""
    times = dict(zip(env.decisions, factors, strict=True))
    goal = {}
    for name, parts in sensitivity_parts(env).items():
        goal[name] = sum(
            (times.get(Decision(name, what), 1.0) * part for what, part in parts.items()),
            np.zeros(len(parts["weights"])),
        )
    return goal


_PARTS: WeakKeyDictionary[QuantizationEnv, tuple[object, dict[str, dict[What, Array]]]]
_PARTS = WeakKeyDictionary()


def sensitivity_parts(env: QuantizationEnv) -> dict[str, dict[What, Array]]:
    """Return ``parts_of`` of every layer, worked out once for an environment."""
    assert env.sensitivity is not None
    known, parts = _PARTS.get(env, (None, {}))
    if known is not env.sensitivity:
        parts = {
            name: parts_of(env.table.choices[name], values)
            for name, values in env.sensitivity.items()
        }
        _PARTS[env] = env.sensitivity, parts
    return parts


def parts_of(choices: Sequence[Bits], values: Array) -> dict[What, Array]:
    """Return the parts of each choice's value that are due to channels, weights, activations."""
    channels = _least(choices, values, lambda bits: bits.keep) - values.min()
    weights = _least(choices, values, lambda bits: bits.scheme)
    return {
        "channels": channels, "weights": weights, "activations": values - weights - channels,
    }  # fmt: skip


def _least(choices: Sequence[Bits], values: Array, by: Callable[[Bits], object]) -> Array:
    """Return for each choice the least value of those that are equal to it in one thing."""
    least: dict[object, float] = {}
    for bits, value in zip(choices, values, strict=True):
        least[by(bits)] = min(value, least.get(by(bits), np.inf))
    return np.array([least[by(bits)] for bits in choices])


def predicted(env: QuantizationEnv, policy: Policy) -> float:
    """Return the sum of the sensitivities of a policy's choices."""
    assert env.sensitivity is not None
    return sum(
        float(env.sensitivity[name][env.table.positions[name][bits]])
        for name, bits in policy.items()
    )
