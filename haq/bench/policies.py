"""Policies that tell how a network answers to bits: drawn at random, near optima, one move away.

A benchmark evaluates them; a surrogate is fitted on them. All follow from one seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from haq.allocation.budgets import Budget, fit, solve_nearly
from haq.allocation.choices import share_activations
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits, Policy, readers
from haq.allocation.schemes import SEARCHED

Objective = Mapping[str, NDArray[Any]]

DOUBTS = (0.25, 0.5, 1.0)
"""Standard deviations of the logarithms of the factors by which sensitivities are doubted."""

TRIES = 10
"""How often doubts are drawn for each optimum that is wanted: many give the same one."""


class Setting(NamedTuple):
    """Within which budget a search goes on.

    Attributes:
        name: As it stands in tables.
        table: What the choices cost, and which there are.
        budgets: All are kept.
        objective: Layer to what each of its choices does to the network, for ``solve``.
    """

    name: str
    table: CostTable
    budgets: tuple[Budget, ...]
    objective: Objective


class Drawn(NamedTuple):
    """A policy, and how it was drawn: a family, and the name of a setting or ""."""

    family: str
    setting: str
    policy: Policy


class Counts(NamedTuple):
    """How many policies of each family are drawn, of the last three for each setting."""

    levels: int = 450
    moves: int = 150
    budget: int = 70
    doubted: int = 30
    moved: int = 80


COUNTS = Counts()
"""Some two thousand policies under eight budgets."""


def drawn(
    table: CostTable, settings: Sequence[Setting], seed: int, counts: Counts = COUNTS
) -> list[Drawn]:
    """Return the policies of a benchmark, each once, the same for the same seed.

    - "uniform": every pair of widths, of weights and of activations.
    - "levels": bits around a level that differs from policy to policy, half of them with 4-bit
      activations.
    - "moves": one decision differs from 8 bits everywhere.
    - "budget": random bits within a budget, as random search plays them.
    - "doubted": best by sensitivities that are doubted, within a budget.
    - "moved": some moves of a bit away from the best by the sensitivities, mostly within it.

    Args:
        table: With all choices, costs do not matter.
        settings: The budgets that matter.
        seed: Decides all that is random.
        counts: How many of each.
    """
    generator = np.random.default_rng(seed)
    policies = [
        *_uniform(table),
        *(_level(table, generator, number) for number in range(counts.levels)),
        *_single_moves(table, generator, counts.moves),
    ]
    for setting in settings:
        policies += _within(setting, generator, counts)
    seen: dict[tuple[Bits, ...], Drawn] = {}
    for one in policies:
        seen.setdefault(tuple(one.policy[layer.name] for layer in table.layers), one)
    return list(seen.values())


def assembled(
    table: CostTable, weights: Mapping[str, float], acts: Mapping[str, float]
) -> dict[str, Bits]:
    """Return the policy that comes nearest to some widths, with what layers share.

    Args:
        table: Its choices count.
        weights: Layer to the bits of its weights.
        acts: Layer to the bits of what it reads; of layers that read one tensor the first counts.
    """
    choices = share_activations(table.layers, table.choices)
    policy = {}
    for name, group in readers(table.layers).items():
        act = _nearest({bits.act for bits in choices[group[0]]}, acts[group[0]])
        offered = {bits.weight for bits in choices[name] if bits.act == act}
        policy[name] = Bits(_nearest(offered, weights[name]), act)
    return policy


def _nearest(offered: set[int], wanted: float) -> int:
    return min(offered, key=lambda bits: (abs(bits - wanted), bits))


def _uniform(table: CostTable) -> Iterator[Drawn]:
    names = [layer.name for layer in table.layers]
    for weight in SEARCHED:
        for act in SEARCHED:
            policy = assembled(table, dict.fromkeys(names, weight), dict.fromkeys(names, act))
            yield Drawn("uniform", "", policy)


def _level(table: CostTable, generator: Generator, number: int) -> Drawn:
    names = [layer.name for layer in table.layers]
    levels, spread = generator.uniform(1.5, 8.0, 2), generator.uniform(0.5, 2.5)
    weights = levels[0] + spread * generator.standard_normal(len(names))
    acts = levels[1] + spread * generator.standard_normal(len(names))
    if number % 2:
        acts = np.full(len(names), 4.0)
    both = [dict(zip(names, np.clip(bits, 2, 8), strict=True)) for bits in (weights, acts)]
    return Drawn("levels", "", assembled(table, *both))


def _single_moves(table: CostTable, generator: Generator, count: int) -> list[Drawn]:
    names = [layer.name for layer in table.layers]
    highest = assembled(table, dict.fromkeys(names, 8), dict.fromkeys(names, 8))
    every = list(moves(table, highest, range(-6, 0)))
    chosen = generator.permutation(len(every))[:count]
    return [Drawn("moves", "", every[at]) for at in np.sort(chosen)]


def moves(table: CostTable, policy: Policy, steps: Sequence[int]) -> Iterator[dict[str, Bits]]:
    """Yield every policy that differs in one decision by one of some numbers of bits."""
    choices = share_activations(table.layers, table.choices)
    for name, group in readers(table.layers).items():
        for step in steps:
            weight = Bits(policy[name].weight + step, policy[name].act)
            if weight in choices[name]:
                yield {**policy, name: weight}
            act = policy[name].act + step
            moved = {reader: policy[reader].with_act(act) for reader in group}
            if name == group[0] and all(moved[reader] in choices[reader] for reader in group):
                yield {**policy, **moved}


def _within(setting: Setting, generator: Generator, counts: Counts) -> Iterator[Drawn]:
    table, budgets = setting.table, setting.budgets
    names = [layer.name for layer in table.layers]
    for _ in range(counts.budget):
        widths = generator.uniform(1.5, 8.5, (2, len(names)))
        both = [dict(zip(names, bits, strict=True)) for bits in widths]
        yield Drawn("budget", setting.name, fit(assembled(table, *both), table, budgets))
    optima = _optima(setting, generator, counts.doubted)
    yield from (Drawn("doubted", setting.name, policy) for policy in optima)
    for number in range(counts.moved):
        policy = optima[0]
        for _ in range(1 + number % 6):
            every = list(moves(table, policy, (-1, 1)))
            policy = every[generator.integers(len(every))]
        yield Drawn("moved", setting.name, policy)


def _optima(setting: Setting, generator: Generator, count: int) -> list[dict[str, Bits]]:
    """Return the best policy by the sensitivities, and others that are best where these err."""
    optima = [_optimum(setting, setting.objective)]
    for number in range(TRIES * count):
        if len(optima) == count:
            break
        doubt = DOUBTS[number % len(DOUBTS)]
        factors = {
            layer.name: np.exp(doubt * generator.standard_normal())
            for layer in setting.table.layers
        }
        doubted = {name: values * factors[name] for name, values in setting.objective.items()}
        policy = _optimum(setting, doubted)
        if policy not in optima:
            optima.append(policy)
    return optima


def _optimum(setting: Setting, objective: Objective) -> dict[str, Bits]:
    policy = solve_nearly(objective, setting.table, setting.budgets)
    assert policy is not None, setting.name
    return policy
