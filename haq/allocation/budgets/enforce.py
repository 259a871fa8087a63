"""Making a policy keep its budgets.

``fit`` lowers a policy step by step, as the paper does, and falls back on an exact integer program
where that gets stuck; so "no policy fits" is said only when it is true.
"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.budgets.integer_program import cheapest_policy, solve
from haq.allocation.budgets.limit import Budget, all_within, spent, within
from haq.allocation.costs import CostTable, Edge, total
from haq.allocation.policy import FLOAT, Bits, Policy, check_policy, readers
from haq.errors import BudgetError

_EXPONENT = 1074
"""Every float is a whole multiple of 2**-1074."""


def fit(policy: Policy, table: CostTable, budgets: Sequence[Budget]) -> dict[str, Bits]:
    """Return the policy, lowered until it keeps every budget.

    Sweeps from the last layer to the first and moves each one step down, as the paper does, until
    everything fits. A step goes to the next cheaper choice of the layer, by the first budget that
    is broken: what is cheaper is read off the table, since on a measured target fewer bits can
    cost more. Layers that read the same tensor change their activations together, and are float
    together. No step breaks a budget that is kept. Where a whole sweep moves nothing, the nearest
    policy that fits is taken (the sum over the layers of the changes in bits, float counting as 9).

    Args:
        policy: Bits among the choices of the table; one that fits comes back unchanged.
        table: What the choices cost.
        budgets: All are kept, to within 1e-9 of each limit.

    Raises:
        BudgetError: No policy fits; the message says what the cheapest one costs.
        PolicyError: The policy does not belong to the table.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
    arXiv:1811.08886, section 3.2.
    """
    return Fitting(table, budgets)(policy)


class Fitting:
    """``fit`` of many policies under the same budgets, which remembers what they have in common.

    Args:
        table: As for ``fit``.
        budgets: As for ``fit``.
    """

    def __init__(self, table: CostTable, budgets: Sequence[Budget]) -> None:
        self.table, self.budgets = table, budgets
        self._steps: _Steps | None = None

    def __call__(self, policy: Policy) -> dict[str, Bits]:
        """Return the policy, lowered until it keeps every budget; see ``fit``."""
        table, budgets = self.table, self.budgets
        check_policy(policy, table.layers)
        current = {layer.name: policy[layer.name] for layer in table.layers}
        if all_within(spent(table, current, budgets), budgets):
            return current
        self._steps = self._steps or _Steps(table, budgets)
        descent = _Descent(self._steps, current)
        while True:
            moved = False
            for layer in reversed(table.layers):
                moved |= descent.lower(layer.name)
                if all_within(descent.costs, budgets):
                    return descent.policy
            if not moved:
                return _nearest(policy, table, budgets)


_Key = tuple[str | bytes, ...]


class _Options(NamedTuple):
    """The choices of a layer that all can follow who read its tensor or share its channels.

    Attributes:
        costs: Of all that a move to each choice changes, in the quantity of the broken budget.
        in_vain: Whether a choice with at least its bits costs less.
        bits: Of the layer.
        moves: The bits of all layers that must move along, the layer itself included.
    """

    costs: list[float]
    in_vain: list[bool]
    bits: list[Bits]
    moves: list[Mapping[str, Bits]]


class _Steps:
    """What all descents under the same budgets have in common.

    Attributes:
        edges: Layer to the edges at any layer that moves along with it.
        rows: Quantity of a budget to the costs of each layer's choices.
        options: Layers' choices, by what their costs depend on.
        ordered: The moves that cost less than what a layer has, by the same and by what it has.
    """

    def __init__(self, table: CostTable, budgets: Sequence[Budget]) -> None:
        self.table, self.budgets = table, budgets
        self.reading = readers(table.layers)
        self.groups = {
            name: tuple(dict.fromkeys([*group, *table.groups[name]]))
            for name, group in self.reading.items()
        }
        self.edges = _edges_of_groups(table, self.groups)
        self.rows = {
            quantity: {name: row.tolist() for name, row in table.rows[quantity].items()}
            for quantity in {budget.quantity for budget in budgets}
        }
        self.options: dict[_Key, _Options] = {}
        self.ordered: dict[tuple[_Key, Bits], list[Mapping[str, Bits]]] = {}


class _Descent:
    """A policy on its way down, with what it costs.

    Sums are kept in whole multiples of 2**-1074, so that adding and taking away is exact and the
    costs are those of ``total`` to the last digit.
    """

    def __init__(self, steps: _Steps, policy: dict[str, Bits]) -> None:
        self.steps, self.policy = steps, policy
        self.table, self.budgets = steps.table, steps.budgets
        self.reading, self.groups, self.edges = steps.reading, steps.groups, steps.edges
        self.rows = steps.rows
        self.sums = [self._sum(budget.quantity) for budget in self.budgets]
        self.costs = [_rounded(cost) for cost in self.sums]

    def _sum(self, quantity: str) -> int:
        everything = list(self.table.choices)
        parts = self._parts(quantity, everything, self.table.edges, self.policy)
        return sum(map(_exact, [*parts, self.table.fixed.get(quantity, 0.0)]))

    def _parts(
        self, quantity: str, names: Sequence[str], edges: Sequence[Edge], policy: Policy
    ) -> list[float]:
        """Return the costs of some layers and edges, one by one."""
        at = self.table.positions
        parts = [self.rows[quantity][name][at[name][policy[name]]] for name in names]
        for edge in edges:
            if quantity in edge.cost:
                ends = edge.producer, edge.consumer
                producer, consumer = (at[name][policy[name]] for name in ends)
                parts.append(float(edge.cost[quantity][producer, consumer]))
        return parts

    def lower(self, name: str) -> bool:
        """Move a layer one step down, by the first budget that is broken, if a step is allowed."""
        broken = [within(*pair) for pair in zip(self.costs, self.budgets, strict=True)].index(False)
        for moves in self._cheaper(name, self.budgets[broken].quantity):
            sums = self._sums_after(name, moves)
            costs = [_rounded(cost) for cost in sums]
            keeps = all(
                within(new, budget) or not within(old, budget)
                for new, old, budget in zip(costs, self.costs, self.budgets, strict=True)
            )
            # The sum over the whole network must fall too, so that rounding cannot go in a circle.
            if keeps and costs[broken] < self.costs[broken]:
                self.policy.update(moves)
                self.sums, self.costs = sums, costs
                return True
        return False

    def _sums_after(self, name: str, moves: Mapping[str, Bits]) -> list[int]:
        group, edges = self.groups[name], self.edges[name]
        after = {**self._near(name), **moves}
        changed = []
        for cost, budget in zip(self.sums, self.budgets, strict=True):
            gone = self._parts(budget.quantity, group, edges, self.policy)
            new = self._parts(budget.quantity, group, edges, after)
            changed.append(cost + sum(map(_exact, new)) - sum(map(_exact, gone)))
        return changed

    def _near(self, name: str) -> dict[str, Bits]:
        """Return the bits of the layers whose costs a move of the layer can change."""
        edges = self.edges[name]
        names = (*self.groups[name], *(end for e in edges for end in (e.producer, e.consumer)))
        return {near: self.policy[near] for near in names}

    def _cheaper(self, name: str, quantity: str) -> Sequence[Mapping[str, Bits]]:
        """Return the moves to another choice of the layer that cost less, nearest cost first.

        Those that raise neither of its bit-widths nor its channels come before the others, and
        those for which more bits cost less come last of either. At equal cost the activations go
        down before the weights, as in the original implementation.
        """
        now, group, edges = self.policy[name], self.groups[name], self.edges[name]
        if len(group) > 1:
            limit = math.fsum(self._parts(quantity, group, edges, self.policy))
            return _ordered(self._options_of_reader(name, quantity), now, limit)
        # What the neighbours have counts only by what it makes of the costs on the edges: on a
        # runtime these are few cases, such as float and quantized.
        columns = [self._column(edge, name, quantity) for edge in edges]
        key: _Key = (name, quantity, *(column.tobytes() for column in columns))
        moves = self.steps.ordered.get((key, now))
        if moves is None:
            options = self._options_of(key, columns)
            limit = options.costs[self.table.positions[name][now]]
            moves = self.steps.ordered[key, now] = _ordered(options, now, limit)
        return moves

    def _options_of(self, key: _Key, columns: Sequence[NDArray[np.float64]]) -> _Options:
        """Return the choices of a layer that nobody moves along with."""
        known = self.steps.options
        if key not in known:
            name, quantity = str(key[0]), str(key[1])
            choices = self.table.choices[name]
            parts = [self.rows[quantity][name], *(column.tolist() for column in columns)]
            costs = list(map(math.fsum, zip(*parts, strict=True)))
            moves: list[Mapping[str, Bits]] = [{name: bits} for bits in choices]
            known[key] = _Options(costs, _in_vain(costs, choices), list(choices), moves)
        return known[key]

    def _column(self, edge: Edge, name: str, quantity: str) -> NDArray[np.float64]:
        """Return what each choice of a layer costs on an edge, the other end being as it is."""
        at = self.table.positions
        if quantity not in edge.cost:
            return np.zeros(len(at[name]))
        if edge.producer == edge.consumer:  # a layer that reads its own output
            return edge.cost[quantity].diagonal()
        ends = (edge.producer, edge.consumer)
        other = tuple(slice(None) if end == name else at[end][self.policy[end]] for end in ends)
        column: NDArray[np.float64] = edge.cost[quantity][other]
        return column

    def _options_of_reader(self, name: str, quantity: str) -> _Options:
        group, edges, near = self.groups[name], self.edges[name], self._near(name)
        options = []
        for bits in self.table.choices[name]:
            moves = _together(self.policy, self.table, name, bits, self.reading[name])
            if moves:
                cost = math.fsum(self._parts(quantity, group, edges, {**near, **moves}))
                options.append((cost, bits, moves))
        costs, choices = [cost for cost, _, _ in options], [bits for _, bits, _ in options]
        return _Options(costs, _in_vain(costs, choices), choices, [m for _, _, m in options])


def _ordered(options: _Options, now: Bits, limit: float) -> list[Mapping[str, Bits]]:
    """Return the moves that cost less than a limit, in the order of ``_Descent._cheaper``."""
    ordered = []
    for cost, in_vain, bits, moves in zip(*options, strict=True):
        if cost < limit:
            raises = bits.weight > now.weight or bits.act > now.act or bits.keep > now.keep
            fewer = (bits.act >= now.act, -bits.weight - bits.act, -bits.weight)
            ordered.append(((raises, in_vain, -cost, *fewer), moves))
    return [moves for _, moves in sorted(ordered, key=itemgetter(0))]


def _edges_of_groups(
    table: CostTable, groups: Mapping[str, tuple[str, ...]]
) -> dict[str, list[Edge]]:
    """Return, for each layer, the edges at any layer that moves along with it."""
    of_layer: dict[str, dict[int, Edge]] = {name: {} for name in groups}
    for place, edge in enumerate(table.edges):
        for name in {*groups[edge.producer], *groups[edge.consumer]}:
            of_layer[name][place] = edge
    return {name: list(edges.values()) for name, edges in of_layer.items()}


def _in_vain(costs: Sequence[float], choices: Sequence[Bits]) -> list[bool]:
    """Return for each choice whether one with at least its bits and channels costs less."""
    cost = np.array(costs)
    # A smaller block is more precise than a larger one, and that than one scale for a channel.
    known = [(b.weight, b.multiplied, 1 / b.block if b.block else 0.0, b.keep) for b in choices]
    precise = np.array(known, np.float64).reshape(-1, 4)
    at_least = (precise[:, None] <= precise).all(axis=2)
    in_vain: NDArray[np.bool_] = np.any(at_least & (cost < cost[:, None]), axis=1)
    return [bool(vain) for vain in in_vain.tolist()]


def _together(
    policy: Policy, table: CostTable, name: str, bits: Bits, reading: tuple[str, ...]
) -> dict[str, Bits]:
    """Return the bits of all that move along, itself included; nothing if some cannot follow.

    A reader keeps its weights' bits; to and from float it goes along with the layer that moves.
    Layers whose channels go together keep the same share of them.
    """
    crosses = FLOAT in (bits.act, policy[name].act) and bits.act != policy[name].act
    moves = {
        reader: bits.with_keep(policy[reader].keep)
        if crosses
        else policy[reader].with_act(bits.act)
        for reader in reading
    }
    for other in table.groups[name]:
        moves[other] = moves.get(other, policy[other]).with_keep(bits.keep)
    moves[name] = bits
    able = all(pair in table.positions[other] for other, pair in moves.items())
    return moves if able else {}


def _exact(cost: float) -> int:
    """Return a finite number in units of 2**-1074."""
    numerator, denominator = float(cost).as_integer_ratio()
    return numerator << (_EXPONENT - denominator.bit_length() + 1)


def _rounded(cost: int) -> float:
    return cost / (1 << _EXPONENT)  # correctly rounded, as math.fsum is


def _nearest(policy: Policy, table: CostTable, budgets: Sequence[Budget]) -> dict[str, Bits]:
    far = {
        name: np.array([_distance(bits, policy[name]) for bits in choices], np.float64)
        for name, choices in table.choices.items()
    }
    nearest = solve(far, table, budgets)
    if nearest is not None:
        return nearest
    # The solver works to a tolerance of its own; at the very limit the cheapest decides.
    least = [cheapest_policy(table, budget.quantity) for budget in budgets]
    for cheap in least:
        if all_within(spent(table, cheap, budgets), budgets):
            return cheap
    costs = [total(table, p, b.quantity) for p, b in zip(least, budgets, strict=True)]
    raise BudgetError(_impossible(table, budgets, costs))


def _distance(one: Bits, other: Bits) -> float:
    # Float stands next to 8 bits: that is what a network feels of it.
    pairs = (one.weight, other.weight), (one.multiplied, other.multiplied)
    apart = sum(abs(min(a, 9) - min(b, 9)) for a, b in pairs) + (one.block != other.block)
    return apart + _ALL_CHANNELS * abs(one.keep - other.keep)


_ALL_CHANNELS = 8
"""Bits that all channels of a layer count as, where the nearest policy is looked for."""


def _impossible(table: CostTable, budgets: Sequence[Budget], least: Sequence[float]) -> str:
    for budget, cost in zip(budgets, least, strict=True):
        fixed = table.fixed.get(budget.quantity, 0.0)
        if not within(fixed, budget):
            unit = table.units[budget.quantity]
            return (
                f"no policy fits {_limit(table, budget)}: what stays float needs {fixed:.10g} "
                f"{unit} whatever bits the layers have, and the cheapest policy {cost:.10g}; raise "
                "the budget to at least that, or make these parts layers that can be quantized"
            )
        if not within(cost, budget):
            return (
                f"no policy fits {_limit(table, budget)}: the cheapest one needs {cost:.10g}; "
                "raise the budget to at least that, or prune first"
            )
    limits = " and ".join(_limit(table, budget) for budget in budgets)
    alone = ", ".join(
        f"{budget.quantity} {cost:.10g}" for budget, cost in zip(budgets, least, strict=True)
    )
    return (
        f"no policy fits {limits} together, though each can be met alone "
        f"(the cheapest ones need {alone}); raise one of them, or prune first"
    )


def _limit(table: CostTable, budget: Budget) -> str:
    return f"{budget.quantity} <= {budget.limit:.10g} {table.units[budget.quantity]}"
