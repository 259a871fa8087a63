"""Bits and channels chosen together: one table, one integer program.

To the bits of a layer comes the share of its output channels that stays. What a layer costs then
depends on two choices, its own and that of the layers whose channels it reads, which is what the
edges of a cost table are for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from haq.allocation.costs import CODED, CostTable, Edge, Linked, Target, tabulate
from haq.allocation.policy import Bits, Policy
from haq.errors import HaqError, TargetError
from haq.network.layers import Layer

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of a layer's output channels that may stay, unless others are asked for."""


@dataclass(frozen=True)
class WidthGroup:
    """Layers whose output channels go together, and how much of what goes with each share.

    Attributes:
        layers: Those that compute the channels, in order of execution, without depthwise ones.
        left: Share that stays to layer to the share of its output channels that is left, which
            differs by the rounding to whole channels.
        gone: Share that stays to the layers that read these channels, each with the share of its
            input channels that goes.
        depthwise: Of those, the ones whose output channels are these too.
    """

    layers: tuple[str, ...]
    left: Mapping[float, Mapping[str, float]]
    gone: Mapping[float, Mapping[str, float]]
    depthwise: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        """The first of the layers."""
        return self.layers[0]

    @property
    def readers(self) -> tuple[str, ...]:
        """The layers that read the channels."""
        return tuple(dict.fromkeys(name for row in self.gone.values() for name in row))

    @property
    def shares(self) -> tuple[float, ...]:
        """Those that may stay, the most first."""
        return tuple(sorted(self.left, reverse=True))


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Return shares of channels from large to small, each once, with that of a whole layer.

    Raises:
        HaqError: One is not above 0 and at most 1, or there is none below 1.

    >>> check_shares([0.5, 0.75])
    (1.0, 0.75, 0.5)
    """
    for share in shares:
        if not 0 < share <= 1:
            raise HaqError(
                f"widths {share:g}: the share of a layer's channels that stays is above 0 and at "
                "most 1, such as 1,.75,.5,.25"
            )
    if all(share == 1 for share in shares):
        raise HaqError("widths 1 leaves nothing to choose: give smaller shares too, such as 1,.5")
    return tuple(sorted({1.0, *map(float, shares)}, reverse=True))


def kept_channels(share: float, channels: int, multiple: int = 1) -> int:
    """Return how many channels stay of so many: the nearest multiple, halves up, or all of them.

    >>> kept_channels(0.75, 10), kept_channels(0.25, 1)
    (8, 0)
    >>> [kept_channels(share, 64, multiple=16) for share in (1, 0.875, 0.75, 0.5, 0.1)]
    [64, 64, 48, 32, 0]
    """
    if share == 1:
        return channels
    return min(channels, multiple * int(share * channels / multiple + 0.5))


def narrowed(layer: Layer, inputs: float = 1.0, outputs: float = 1.0) -> Layer:
    """Return a layer with a share of its input channels and of its output channels.

    A depthwise layer has as many of both.

    >>> conv = Layer("c", "conv", 16, 32, kernel=(3, 3), weights=4608, biases=32, macs=4608 * 64)
    >>> half = narrowed(conv, 0.5, 0.25)
    >>> half.c_in, half.c_out, half.weights, half.biases, half.macs
    (8, 8, 576, 8, 36864)
    """
    if inputs == outputs == 1:
        return layer
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


def narrowed_layers(
    layers: Sequence[Layer], groups: Sequence[WidthGroup], policy: Policy
) -> tuple[Layer, ...]:
    """Return the layers of a network with the channels that a policy leaves them.

    Args:
        layers: Of the whole network.
        groups: Layers that lose channels together.
        policy: Its shares are those of the groups.
    """
    outputs, inputs = dict[str, float](), dict[str, float]()
    both = frozenset(name for group in groups for name in group.depthwise)
    for group in groups:
        keep = policy[group.name].keep
        outputs |= group.left[keep]
        for name, gone in group.gone[keep].items():
            inputs[name] = inputs.get(name, 1.0) - gone
    return tuple(
        narrowed(
            layer,
            inputs.get(layer.name, 1.0),
            (inputs if layer.name in both else outputs).get(layer.name, 1.0),
        )
        for layer in layers
    )


def widened(
    layers: Sequence[Layer],
    choices: Mapping[str, tuple[Bits, ...]],
    groups: Sequence[WidthGroup],
    target: Target | None = None,
    float_values: int = 0,
) -> CostTable:
    """Return the cost of all choices of bits and channels.

    A layer that reads the channels of several groups costs less by the sum of what each of them
    saves alone.

    Args:
        layers: In execution order.
        choices: Layer to its bits, as ``permitted`` gives them.
        groups: Layers that may lose channels; the others keep theirs.
        target: As for ``tabulate``.
        float_values: As for ``tabulate``.

    Returns:
        A table of size, bops and the target's quantities. An average of bits is not in it: it would
        be of different numbers of weights.

    Raises:
        TargetError: The target cannot run a narrower layer, or was measured for whole ones alone.
    """
    base = tabulate(layers, choices, target, float_values)
    if isinstance(target, Linked):
        raise TargetError(
            f"target {target.name} was measured with whole layers, and does not know what narrower "
            "ones cost: leave --widths out, or budget size or bops without a target"
        )
    units = {name: unit for name, unit in base.units.items() if name != "avg_weight_bits"}
    own = {name: tuple(bits) for name, bits in choices.items()}
    left: dict[tuple[str, float], float] = {}
    for group in groups:
        for name in group.layers:
            own[name] = tuple(
                bits.with_keep(share) for share in group.shares for bits in choices[name]
            )
            left |= {(name, share): group.left[share][name] for share in group.shares}
    costs = _Costs(target, tuple(units), left)
    known = {layer.name: layer for layer in layers}
    rows: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in units}
    for layer in layers:
        values = [costs.of(layer, bits) for bits in own[layer.name]]
        for place, name in enumerate(units):
            rows[name][layer.name] = np.array([value[place] for value in values])
    edges = [
        _edge(group, known[reader], own, costs)
        for group in groups for reader in group.readers
    ]  # fmt: skip
    fixed = {"size": 4.0 * float_values} if float_values else {}
    together = tuple(group.layers for group in groups)
    return CostTable(tuple(layers), own, rows, units, tuple(edges), fixed, together)


class _Costs:
    """What layers of all sizes cost, each asked for once."""

    def __init__(
        self,
        target: Target | None,
        quantities: tuple[str, ...],
        left: Mapping[tuple[str, float], float],
    ):
        self.target, self.quantities, self.left = target, quantities, left
        self.known: dict[tuple[Layer, Bits], tuple[float, ...]] = {}

    def of(
        self, layer: Layer, bits: Bits, inputs: float = 1.0, both: bool = False
    ) -> tuple[float, ...]:
        """Return the costs of a layer at its bits and with its channels, a share of them read."""
        outputs = inputs if both else self.left.get((layer.name, bits.keep), 1.0)
        narrow, plain = narrowed(layer, inputs, outputs), bits.with_keep(1.0)
        if (narrow, plain) not in self.known:
            table = tabulate([narrow], {layer.name: (plain,)}, self.target)
            self.known[narrow, plain] = tuple(
                float(table.rows[q][layer.name][0]) for q in self.quantities
            )
        return self.known[narrow, plain]


def _edge(
    group: WidthGroup, consumer: Layer, own: Mapping[str, tuple[Bits, ...]], costs: _Costs
) -> Edge:
    """Return what it costs less to read fewer channels, for all choices of both."""
    both = consumer.name in group.depthwise
    shares = [bits.keep for bits in own[group.name]]
    saved = {}
    for share in group.shares:
        inputs = 1 - group.gone[share].get(consumer.name, 0.0)
        saved[share] = np.array([
            np.subtract(costs.of(consumer, bits, inputs, both), costs.of(consumer, bits))
            for bits in own[consumer.name]
        ])  # fmt: skip
    values = np.array([saved[share] for share in shares])  # (producer's, consumer's, quantities)
    return Edge(
        group.name, consumer.name,
        {name: np.ascontiguousarray(values[..., at]) for at, name in enumerate(costs.quantities)},
    )  # fmt: skip


def check_budgeted(quantities: Sequence[str]) -> None:
    """Say so if a budget is on something that is not known where channels are chosen.

    Raises:
        HaqError: It is on an average of bits, or on coded bytes.
    """
    for quantity in quantities:
        if quantity in ("avg_weight_bits", CODED):
            raise HaqError(
                f"a budget on {quantity} does not go with channels that are chosen: give one on "
                "size or bops, or on what the target knows, such as --budget size=50%w8a8"
            )


def with_channels(
    table: CostTable,
    of_bits: Mapping[str, NDArray[np.float64]],
    of_channels: Mapping[str, Mapping[float, float]],
) -> dict[str, NDArray[np.float64]]:
    """Return what each choice of bits and channels does to a network, in the order of a table.

    Args:
        table: From ``widened``.
        of_bits: Layer to the damage of each of its choices of bits, in their order.
        of_channels: First layer of a group to the damage of each share that stays.
    """
    damage = {}
    for name, choices in table.choices.items():
        bits = np.tile(np.asarray(of_bits[name], np.float64), len(choices) // len(of_bits[name]))
        shares = of_channels.get(name, {})
        damage[name] = bits + np.array([shares.get(choice.keep, 0.0) for choice in choices])
    return damage
