"""What a policy costs on a target: tables per layer and choice, and their sums.

``choices.permitted`` says which bits the search may use, ``tabulate`` what each of them costs;
after that, nobody asks the target again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import CODEBOOK, FLOAT, Bits, Policy, listed
from haq.allocation.sparse import sparse_bytes
from haq.errors import PolicyError, TargetError, look_up
from haq.network.layers import Layer

SCALE_BYTES = 2
"""Of the scale of a group of weights: float16, as it stands in files."""

UNITS: Mapping[str, str] = {"size": "bytes", "avg_weight_bits": "bits", "bops": "bit operations"}
"""The quantities that need no target, and their units."""

CODED = "coded_size"
"""The bytes of a network's packet (``haq pack``), of which the entropy of its codes counts."""

WITHOUT_TARGET: Mapping[str, str] = {**UNITS, CODED: "bytes"}
"""Those, and what is measured on the network itself."""


class Target(Protocol):
    """A piece of hardware, or a model of one, that knows what a layer costs."""

    name: str
    batch: int
    units: Mapping[str, str]
    """Quantity ("latency", "energy") to the unit in which ``cost`` gives it, such as "cycles"."""
    si: Mapping[str, float]
    """Quantity to that unit in seconds or joules, such as 5e-9 for a cycle at 200 MHz."""

    def choices(self, layer: Layer) -> Sequence[Bits]:
        """Return every pair of bit-widths in which the target can run the layer."""
        ...

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        """Return the cost of all calls of the layer, per quantity, in the unit of ``units``.

        Raises:
            TargetError: The target cannot run the layer at these bits.
        """
        ...


@dataclass(frozen=True)
class Edge:
    """What it costs to hand a tensor from one layer to another, by the bits of both.

    Attributes:
        producer: Name of the layer that computes the tensor.
        consumer: Name of the layer that reads it.
        cost: Quantity to (choices of the producer, choices of the consumer) costs.
    """

    producer: str
    consumer: str
    cost: Mapping[str, NDArray[np.float64]]


@runtime_checkable
class Linked(Protocol):
    """A target on which a change of precision from one layer to the next costs something."""

    def edges(
        self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
    ) -> tuple[Edge, ...]:
        """Return what it costs to hand tensors from layer to layer, for these choices of each.

        Only pairs of which both are among ``layers``; quantities and units are those of ``cost``.
        """
        ...


@dataclass(frozen=True)
class CostTable:
    """All a search needs to know about the model and the target.

    Attributes:
        layers: In execution order.
        choices: Layer to the pairs of bit-widths it may have; a pinned layer has one.
        rows: Quantity to layer to the cost of each of its choices, in their order.
        units: Quantity to its unit.
        edges: Costs that depend on the bits of two layers.
        fixed: Quantity to a cost that no choice changes, such as that of what stays float.
        together: Layers that keep the same share of their output channels, each group in order of
            execution.
    """

    layers: tuple[Layer, ...]
    choices: Mapping[str, tuple[Bits, ...]]
    rows: Mapping[str, Mapping[str, NDArray[np.float64]]]
    units: Mapping[str, str]
    edges: tuple[Edge, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Layer to those that keep the same share of their channels, itself included."""
        own = {layer.name: (layer.name,) for layer in self.layers}
        return own | {name: group for group in self.together for name in group}

    @cached_property
    def positions(self) -> Mapping[str, Mapping[Bits, int]]:
        """Layer to the place of each pair of bits in its choices."""
        return {
            name: {bits: place for place, bits in enumerate(choices)}
            for name, choices in self.choices.items()
        }


def size_bytes(layer: Layer, weight_bits: int, block: int = 0) -> int:
    """Return the bytes of a layer's packed codes, scales and biases.

    That is ceil(weights * bits / 8), a float32 scale for each output channel, or for each row of an
    embedding, and float32 biases; at 32 bits the weights as they are, without scales. Weights in
    groups have a float16 scale for each group instead, the last one of a row being shorter where
    need be, and no zero points. Codes of a pruned layer, without groups, are those of the cheapest
    format of ``haq.allocation.sparse``. A codebook has 2**bits float32 values and no scales.

    >>> fc = Layer("fc", "linear", c_in=3, c_out=5, weights=15, biases=5)
    >>> size_bytes(fc, weight_bits=3), size_bytes(fc, weight_bits=3, block=32)
    (46, 36)
    >>> size_bytes(fc, weight_bits=3, block=CODEBOOK)  # 45 bits, 8 values, 5 biases
    58
    """
    codes = math.ceil(layer.weights * weight_bits / 8)
    if block == CODEBOOK:
        return codes + (4 << weight_bits) + 4 * layer.biases
    if layer.zeros and weight_bits != FLOAT and not block:
        codes = sparse_bytes(layer.weights, layer.zeros, weight_bits)
    scales = 0 if weight_bits == FLOAT else 4 * layer.scales
    if block:
        row = layer.weights // max(layer.scales, 1)
        scales = SCALE_BYTES * layer.scales * math.ceil(row / block)
    return codes + scales + 4 * layer.biases


def tabulate(
    layers: Sequence[Layer],
    choices: Mapping[str, tuple[Bits, ...]],
    target: Target | None = None,
    float_values: int = 0,
) -> CostTable:
    """Return the cost of every choice of every layer, and what the rest of the network costs.

    Args:
        layers: In execution order.
        choices: As ``permitted`` gives them.
        target: Adds its quantities, for its batch; without one there are size (bytes),
            avg_weight_bits (bits) and bops (bit operations for one image: MACs x weight bits x
            activation bits).
        float_values: Values of the network that stay float32 whatever is chosen, in no layer. They
            count in size, 4 bytes each, and in avg_weight_bits, 32 bits each.

    Raises:
        TargetError: The target cannot run a choice, or what it says of it is not a number.
    """
    units = {**UNITS, **(target.units if target else {})}
    rows: dict[str, dict[str, NDArray[np.float64]]] = {quantity: {} for quantity in units}
    weights = sum(layer.weights for layer in layers) + float_values
    for layer in layers:
        costs = [_costs(layer, bits, weights, target) for bits in choices[layer.name]]
        for quantity in units:
            row = np.array([cost[quantity] for cost in costs], dtype=np.float64)
            if not np.isfinite(row).all():
                raise TargetError(f"the {quantity} of layer {layer.name!r} is not a finite number")
            rows[quantity][layer.name] = row
    own = {layer.name: tuple(choices[layer.name]) for layer in layers}
    edges: tuple[Edge, ...] = target.edges(layers, own) if isinstance(target, Linked) else ()
    for edge in edges:
        if not all(np.isfinite(cost).all() for cost in edge.cost.values()):
            raise TargetError(
                f"the cost from layer {edge.producer!r} to {edge.consumer!r} is not a finite number"
            )
    return CostTable(tuple(layers), own, rows, units, edges, _fixed(float_values, weights))


def with_quantity(
    table: CostTable,
    quantity: str,
    unit: str,
    rows: Mapping[str, NDArray[np.float64]],
    fixed: float,
) -> CostTable:
    """Return a table that knows one more quantity.

    Args:
        table: Left as it is.
        quantity: Its name.
        unit: Of its costs.
        rows: Layer to the cost of each of its choices, in their order.
        fixed: What no choice changes.
    """
    return replace(
        table,
        rows={**table.rows, quantity: rows},
        units={**table.units, quantity: unit},
        fixed={**table.fixed, quantity: fixed},
    )


def _fixed(float_values: int, weights: int) -> dict[str, float]:
    if not float_values:
        return {}
    return {"size": 4.0 * float_values, "avg_weight_bits": FLOAT * float_values / weights}


def _costs(layer: Layer, bits: Bits, weights: int, target: Target | None) -> dict[str, float]:
    own = {
        "size": float(size_bytes(layer, bits.weight, bits.block)),
        "avg_weight_bits": bits.weight * layer.weights / max(weights, 1),
        "bops": float(layer.macs * bits.weight * bits.multiplied),
    }
    return {**own, **(_on_target(layer, bits, target) if target else {})}


def _on_target(layer: Layer, bits: Bits, target: Target) -> Mapping[str, float]:
    """Return the target's costs of a layer; none for what is looked up or computed in float."""
    return dict.fromkeys(target.units, 0.0) if layer.weights_alone else target.cost(layer, bits)


def total(table: CostTable, policy: Policy, quantity: str) -> float:
    """Return what the policy costs: its rows, its edges and what is fixed.

    Raises:
        HaqError: The table has no such quantity.
        PolicyError: A layer is missing, or has bits that are not among its choices.
    """
    rows = look_up(table.rows, "quantity", quantity)
    place = {layer.name: _place(table, policy, layer.name) for layer in table.layers}
    costs = [float(rows[name][at]) for name, at in place.items()]
    for edge in table.edges:
        if quantity in edge.cost:
            costs.append(float(edge.cost[quantity][place[edge.producer], place[edge.consumer]]))
    return math.fsum([*costs, table.fixed.get(quantity, 0.0)])


def _place(table: CostTable, policy: Policy, name: str) -> int:
    if name not in policy:
        raise PolicyError(f"the policy has no bits for layer {name!r}; every layer needs some")
    try:
        return table.positions[name][policy[name]]
    except KeyError:
        raise PolicyError(
            f"layer {name!r} cannot have {policy[name]} here; "
            f"its choices are {listed(table.choices[name])}"
        ) from None


def _check_runs(layers: Sequence[Layer], target: Target, bits: Bits) -> None:
    """Name all layers that a target cannot run at some bits, at once.

    Raises:
        TargetError: There are some.
    """
    lacking = [
        layer.name for layer in layers
        if not layer.weights_alone and bits not in target.choices(layer)
    ]  # fmt: skip
    if lacking:
        where = "" if len(lacking) == len(layers) else f" in {', '.join(lacking)}"
        raise TargetError(f"{target.name} cannot run {bits}{where}")


def reference(
    layers: Sequence[Layer],
    target: Target | None,
    quantity: str,
    bits: Bits,
    float_values: int = 0,
) -> float:
    """Return what the network costs with every layer, pinned or not, at the same bits.

    Args:
        layers: All of them.
        target: Needed for its own quantities only.
        quantity: "size", "avg_weight_bits", "bops" or one of the target's.
        bits: Such as (8, 8), or (32, 32) for the float network.
        float_values: As for ``tabulate``: they stay float32 in every reference.

    Raises:
        TargetError: The target cannot run some layer at these bits.
        HaqError: Nobody knows the quantity.
    """
    look_up({**UNITS, **(target.units if target else {})}, "quantity", quantity)
    weights = sum(layer.weights for layer in layers) + float_values
    asked = None if quantity in UNITS else target
    if asked is not None:
        _check_runs(layers, asked, bits)
    try:
        costs = [_costs(layer, bits, weights, asked)[quantity] for layer in layers]
        if isinstance(asked, Linked):
            edges = asked.edges(layers, {layer.name: (bits,) for layer in layers})
            costs += [float(e.cost[quantity][0, 0]) for e in edges if quantity in e.cost]
        return math.fsum([*costs, _fixed(float_values, weights).get(quantity, 0.0)])
    except TargetError as error:
        raise TargetError(f"{target.name if target else ''} cannot run {bits}") from error
