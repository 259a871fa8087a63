"""Budgets: reading them, and making a policy keep them.

``fit`` lowers a policy step by step, as the paper does, and falls back on an exact integer program
where that gets stuck; so "no policy fits" is said only when it is true.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from haq.allocation.costs import UNITS, CostTable, Edge, Target, reference, share_activations, total
from haq.allocation.policy import FLOAT, Bits, Policy, check_policy, readers
from haq.errors import BudgetError, HaqError, TargetError, look_up
from haq.network.layers import Layer

_TOLERANCE = 1e-9  # of the limit: a budget equal to a policy's own cost fits it
_INFEASIBLE = 2  # of scipy's milp
_FORMS = (
    "write it like size=90kB, avg_weight_bits=3, bops=1.2G, latency=5ms or energy=3mJ, "
    "or as a share of a reference: latency=50%w8a8, size=12.5%fp32"
)
_NUMBER = re.compile(
    r"\s*([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf))\s*(.*?)\s*", re.IGNORECASE
)
_REFERENCE = re.compile(r"w([1-8])a([1-8])")
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2}
_COUNTS = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PARTS = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_SI = {"latency": "s", "energy": "J"}


@dataclass(frozen=True)
class Budget:
    """An upper limit on one quantity of a cost table, in the table's unit.

    Raises:
        BudgetError: The limit is not a positive, finite number.
    """

    quantity: str
    limit: float

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise BudgetError(
                f"budget {self.quantity}={self.limit:g}: the limit must be positive and finite"
            )


def parse_budget(text: str, layers: Sequence[Layer], target: Target | None) -> Budget:
    """Return the budget that a text such as "size=90kB" or "latency=50%w8a8" asks for.

    A bare number is in the unit of the table. A share is of what the whole network costs with
    every layer at the reference's bits.

    Args:
        text: The quantity, "=", and a number with a unit or with "%" and a reference.
        layers: All of them, for the reference.
        target: Needed for latency and energy; both are for its batch.

    Raises:
        BudgetError: The text cannot be read, needs a target, or names a reference that the target
            cannot run.
    """
    quantity, equals, amount = (part.strip() for part in text.partition("="))
    match = _NUMBER.fullmatch(amount)
    if not equals or not match:
        raise BudgetError(f"cannot read budget {text!r}: {_FORMS}")
    _check_quantity(text, quantity, target)
    number, unit = float(match[1]), match[2]
    if unit.startswith("%"):
        share = _reference_bits(text, unit[1:].strip())
        return Budget(quantity, number / 100 * _reference(text, layers, target, quantity, share))
    factors = _factors(quantity, target)
    if unit not in factors:
        raise BudgetError(_unknown_unit(text, unit, factors))
    return Budget(quantity, number * factors[unit])


def _check_quantity(text: str, quantity: str, target: Target | None) -> None:
    if quantity in _SI and target is None:
        raise BudgetError(f"budget {text!r} needs hardware to count on: name it with --target")
    if quantity in _SI and target and quantity not in target.units:
        raise BudgetError(
            f"budget {text!r}: {target.name} knows no {quantity}, only {', '.join(target.units)}"
        )
    try:
        look_up({**UNITS, **(target.units if target else {})}, "budget", quantity)
    except HaqError as error:
        raise BudgetError(str(error)) from None


def _reference_bits(text: str, name: str) -> Bits:
    match = _REFERENCE.fullmatch(name)
    if match:
        return Bits(int(match[1]), int(match[2]))
    if name == "fp32":
        return Bits(FLOAT, FLOAT)
    raise BudgetError(
        f"budget {text!r} is a share of {name or 'nothing'!r}: "
        "name a reference such as 50%w8a8 (1 to 8 bits each) or 12.5%fp32"
    )


def _reference(
    text: str, layers: Sequence[Layer], target: Target | None, quantity: str, bits: Bits
) -> float:
    try:
        return reference(layers, target, quantity, bits)
    except TargetError as error:
        raise BudgetError(
            f"budget {text!r}: {error}; take a reference it can run, or an absolute limit"
        ) from error


def _factors(quantity: str, target: Target | None) -> dict[str, float]:
    if quantity == "size":
        return {"": 1.0, **_BYTES}
    if quantity == "bops":
        return {"": 1.0, **_COUNTS}
    units = {**UNITS, **(target.units if target else {})}
    own = {"": 1.0, units[quantity]: 1.0}
    if target and quantity in _SI and quantity in target.si:
        symbol, si = _SI[quantity], target.si[quantity]
        own |= {prefix + symbol: part / si for prefix, part in _PARTS.items()}
    return own


def _unknown_unit(text: str, unit: str, factors: Mapping[str, float]) -> str:
    known = [name for name in factors if name]
    units = f" or one of {', '.join(known)}" if known else ""
    return f"budget {text!r}: unknown unit {unit!r}; give a bare number{units} ({_FORMS})"


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
    check_policy(policy, table.layers)
    current = {layer.name: policy[layer.name] for layer in table.layers}
    groups = readers(table.layers)
    costs = _spent(table, current, budgets)
    while not _all_kept(costs, budgets):
        before = dict(current)
        for layer in reversed(table.layers):
            current = _lowered(current, table, budgets, layer.name, groups[layer.name])
            costs = _spent(table, current, budgets)
            if _all_kept(costs, budgets):
                return current
        if current == before:
            return _nearest(policy, table, budgets)
    return current


def _kept(cost: float, budget: Budget) -> bool:
    return cost <= budget.limit * (1 + _TOLERANCE)


def _all_kept(costs: Sequence[float], budgets: Sequence[Budget]) -> bool:
    return all(map(_kept, costs, budgets))


def _spent(table: CostTable, policy: Policy, budgets: Sequence[Budget]) -> list[float]:
    return [total(table, policy, budget.quantity) for budget in budgets]


def _lowered(
    policy: dict[str, Bits],
    table: CostTable,
    budgets: Sequence[Budget],
    name: str,
    group: tuple[str, ...],
) -> dict[str, Bits]:
    costs = _spent(table, policy, budgets)
    broken = [_kept(cost, budget) for cost, budget in zip(costs, budgets, strict=True)].index(False)
    for moved in _cheaper(policy, table, budgets[broken].quantity, name, group):
        after = _spent(table, moved, budgets)
        keeps = all(
            _kept(new, budget) or not _kept(old, budget)
            for new, old, budget in zip(after, costs, budgets, strict=True)
        )
        # The sum over the whole network must fall too, so that no rounding can go in a circle.
        if keeps and after[broken] < costs[broken]:
            return moved
    return policy


def _cheaper(
    policy: dict[str, Bits],
    table: CostTable,
    quantity: str,
    name: str,
    group: tuple[str, ...],
) -> Iterator[dict[str, Bits]]:
    """Give the policies with another choice for the layer that cost less, nearest cost first.

    Those that raise neither of its bit-widths come before the others, and those for which more
    bits cost less come last of either. At equal cost the activations go down before the weights, as
    in the original implementation.
    """
    now = policy[name]
    edges = [edge for edge in table.edges if {edge.producer, edge.consumer} & set(group)]
    near = {*group, *(end for edge in edges for end in (edge.producer, edge.consumer))}
    around = {other: policy[other] for other in near}
    limit = _local(around, table, quantity, group, edges)
    found: list[tuple[float, Bits, dict[str, Bits]]] = []
    for bits in table.choices[name]:
        moves = _together(policy, table, name, bits, group)
        cost = _local({**around, **moves}, table, quantity, group, edges)
        if moves and cost < limit:
            found.append((cost, bits, moves))
    in_vain = _in_vain([cost for cost, _, _ in found], [bits for _, bits, _ in found])
    ordered = []
    for (cost, bits, moves), vain in zip(found, in_vain, strict=True):
        raises = bits.weight > now.weight or bits.act > now.act
        order = (raises, vain, -cost, bits.act >= now.act, -sum(bits), -bits.weight)
        ordered.append((order, moves))
    for _, moves in sorted(ordered, key=lambda item: item[0]):
        yield {**policy, **moves}


def _in_vain(costs: Sequence[float], choices: Sequence[Bits]) -> list[bool]:
    """Return for each choice whether one with at least its bits costs less."""
    cost, bits = np.array(costs), np.array(choices).reshape(-1, 2)
    more: NDArray[np.bool_] = np.all(bits[:, None] <= bits[None], axis=2)
    return [bool(vain) for vain in np.any(more & (cost[None] < cost[:, None]), axis=1).tolist()]


def _together(
    policy: Policy, table: CostTable, name: str, bits: Bits, group: tuple[str, ...]
) -> dict[str, Bits]:
    """Return the bits of the whole group after the move; nothing if some layer cannot follow.

    A reader keeps its weights' bits; to and from float it goes along with the layer that moves.
    """
    crosses = FLOAT in (bits.act, policy[name].act) and bits.act != policy[name].act
    moves = {
        reader: bits if crosses else Bits(policy[reader].weight, bits.act) for reader in group
    } | {name: bits}
    able = all(pair in table.positions[reader] for reader, pair in moves.items())
    return moves if able else {}


def _local(
    policy: Policy,
    table: CostTable,
    quantity: str,
    group: tuple[str, ...],
    edges: Sequence[Edge],
) -> float:
    """Return the part of the cost that changes with the bits of the group."""
    at = table.positions
    costs = [float(table.rows[quantity][name][at[name][policy[name]]]) for name in group]
    for edge in edges:
        if quantity in edge.cost:
            place = (
                at[edge.producer][policy[edge.producer]],
                at[edge.consumer][policy[edge.consumer]],
            )
            costs.append(float(edge.cost[quantity][place]))
    return math.fsum(costs)


def _nearest(policy: Policy, table: CostTable, budgets: Sequence[Budget]) -> dict[str, Bits]:
    far = {
        name: np.array([_distance(bits, policy[name]) for bits in choices], np.float64)
        for name, choices in table.choices.items()
    }
    nearest = solve(far, table, budgets)
    if nearest is not None:
        return nearest
    # The solver works to a tolerance of its own; at the very limit the cheapest decides.
    least = [_cheapest_policy(table, budget.quantity) for budget in budgets]
    for found in least:
        if _all_kept(_spent(table, found, budgets), budgets):
            return found
    costs = [total(table, found, b.quantity) for found, b in zip(least, budgets, strict=True)]
    raise BudgetError(_impossible(table, budgets, costs))


def _distance(one: Bits, other: Bits) -> int:
    # Float stands next to 8 bits: that is what a network feels of it.
    return sum(abs(min(a, 9) - min(b, 9)) for a, b in zip(one, other, strict=True))


def _impossible(table: CostTable, budgets: Sequence[Budget], least: Sequence[float]) -> str:
    for budget, cost in zip(budgets, least, strict=True):
        if not _kept(cost, budget):
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


def cheapest(table: CostTable, quantity: str) -> float:
    """Return the least that any policy can cost, in the table's unit.

    Raises:
        HaqError: The table has no such quantity, or its layers cannot share activation widths.
    """
    return total(table, _cheapest_policy(table, quantity), quantity)


def _cheapest_policy(table: CostTable, quantity: str) -> dict[str, Bits]:
    rows = look_up(table.rows, "quantity", quantity)
    choices = share_activations(table.layers, table.choices)
    if any(quantity in edge.cost for edge in table.edges):
        links = _links(table, [quantity])
        found = _minimum(table, _vector(table, rows, links, quantity), links, ())
        assert found is not None  # without budgets, any choice of shared widths will do
        return found
    cost = {name: dict(zip(table.choices[name], rows[name], strict=True)) for name in rows}
    best: dict[str, Bits] = {}
    for group in dict.fromkeys(readers(table.layers).values()):
        picks: list[dict[str, Bits]] = [
            {name: min(_at(choices[name], act), key=cost[name].__getitem__) for name in group}
            for act in sorted({bits.act for bits in choices[group[0]]})
        ]
        sums = [math.fsum(cost[name][bits] for name, bits in pick.items()) for pick in picks]
        best |= picks[sums.index(min(sums))]
    return {layer.name: best[layer.name] for layer in table.layers}


def _at(choices: Sequence[Bits], act: int) -> list[Bits]:
    return [bits for bits in choices if bits.act == act]


def solve(
    objective: Mapping[str, NDArray[np.float64]], table: CostTable, budgets: Sequence[Budget]
) -> dict[str, Bits] | None:
    """Return the policy with the least sum of ``objective`` that keeps the budgets.

    An integer program: one variable per choice of each layer (one of them is 1), and for each edge
    one per pair of choices, whose sums along either end equal that end's variables. Choices that
    cost the same on an edge share its variables. Layers that read the same tensor get the same
    activation bits.

    Args:
        objective: Layer to the value of each of its choices, in the table's order; finite.
        table: What the choices cost.
        budgets: All are kept, to within 1e-9 of each limit.

    Returns:
        The best policy, to about 1e-9 of the largest objective; None where no policy keeps the
        budgets.

    Raises:
        HaqError: The table has no such quantity, or the solver gave up.

    >>> layer = Layer("fc", "linear", c_in=1, c_out=1)
    >>> rows = {"latency": {"fc": np.array([1.0, 4.0])}}
    >>> table = CostTable((layer,), {"fc": (Bits(2, 2), Bits(4, 4))}, rows, {"latency": "ms"})
    >>> solve({"fc": np.array([0.9, 0.1])}, table, [Budget("latency", 3.0)])
    {'fc': Bits(weight=2, act=2)}
    """
    for budget in budgets:
        look_up(table.rows, "quantity", budget.quantity)
    links = _links(table, [budget.quantity for budget in budgets])
    return _minimum(table, _vector(table, objective, links, None), links, budgets)


class _Link(NamedTuple):
    """An edge by classes: choices of an end that cost the same on the edge are one class.

    On a runtime there are few, such as float and quantized; the pairs of all choices of both ends
    would be thousands.
    """

    producer: str
    consumer: str
    of_producer: NDArray[np.int64]  # class of each choice
    of_consumer: NDArray[np.int64]
    cost: Mapping[str, NDArray[np.float64]]  # (classes of the producer, of the consumer)

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.of_producer.max()) + 1, int(self.of_consumer.max()) + 1


def _links(table: CostTable, quantities: Sequence[str]) -> list[_Link]:
    edges = [edge for edge in table.edges if any(known in edge.cost for known in quantities)]
    return [_link(edge) for edge in edges]


def _link(edge: Edge) -> _Link:
    costs = np.stack(list(edge.cost.values()))  # (quantities, producer's, consumer's)
    _, rows, of_producer = np.unique(costs, axis=1, return_index=True, return_inverse=True)
    _, columns, of_consumer = np.unique(costs, axis=2, return_index=True, return_inverse=True)
    classes = {quantity: cost[np.ix_(rows, columns)] for quantity, cost in edge.cost.items()}
    return _Link(edge.producer, edge.consumer, of_producer.ravel(), of_consumer.ravel(), classes)


def _vector(
    table: CostTable,
    rows: Mapping[str, NDArray[np.float64]],
    links: Sequence[_Link],
    quantity: str | None,
) -> NDArray[np.float64]:
    """Lay the values of all choices, then of all pairs of classes on edges, end to end."""
    parts = [rows[layer.name] for layer in table.layers]
    for link in links:
        known = quantity is not None and quantity in link.cost
        parts.append(
            link.cost[quantity or ""].ravel() if known else np.zeros(math.prod(link.shape))
        )
    return np.concatenate(parts).astype(np.float64)


class _Row(NamedTuple):
    """One linear constraint: low <= sum of values times variables <= high."""

    columns: Sequence[int] | NDArray[np.int64]
    values: Sequence[float] | NDArray[np.float64]
    low: float
    high: float


def _minimum(
    table: CostTable,
    goal: NDArray[np.float64],
    links: Sequence[_Link],
    budgets: Sequence[Budget],
) -> dict[str, Bits] | None:
    counts = [len(table.choices[layer.name]) for layer in table.layers]
    ends = np.cumsum(counts)
    columns = {
        layer.name: np.arange(end - count, end)
        for layer, end, count in zip(table.layers, ends, counts, strict=True)
    }
    rows = [_Row(place, np.ones(len(place)), 1, 1) for place in columns.values()]
    rows += _sharing(table, columns)
    rows += _products(columns, links)
    rows += [_budget_row(table, links, budget) for budget in budgets]
    whole = np.arange(len(goal)) < ends[-1]  # products of whole variables are whole by themselves
    while True:
        x = _solved(goal, rows, whole)
        if x is None:
            return None
        ones = {name: int(place[x[place].argmax()]) for name, place in columns.items()}
        found = {name: table.choices[name][at - columns[name][0]] for name, at in ones.items()}
        if _all_kept(_spent(table, found, budgets), budgets):
            return found
        # Over a limit by less than the solver sees: forbid just this policy and ask again.
        rows.append(_Row(list(ones.values()), np.ones(len(ones)), -np.inf, len(ones) - 1))


def _sharing(table: CostTable, columns: Mapping[str, NDArray[np.int64]]) -> Iterator[_Row]:
    for name, (first, *_) in readers(table.layers).items():
        if name == first:
            continue
        mine, theirs = table.choices[name], table.choices[first]
        for act in {bits.act for bits in (*mine, *theirs)}:
            plus = columns[name][[bits.act == act for bits in mine]]
            minus = columns[first][[bits.act == act for bits in theirs]]
            signs = np.repeat([1.0, -1.0], [len(plus), len(minus)])
            yield _Row(np.concatenate([plus, minus]), signs, 0, 0)


def _products(columns: Mapping[str, NDArray[np.int64]], links: Sequence[_Link]) -> Iterator[_Row]:
    start = sum(map(len, columns.values()))
    for link in links:
        pairs = start + np.arange(math.prod(link.shape)).reshape(link.shape)
        start += pairs.size
        ends = (
            (columns[link.producer], link.of_producer, pairs),
            (columns[link.consumer], link.of_consumer, pairs.T),
        )
        for choices, classes, sides in ends:
            for number, side in enumerate(sides):
                mine = choices[classes == number]
                signs = np.repeat([1.0, -1.0], [len(side), len(mine)])
                yield _Row(np.concatenate([side, mine]), signs, 0, 0)


def _budget_row(table: CostTable, links: Sequence[_Link], budget: Budget) -> _Row:
    # In thousandths of the limit, so that the solver's tolerance of 1e-6 is the budgets' 1e-9. A
    # choice far above the limit is out anyway; its true cost would only spoil the scale.
    unit = budget.limit / 1e3
    costs = _vector(table, table.rows[budget.quantity], links, budget.quantity) / unit
    left = (budget.limit - table.fixed.get(budget.quantity, 0.0)) / unit
    return _Row(np.arange(len(costs)), np.clip(costs, -1e7, 1e7), -np.inf, left)


def _solved(
    goal: NDArray[np.float64], rows: Sequence[_Row], whole: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    lengths = [len(row.columns) for row in rows]
    matrix = csr_array(
        (
            np.concatenate([row.values for row in rows]),
            np.concatenate([row.columns for row in rows]),
            np.concatenate([[0], np.cumsum(lengths)]),
        ),
        shape=(len(rows), len(goal)),
    )
    limits = LinearConstraint(matrix, [row.low for row in rows], [row.high for row in rows])
    result = milp(
        goal * (1e3 / max(np.abs(goal).max(), 1e-300)),
        integrality=whole.astype(int),
        bounds=Bounds(0, 1),
        constraints=limits,
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None and result.status != _INFEASIBLE:
        raise HaqError(f"the integer program for the budgets was not solved: {result.message}")
    return None if result.x is None else np.asarray(result.x)
