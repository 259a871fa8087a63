"""The policies that are measured: networks of one precision, and mixed ones."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from haq.allocation.policy import Bits, Policy, readers
from haq.allocation.schemes import STATIC, Formats
from haq.hw_profiles.measured import FLOATS, STANDARD, kernel, measured_as
from haq.network.layers import EDGE_BITS, Layer

REFERENCES: Mapping[str, int | None] = {"fp32": None, "w7a8": 8, "w7a4": 4}
"""Networks of one precision, and the bits of their activations where they are quantized."""


def special_kernels(layers: Sequence[Layer], formats: Formats) -> list[Bits]:
    """Return the kernels of number formats that are more than bits, of any layer that has costs."""
    offered = {
        kernel(bits)
        for layer in layers if not layer.weights_alone
        for bits in formats.offered(layer) if bits.is_special
    }  # fmt: skip
    return sorted(offered - {FLOATS})


def references(
    layers: Sequence[Layer], able: Collection[str], formats: Formats = STATIC
) -> dict[str, Policy]:
    """Return the policies of one precision by name; what cannot be quantized stays float.

    Args:
        layers: In order of execution.
        able: Names of those that run in integer kernels.
        formats: Whose kernels are measured.
    """
    policies: dict[str, Policy] = {
        name: {
            layer.name: Bits(STANDARD.weight, EDGE_BITS if layer.reads_input else act)
            if act is not None and layer.name in able else FLOATS
            for layer in layers
        }
        for name, act in REFERENCES.items()
        if act is None or "static" in formats.schemes
    }  # fmt: skip
    for ran in special_kernels(layers, formats):
        bits = measured_as(ran)
        policies[str(bits)] = {
            layer.name: bits if _takes(layer, ran, formats) else FLOATS for layer in layers
        }
    return policies


def _takes(layer: Layer, ran: Bits, formats: Formats) -> bool:
    """Return whether a layer may run in the kernel of a number format."""
    return not layer.weights_alone and ran in map(kernel, formats.offered(layer))


def mixed(
    layers: Sequence[Layer],
    able: Collection[str],
    count: int,
    seed: int,
    formats: Formats = STATIC,
) -> list[Policy]:
    """Return policies that mix kernels, no two of which run in equal ones.

    Two of three choose at random for every tensor whether its readers are float, with a probability
    that is random itself; the third has one block of layers that differ from all others. What is
    float then has, every second time, kernels of other number formats, layer by layer. Where there
    are not that many ways to mix, there are fewer policies.

    Args:
        layers: In order of execution.
        able: Names of those that run in integer kernels.
        count: How many.
        seed: Of all choices.
        formats: Among which kernels are chosen.
    """
    special = {
        layer.name: [one for one in special_kernels(layers, formats) if _takes(layer, one, formats)]
        for layer in layers
    }
    generator = np.random.default_rng(seed)
    policies: dict[tuple[Bits, ...], Policy] = {}
    for attempt in range(50 * count):
        policy = _drawn(layers, able, attempt % 3 == 2, generator)
        if any(special.values()):
            policy = _with_formats(policy, special, generator)
        ran = tuple(kernel(bits) for bits in policy.values())
        if len(policies) < count and 1 < len({_scheme(bits) for bits in ran}):
            policies.setdefault(ran, policy)
    return list(policies.values())


def _scheme(ran: Bits) -> tuple[int, str, bool]:
    return ran.block, ran.dynamic, ran == FLOATS


def _with_formats(
    policy: Policy, special: Mapping[str, Sequence[Bits]], generator: np.random.Generator
) -> Policy:
    share = generator.uniform(0.2, 1)
    return {
        name: measured_as(special[name][int(generator.integers(len(special[name])))])
        if bits == FLOATS and special[name] and generator.random() < share else bits
        for name, bits in policy.items()
    }  # fmt: skip


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
