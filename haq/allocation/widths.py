"""Bits and channels chosen together: one table, one integer program.

To the bits of a layer comes the share of its output channels that stays. What a layer costs then
depends on two choices, its own and that of the layer before it, which is what the edges of a cost
table are for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.allocation.budgets import Budget, solve
from haq.allocation.costs import CostTable, Edge, Target, tabulate
from haq.allocation.policy import Bits
from haq.errors import BudgetError, HaqError
from haq.network.layers import Layer

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of a layer's output channels that may stay."""


class Width(Bits):
    """The bits of a layer, and the share of its output channels that stays.

    >>> Width(4, 8, 0.5) == Width(4, 8, 0.5), Width(4, 8, 0.5) == Width(4, 8, 1.0)
    (True, False)
    """

    keep: float

    def __new__(cls, weight: int, act: int, keep: float = 1.0) -> "Width":
        """Return the choice."""
        self = super().__new__(cls, weight, act)
        assert isinstance(self, Width)
        self.keep = keep
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return what a copy is made of."""
        return self.weight, self.act, self.keep

    def __eq__(self, other: object) -> bool:
        """Return whether bits and share are equal."""
        return isinstance(other, Width) and self.__getnewargs__() == other.__getnewargs__()

    __hash__ = Bits.__hash__


@dataclass(frozen=True)
class Readers:
    """The layers that read the channels of another one.

    Attributes:
        consumers: Layer to the share of its input channels that are these.
        depthwise: Of those, the ones whose output channels are these too.
    """

    consumers: Mapping[str, float]
    depthwise: frozenset[str] = field(default_factory=frozenset)


def kept_channels(share: float, channels: int) -> int:
    """Return how many channels stay of a layer's: the nearest number, halves up.

    >>> kept_channels(0.75, 10), kept_channels(0.25, 1)
    (8, 0)
    """
    return int(share * channels + 0.5)


def narrowed(layer: Layer, inputs: float = 1.0, outputs: float = 1.0) -> Layer:
    """Return a layer with a share of its input channels and of its output channels.

    A depthwise layer has as many of both.

    >>> conv = Layer("c", "conv", 16, 32, kernel=(3, 3), weights=4608, biases=32, macs=4608 * 64)
    >>> half = narrowed(conv, 0.5, 0.25)
    >>> half.c_in, half.c_out, half.weights, half.biases, half.macs
    (8, 8, 576, 8, 36864)
    """
    if layer.kind == "depthwise":
        inputs = outputs = min(inputs, outputs)
    before = kept_channels(inputs, layer.c_in)
    behind = kept_channels(outputs, layer.c_out)
    part = behind / layer.c_out * (1.0 if layer.kind == "depthwise" else before / layer.c_in)
    return replace(
        layer,
        c_in=before,
        c_out=behind,
        groups=behind if layer.kind == "depthwise" else layer.groups,
        weights=round(layer.weights * part),
        biases=round(layer.biases * behind / layer.c_out),
        macs=round(layer.macs * part),
        zeros=round(layer.zeros * part),
        shapes=tuple(shape._replace(macs=round(shape.macs * part)) for shape in layer.shapes),
    )


def widened(
    layers: Sequence[Layer],
    choices: Mapping[str, tuple[Bits, ...]],
    readers: Mapping[str, Readers],
    target: Target | None = None,
    float_values: int = 0,
    shares: Sequence[float] = SHARES,
) -> CostTable:
    """Return the cost of all choices of bits and channels.

    Args:
        layers: In execution order.
        choices: Layer to its bits, as ``permitted`` gives them.
        readers: Layer whose channels may go to those that read them; the others keep theirs.
        target: As for ``tabulate``.
        float_values: As for ``tabulate``.
        shares: Of the channels that may stay; those that would leave none are left out.

    Returns:
        A table of size, bops and the target's quantities. An average of bits is not in it: it would
        be of different numbers of weights.
    """
    base = tabulate(layers, choices, target, float_values)
    units = {name: unit for name, unit in base.units.items() if name != "avg_weight_bits"}
    own: dict[str, tuple[Bits, ...]] = {}
    for layer in layers:
        kept = shares if layer.name in readers else (1.0,)
        possible = [share for share in kept if kept_channels(share, layer.c_out)]
        own[layer.name] = tuple(
            Width(bits.weight, bits.act, share)
            for share in possible
            for bits in choices[layer.name]
        )
    costs = _Costs(target, tuple(units))
    rows: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in units}
    for layer in layers:
        values = [costs.of(narrowed(layer, 1.0, _keep(bits)), bits) for bits in own[layer.name]]
        for place, name in enumerate(units):
            rows[name][layer.name] = np.array([value[place] for value in values])
    known = {layer.name: layer for layer in layers}
    edges = [
        _edge(known[name], known[reader], own, share, reader in some.depthwise, costs, tuple(units))
        for name, some in readers.items() for reader, share in some.consumers.items()
    ]  # fmt: skip
    fixed = {"size": 4.0 * float_values} if float_values else {}
    return CostTable(tuple(layers), own, rows, units, tuple(edges), fixed)


def _keep(bits: Bits) -> float:
    return bits.keep if isinstance(bits, Width) else 1.0


class _Costs:
    """What layers of all sizes cost, each asked for once."""

    def __init__(self, target: Target | None, quantities: tuple[str, ...]):
        self.target, self.quantities = target, quantities
        self.known: dict[tuple[Layer, tuple[int, int]], tuple[float, ...]] = {}

    def of(self, layer: Layer, bits: Bits) -> tuple[float, ...]:
        key = layer, (bits.weight, bits.act)
        if key not in self.known:
            plain = Bits(bits.weight, bits.act)
            table = tabulate([layer], {layer.name: (plain,)}, self.target)
            self.known[key] = tuple(float(table.rows[q][layer.name][0]) for q in self.quantities)
        return self.known[key]


def _edge(
    producer: Layer,
    consumer: Layer,
    own: Mapping[str, tuple[Bits, ...]],
    share: float,
    depthwise: bool,
    costs: _Costs,
    quantities: tuple[str, ...],
) -> Edge:
    """Return what it costs less to read fewer channels, for all choices of both."""
    ends = own[producer.name], own[consumer.name]
    values = np.zeros((len(quantities), len(ends[0]), len(ends[1])))
    for row, before in enumerate(ends[0]):
        left = kept_channels(_keep(before), producer.c_out) / producer.c_out
        inputs = 1 - share * (1 - left)
        for column, behind in enumerate(ends[1]):
            outputs = inputs if depthwise else _keep(behind)
            now = costs.of(narrowed(consumer, inputs, outputs), behind)
            whole = costs.of(narrowed(consumer, 1.0, 1.0 if depthwise else outputs), behind)
            values[:, row, column] = np.subtract(now, whole)
    return Edge(producer.name, consumer.name, dict(zip(quantities, values, strict=True)))


def choose(
    table: CostTable,
    of_bits: Mapping[str, NDArray[Any]],
    of_channels: Mapping[str, Mapping[float, float]],
    budgets: Sequence[Budget],
) -> dict[str, Width]:
    """Return the bits and channels with the least damage in sum that keep the budgets.

    Args:
        table: From ``widened``.
        of_bits: Layer to the damage of each of its choices of bits, in their order.
        of_channels: Layer whose channels may go to the damage of each share that stays.
        budgets: Of quantities of the table.

    Raises:
        BudgetError: No choice keeps them.
        HaqError: A budget is on something that the table does not have.
    """
    for budget in budgets:
        if budget.quantity not in table.rows:
            raise HaqError(
                f"a budget on {budget.quantity} does not go with channels that are chosen: give "
                f"one on {', '.join(table.rows)}"
            )
    damage = {}
    for name, choices in table.choices.items():
        bits = np.tile(np.asarray(of_bits[name], np.float64), len(choices) // len(of_bits[name]))
        shares = of_channels.get(name, {})
        damage[name] = bits + np.array([shares.get(_keep(choice), 0.0) for choice in choices])
    policy = solve(damage, table, budgets)
    if policy is None:
        limits = ", ".join(f"{budget.quantity} <= {budget.limit:g}" for budget in budgets)
        raise BudgetError(f"no bits and channels keep {limits}; raise the budget")
    return {name: Width(bits.weight, bits.act, _keep(bits)) for name, bits in policy.items()}
