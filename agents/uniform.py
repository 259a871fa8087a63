"""The same bits everywhere: the policies anybody would try first, and what a search must beat."""

from collections.abc import Mapping

import gymnasium as gym

from haq.agents.base import Agent, Array, Proposal
from haq.allocation.budgets import fit
from haq.allocation.budgets.uniform import uniform_widths
from haq.allocation.policy import Bits
from haq.envs.quantization import QuantizationEnv

EPISODES = 2
"""Those that matter: the best uniform width within the budgets, and the next one lowered to fit."""


class Uniform(Agent):
    """The best uniform width that keeps the budgets, the next one lowered, then fewer bits.

    Where no uniform width keeps them, the fewest bits are lowered until they do. After the fewest
    bits it starts again. The notes hold the "width".

    Args:
        env: A ``QuantizationEnv``, or a wrapper of one.
        episodes: How many will be played.
        seed: Changes nothing.

    Raises:
        BudgetError: No policy keeps the budgets.
    """

    references = EPISODES

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.policies = list(candidates(self.env).items())

    def propose(self, number: int) -> Proposal:
        """Return the next policy of the list."""
        width, policy = self.policies[number % len(self.policies)]
        return Proposal(self.env.actions(policy), notes={"width": float(width)})

    @classmethod
    def episodes_for(cls, seconds: float, layers: int) -> int:
        """Return 2: the best uniform width, and the next one lowered to fit."""
        return EPISODES


def candidates(env: QuantizationEnv) -> Mapping[int, dict[str, Bits]]:
    """Return, by width, the uniform policies in the order in which they are played."""
    policies = uniform_widths(env.table)
    fitting = [width for width, policy in policies.items() if env.keeps_budgets(policy)]
    if not fitting:
        least = min(policies)
        return {least: fit(policies[least], env.table, env.budgets)}
    best = max(fitting)
    order = {best: policies[best]}
    above = min((width for width in policies if width > best), default=None)
    if above is not None:
        order[above] = fit(policies[above], env.table, env.budgets)
    return order | {width: policies[width] for width in reversed(fitting)}
