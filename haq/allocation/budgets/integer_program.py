"""The best policy within the budgets, found exactly by integer programming (scipy's HiGHS)."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from haq.allocation.budgets.limit import Budget, all_within, spent
from haq.allocation.choices import share_activations
from haq.allocation.costs import CostTable, Edge, total
from haq.allocation.policy import Bits, readers
from haq.errors import HaqError, look_up

_INFEASIBLE = 2  # of scipy's milp


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

    >>> from haq.network.layers import Layer
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


_DAMAGE = "damage"


def least_cost(
    quantity: str,
    damage: Mapping[str, NDArray[np.float64]],
    most: float,
    table: CostTable,
    budgets: Sequence[Budget],
) -> dict[str, Bits] | None:
    """Return the cheapest policy whose choices add up to a damage of ``most`` at most.

    Args:
        quantity: What it is to cost the least of.
        damage: Layer to that of each of its choices, in the table's order; not negative.
        most: Positive.
        table: What the choices cost.
        budgets: All are kept as well.

    Returns:
        None where no policy keeps all that.

    Raises:
        HaqError: The table has no such quantity, or the solver gave up.
    """
    rows = look_up(table.rows, "quantity", quantity)
    limits = [*budgets, Budget(_DAMAGE, most)]
    known = replace(
        table, rows={**table.rows, _DAMAGE: damage}, units={**table.units, _DAMAGE: "nats"}
    )
    links = _links(known, [quantity, *(budget.quantity for budget in budgets)])
    return _minimum(known, _vector(known, rows, links, quantity), links, limits)


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


class _Constraint(NamedTuple):
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
    rows = [_Constraint(place, np.ones(len(place)), 1, 1) for place in columns.values()]
    rows += _sharing(table, columns)
    rows += _widths(table, columns)
    rows += _products(columns, links)
    rows += [_budget_constraint(table, links, budget) for budget in budgets]
    whole = np.arange(len(goal)) < ends[-1]  # products of whole variables are whole by themselves
    while True:
        x = _solved(goal, rows, whole)
        if x is None:
            return None
        ones = {name: int(place[x[place].argmax()]) for name, place in columns.items()}
        policy = {name: table.choices[name][at - columns[name][0]] for name, at in ones.items()}
        if all_within(spent(table, policy, budgets), budgets):
            return policy
        # Over a limit by less than the solver sees: forbid just this policy and ask again.
        rows.append(_Constraint(list(ones.values()), np.ones(len(ones)), -np.inf, len(ones) - 1))


def _sharing(table: CostTable, columns: Mapping[str, NDArray[np.int64]]) -> Iterator[_Constraint]:
    for name, (first, *_) in readers(table.layers).items():
        if name == first:
            continue
        mine, theirs = table.choices[name], table.choices[first]
        for act in {bits.act for bits in (*mine, *theirs)}:
            plus = columns[name][[bits.act == act for bits in mine]]
            minus = columns[first][[bits.act == act for bits in theirs]]
            signs = np.repeat([1.0, -1.0], [len(plus), len(minus)])
            yield _Constraint(np.concatenate([plus, minus]), signs, 0, 0)


def _widths(table: CostTable, columns: Mapping[str, NDArray[np.int64]]) -> Iterator[_Constraint]:
    """Let layers whose channels go together keep the same share of them."""
    for first, *others in table.together:
        for name in others:
            mine, theirs = table.choices[name], table.choices[first]
            for keep in {bits.keep for bits in (*mine, *theirs)}:
                plus = columns[name][[bits.keep == keep for bits in mine]]
                minus = columns[first][[bits.keep == keep for bits in theirs]]
                signs = np.repeat([1.0, -1.0], [len(plus), len(minus)])
                yield _Constraint(np.concatenate([plus, minus]), signs, 0, 0)


def _products(
    columns: Mapping[str, NDArray[np.int64]], links: Sequence[_Link]
) -> Iterator[_Constraint]:
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
                yield _Constraint(np.concatenate([side, mine]), signs, 0, 0)


def _budget_constraint(table: CostTable, links: Sequence[_Link], budget: Budget) -> _Constraint:
    # In thousandths of the limit, so that the solver's tolerance of 1e-6 is the budgets' 1e-9. A
    # choice far above the limit is out anyway; its true cost would only spoil the scale.
    unit = budget.limit / 1e3
    costs = _vector(table, table.rows[budget.quantity], links, budget.quantity) / unit
    left = (budget.limit - table.fixed.get(budget.quantity, 0.0)) / unit
    return _Constraint(np.arange(len(costs)), np.clip(costs, -1e7, 1e7), -np.inf, left)


def _solved(
    goal: NDArray[np.float64], rows: Sequence[_Constraint], whole: NDArray[np.bool_]
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
    with silent_stdout():
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


def cheapest(table: CostTable, quantity: str) -> float:
    """Return the least that any policy can cost, in the table's unit.

    Raises:
        HaqError: The table has no such quantity, or its layers cannot share activation widths.
    """
    return total(table, cheapest_policy(table, quantity), quantity)


def cheapest_policy(table: CostTable, quantity: str) -> dict[str, Bits]:
    """Return a policy that costs the least, whatever it does to the network."""
    rows = look_up(table.rows, "quantity", quantity)
    choices = share_activations(table.layers, table.choices)
    if table.together or any(quantity in edge.cost for edge in table.edges):
        links = _links(table, [quantity])
        policy = _minimum(table, _vector(table, rows, links, quantity), links, ())
        assert policy is not None  # without budgets, any choice of shared widths will do
        return policy
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


_ONE_AT_A_TIME = Lock()


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Send what the process writes to its standard output nowhere, C's own output included.

    HiGHS prints a line now and then whatever its options say, by C's ``printf``; scipy cannot stop
    that. It would stand in the middle of what a program of ours prints for another one to read.
    """
    with _ONE_AT_A_TIME, ExitStack() as stack:
        _flush()
        try:
            before = os.dup(1)
        except OSError:  # a process without a standard output
            yield
            return
        stack.callback(os.close, before)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 1)
        try:
            yield
        finally:
            _flush()
            os.dup2(before, 1)


def _flush() -> None:
    """Write what C's own buffers hold."""
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.fflush(None)
