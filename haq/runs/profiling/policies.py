"""The policies that are measured: networks of one precision, and mixed ones."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from haq.allocation.policy import Bits, Policy, readers
from haq.hw_profiles.measured import FLOATS, STANDARD, kernel
from haq.network.layers import EDGE_BITS, Layer

REFERENCES: Mapping[str, int | None] = {"fp32": None, "w7a8": 8, "w7a4": 4}
"""Networks of one precision, and the bits of their activations where they are quantized."""


def references(layers: Sequence[Layer], able: Collection[str]) -> dict[str, Policy]:
    """Return the policies of one precision by name; what cannot be quantized stays float.

    Args:
        layers: In order of execution.
        able: Names of those that can be quantized.
    """
    return {
        name: {
            layer.name: Bits(STANDARD.weight, EDGE_BITS if layer.reads_input else act)
            if act is not None and layer.name in able else FLOATS
            for layer in layers
        }
        for name, act in REFERENCES.items()
    }  # fmt: skip


def mixed(layers: Sequence[Layer], able: Collection[str], count: int, seed: int) -> list[Policy]:
    """Return policies that mix float and quantized layers, no two of which run in equal kernels.

    Two of three choose at random for every tensor whether its readers are float, with a probability
    that is random itself; the third has one block of layers that differ from all others. Where
    there are not that many ways to mix, there are fewer policies.

    Args:
        layers: In order of execution.
        able: Names of those that can be quantized.
        count: How many.
        seed: Of all choices.
    """
    generator = np.random.default_rng(seed)
    policies: dict[tuple[Bits, ...], Policy] = {}
    for attempt in range(50 * count):
        policy = _drawn(layers, able, attempt % 3 == 2, generator)
        ran = tuple(kernel(bits) for bits in policy.values())
        if len(policies) < count and 1 < len({bits == FLOATS for bits in ran}):
            policies.setdefault(ran, policy)
    return list(policies.values())


def _drawn(
    layers: Sequence[Layer], able: Collection[str], block: bool, generator: np.random.Generator
) -> Policy:
    groups = list(dict.fromkeys(readers(layers).values()))
    if block:
        start, end = np.sort(generator.choice(len(groups) + 1, 2, replace=False))
        places = np.arange(len(groups))
        floats = ((start <= places) & (places < end)) ^ bool(generator.integers(2))
    else:
        floats = generator.random(len(groups)) < generator.uniform(0.1, 0.9)
    known = {layer.name: layer for layer in layers}
    policy = {}
    for group, stays in zip(groups, floats, strict=True):
        act = 8 if generator.integers(2) else int(generator.integers(2, 8))
        if any(known[name].reads_input for name in group):
            act = EDGE_BITS
        for name in group:
            weight = int(generator.integers(2, STANDARD.weight + 1))
            policy[name] = FLOATS if stays or name not in able else Bits(weight, act)
    return {layer.name: policy[layer.name] for layer in layers}
