"""Uniform policies: the same bits everywhere, what anybody would try first."""

import math
from collections.abc import Sequence

from haq.allocation.budgets.enforce import fit
from haq.allocation.budgets.limit import Budget, all_within, spent
from haq.allocation.choices import share_activations
from haq.allocation.costs import CostTable
from haq.allocation.policy import FLOAT, Bits, readers
from haq.allocation.schemes import SEARCHED


def uniform_policy(table: CostTable, width: int) -> dict[str, Bits]:
    """Return the policy that has ``width`` bits wherever the table offers them.

    Where it does not, because a layer is pinned, the activations are fixed or the target has fewer
    widths, a layer takes the most bits offered below ``width``, or else the fewest offered: first
    of its activations, together with all layers that read the same tensor, then of its weights.

    Args:
        table: Its choices count, its costs do not.
        width: Bits of weights and of activations.
    """
    choices = share_activations(table.layers, table.choices)
    policy: dict[str, Bits] = {}
    for name, group in readers(table.layers).items():
        act = _nearest({bits.act for bits in choices[group[0]]}, width)
        weight = _nearest({bits.weight for bits in choices[name] if bits.act == act}, width)
        policy[name] = _plainest(choices[name], weight, act)
    return {layer.name: policy[layer.name] for layer in table.layers}


def _nearest(offered: set[int], width: int) -> int:
    return max((bits for bits in offered if bits <= width), default=min(offered))


def _plainest(choices: Sequence[Bits], weight: int, act: int) -> Bits:
    """Return the choice of a pair of bits; of several formats the one that rounds the least.

    All channels stay.
    """
    able = [bits for bits in choices if (bits.weight, bits.act) == (weight, act)]
    return min(
        able,
        key=lambda bits: (-bits.keep, bits.dynamic != "", bits.block or math.inf, bits.dynamic),
    )


def most_bits(table: CostTable) -> dict[str, Bits]:
    """Return the policy of the most bits that every layer can have, float where it may stay so."""
    return uniform_policy(table, FLOAT)


def uniform_widths(table: CostTable) -> dict[int, dict[str, Bits]]:
    """Return the distinct uniform policies of 2 to 8 bits, by width, the least bits first.

    Of widths that give the same policy, the least stands for all.
    """
    policies: dict[int, dict[str, Bits]] = {}
    for width in SEARCHED:
        policy = uniform_policy(table, width)
        if policy not in policies.values():
            policies[width] = policy
    return policies


def uniform_references(table: CostTable, budgets: Sequence[Budget]) -> list[dict[str, Bits]]:
    """Return what anybody would try first within the budgets, at most two policies.

    The uniform policy of most bits that keeps them, and that of the next more bits, lowered in some
    layers until it does; the latter alone where no uniform bits keep them.

    Raises:
        BudgetError: No policy keeps them.
    """
    policies = list(uniform_widths(table).values())
    fitting = [at for at, policy in enumerate(policies)
               if all_within(spent(table, policy, budgets), budgets)]  # fmt: skip
    best = max(fitting, default=-1)
    known = [policies[best]] if fitting else []
    if best + 1 < len(policies):
        lowered = fit(policies[best + 1], table, budgets)
        known += [lowered] if lowered not in known else []
    return known


def uniform_within(table: CostTable, budgets: Sequence[Budget]) -> dict[str, Bits] | None:
    """Return the uniform policy of most bits that keeps every budget as it is, or None.

    This is what a search must beat: "the best uniform width within the same budget".

    Args:
        table: What the choices cost.
        budgets: All are kept, to within 1e-9 of each limit.

    Raises:
        HaqError: The table has no such quantity.

    >>> from haq.allocation.choices import permitted
    >>> from haq.allocation.costs import tabulate
    >>> from haq.network.layers import Layer
    >>> layers = [Layer("a", "conv", 1, 1, weights=90), Layer("b", "conv", 1, 1, weights=10)]
    >>> table = tabulate(layers, permitted(layers, None, act_bits=8))
    >>> uniform_within(table, [Budget("avg_weight_bits", 3.9)])
    {'a': Bits(weight=3, act=8), 'b': Bits(weight=3, act=8)}
    """
    for policy in reversed(uniform_widths(table).values()):
        if all_within(spent(table, policy, budgets), budgets):
            return policy
    return None
