"""What it does to a network if layers have fewer channels, and who reads which."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from haq.allocation.widths import SHARES, Readers, kept_channels
from haq.compression.channels import channels_of, families
from haq.compression.filters import keep_largest, remove
from haq.distillation.kd import total_divergence
from haq.network.capture import Sample
from haq.network.inputs import Inputs
from haq.training.scoring import answers


def readers_of(traced: fx.GraphModule, sample: Sample) -> dict[str, Readers]:
    """Return the layers whose channels they alone compute, with the layers that read these.

    Args:
        traced: From ``haq.network.graph.trace``.
        sample: What one forward takes.
    """
    channels = channels_of(traced, sample)
    readers = {}
    for family in families(channels):
        if not family.inner:
            continue
        mine = torch.tensor(family.groups)
        shares = {
            name: float(torch.isin(channels.groups(numbers), mine).float().mean())
            for name, numbers in channels.inputs.items()
        }
        consumers = {name: share for name, share in shares.items() if share}
        if len(family.groups) == len(channels.outputs[family.name]):
            readers[family.name] = Readers(
                consumers, frozenset(consumers.keys() & channels.depthwise)
            )
    return readers


def damage_of_channels(
    traced: fx.GraphModule,
    sample: Sample,
    images: Inputs,
    layers: Sequence[str],
    on_place: Callable[[int, int], None] | None = None,
) -> dict[str, dict[float, float]]:
    """Return how far a network is from itself where one layer has fewer channels, untrained.

    Args:
        traced: From ``haq.network.graph.trace``.
        sample: What one forward takes.
        images: (N, ...), on which answers are compared; see ``haq.distillation.kd.divergence``.
        layers: Whose channels go, one layer at a time, those with the smallest filters first.
        on_place: Called with places that are done, and all of them.

    Returns:
        Layer to the divergence of each share of its channels that may stay; what measured worse
        with more channels, which is noise, counts as it does with fewer.
    """
    reference = answers(traced, images)
    damage: dict[str, dict[float, float]] = {}
    for done, name in enumerate(layers, 1):
        damage[name] = _falling(
            {share: _divergence(traced, sample, images, name, share, reference) for share in SHARES}
        )
        if on_place:
            on_place(done, len(layers))
    return damage


def _divergence(
    traced: fx.GraphModule,
    sample: Sample,
    images: Inputs,
    name: str,
    share: float,
    reference: list[Tensor],
) -> float:
    channels = traced.get_submodule(name).weight
    assert isinstance(channels, Tensor)
    if share == 1 or not kept_channels(share, len(channels)):
        return 0.0
    network = remove(traced, sample, keep_largest(traced, sample, {name: share}))
    return float(total_divergence(answers(network, images), reference))


def _falling(values: Mapping[float, float]) -> dict[float, float]:
    worst, falling = 0.0, {}
    for share in sorted(values, reverse=True):
        worst = max(worst, values[share])
        falling[share] = worst
    return falling
