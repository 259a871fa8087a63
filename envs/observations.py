"""What the steps of an episode observe of their layers, scaled to [0, 1]."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits
from haq.network.layers import Layer

Array = NDArray[Any]

Features = Callable[[Layer], Sequence[float]]
"""From a layer to what is observed of it beside the paper's numbers."""


NOTHING = 1e-6
"""Sensitivities below this are noise."""


What = Literal["channels", "weights", "activations"]
"""What a step decides of a layer."""

_SHOWN: Mapping[What, float] = {"channels": 0.5, "weights": 1.0, "activations": 0.0}


class Decision(NamedTuple):
    """One decision of an episode: of the channels, weights or activations of one layer."""

    layer: str
    what: What


Option = tuple[int, float, str]
"""What a step chooses: bits, one over the size of the groups (0 without), rounding as it runs; or
for channels nothing, the share that stays, nothing."""


def option_of(bits: Bits, what: What) -> Option:
    """Return what a step chooses that leads to these bits."""
    if what == "channels":
        return 0, bits.keep, ""
    if what == "activations":
        return bits.act, 0.0, ""
    return bits.weight, 1 / bits.block if bits.block else 0.0, bits.dynamic


def offered_options(left: Sequence[Bits], what: What) -> list[Option]:
    """Return what a step can choose from, few bits to many, then large groups to small ones.

    With rounding as it runs comes before without; of channels, few come before many.
    """
    options = {option_of(bits, what) for bits in left}
    return sorted(options, key=lambda option: (*option[:2], option[2] == "", option[2]))


def layer_features(layers: Sequence[Layer], steps: Sequence[Decision]) -> Array:
    """Return what each step observes, but for the previous action: (steps, 9)."""
    described = {layer.name: _described(place, layer) for place, layer in enumerate(layers)}
    raw = np.array([described[step.layer] for step in steps], np.float64)  # (steps, 8)
    return np.column_stack([_scaled(raw), [_SHOWN[step.what] for step in steps]])


def _scaled(raw: Array) -> Array:
    low, span = raw.min(axis=0), np.ptp(raw, axis=0)
    scaled: Array = (raw - low) / np.where(span > 0, span, 1.0)
    return scaled


def sensitivity_features(
    steps: Sequence[Decision], table: CostTable, sensitivity: Mapping[str, Array]
) -> Array:
    """Return what the fewest and the middle bits of each step do at least, scaled: (steps, 2)."""
    raw = []
    for step in steps:
        choices, values = table.choices[step.layer], sensitivity[step.layer]
        offered = offered_options(choices, step.what)
        least = [
            min(
                value
                for bits, value in zip(choices, values, strict=True)
                if option_of(bits, step.what) == option
            )
            for option in (offered[0], offered[len(offered) // 2])
        ]
        raw.append(np.log10(np.maximum(least, NOTHING)))
    return _scaled(np.array(raw))


def own_features(steps: Sequence[Decision], layers: Sequence[Layer], features: Features) -> Array:
    """Return what a function of the user's observes of the layer of each step, scaled."""
    own = {layer.name: [float(value) for value in features(layer)] for layer in layers}
    for name, values in own.items():
        if len(values) != len(own[layers[0].name]) or not np.isfinite(values).all():
            raise ValueError(
                f"features gave {values} for layer {name!r}; it must give finite numbers, as many "
                "for every layer"
            )
    return _scaled(np.array([own[step.layer] for step in steps], np.float64))


def _described(place: int, layer: Layer) -> tuple[int, ...]:
    linear = layer.kind == "linear"
    return (
        place,
        layer.c_in,
        layer.c_out,
        1 if linear else max(layer.kernel),
        0 if linear else max(layer.stride),
        math.prod(layer.in_size),
        layer.weights,
        int(layer.kind == "depthwise"),
    )
