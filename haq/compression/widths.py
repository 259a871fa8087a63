"""Which layers can lose channels together, which channels go, and what that does to a network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from haq.allocation.widths import SHARES, WidthGroup, kept_channels
from haq.compression.channel_scores import channel_scores
from haq.compression.channels import KEPT, Channels, Family, channels_of, families
from haq.compression.filters import remove
from haq.compression.refit import refit
from haq.distillation.kd import total_divergence
from haq.network.capture import Sample
from haq.network.inputs import Inputs
from haq.training.scoring import answers

REFITTED_ON = 128
"""Images from which layers learn to do without the channels that are gone."""


@dataclass(frozen=True)
class Widths:
    """The channels that a search may remove from a network.

    Attributes:
        channels: Of the network.
        groups: Layers that lose channels together.
        families: First layer of each group to the channels that go one for one in it.
        multiple: Of which the number of channels that stay is one.
    """

    channels: Channels
    groups: tuple[WidthGroup, ...]
    families: Mapping[str, tuple[Family, ...]]
    multiple: int = 1


def widths_of(
    traced: fx.GraphModule, sample: Sample, shares: Sequence[float] = SHARES, multiple: int = 1
) -> Widths:
    """Return which layers of a network can lose channels, and how much goes with each share.

    Layers that add their results share channels, directly or over others, and are one group: each
    keeps the same share of what it has. A share that would empty a layer, or that leaves as many
    channels as a larger one, is left out.

    Args:
        traced: From ``haq.network.graph.trace``.
        sample: What one forward takes.
        shares: That may stay, 1 among them.
        multiple: Of which the number of channels that stay is one, where not all stay.
    """
    channels = channels_of(traced, sample)
    known = dict(_components(channels))
    groups = [_group(channels, parts, shares, multiple) for parts in known.values()]
    able = [group for group in groups if len(group.shares) > 1]
    own = {group.name: known[group.name] for group in able}
    return Widths(channels, tuple(able), own, multiple)


def _components(channels: Channels) -> Iterator[tuple[str, tuple[Family, ...]]]:
    """Yield the families that have layers in common, with the first layer of all."""
    parts: list[tuple[set[str], list[Family]]] = []
    for family in families(channels):
        layers, own = set(family.layers), [family]
        for other in [part for part in parts if part[0] & layers]:
            parts.remove(other)
            layers |= other[0]
            own = [*other[1], *own]
        parts.append((layers, own))
    for layers, own in parts:
        free = all(bool((channels.groups(channels.outputs[n]) != KEPT).all()) for n in layers)
        if free:
            yield next(name for name in channels.outputs if name in layers), tuple(own)


def _group(
    channels: Channels, parts: Sequence[Family], shares: Sequence[float], multiple: int
) -> WidthGroup:
    members = {layer for family in parts for layer in family.layers}
    layers = tuple(name for name in channels.outputs if name in members)
    left: dict[float, dict[str, float]] = {}
    gone: dict[float, dict[str, float]] = {}
    seen = set[tuple[int, ...]]()
    for share in sorted(shares, reverse=True):
        counts = tuple(kept_channels(share, len(family.groups), multiple) for family in parts)
        if min(counts) < 1 or counts in seen:
            continue
        seen.add(counts)
        pairs = zip(parts, counts, strict=True)
        lost = torch.tensor([g for family, count in pairs for g in family.groups[count:]])
        left[share] = {name: 1 - _part(channels, channels.outputs[name], lost) for name in layers}
        gone[share] = {
            name: part for name, numbers in channels.inputs.items()
            if (part := _part(channels, numbers, lost)) > 0
        }  # fmt: skip
    readers = {name for row in gone.values() for name in row}
    return WidthGroup(layers, left, gone, frozenset(readers & channels.depthwise))


def _part(channels: Channels, numbers: torch.Tensor, lost: torch.Tensor) -> float:
    return float(torch.isin(channels.groups(numbers), lost).double().mean())


def lost_channels(
    widths: Widths, scores: Mapping[int, float], keep: Mapping[str, float]
) -> torch.Tensor:
    """Return the groups of channels that go, where those go that are worth the least.

    Args:
        widths: From ``widths_of``.
        scores: From ``channel_scores``.
        keep: First layer of a group to the share that stays; groups that are left out keep all.
    """
    lost = list[int]()
    for name, share in keep.items():
        for family in widths.families[name]:
            ranked = sorted(family.groups, key=lambda group: (-scores.get(group, 0.0), group))
            lost += ranked[kept_channels(share, len(family.groups), widths.multiple) :]
    return torch.tensor(sorted(lost), dtype=torch.int64)


def kept_places(channels: Channels, lost: torch.Tensor) -> dict[str, list[int]]:
    """Return the layers that lose channels, with the places of the output channels that stay."""
    places = {}
    for name, numbers in channels.outputs.items():
        stays = ~torch.isin(channels.groups(numbers), lost)
        if name not in channels.depthwise and not bool(stays.all()):
            places[name] = stays.nonzero().flatten().tolist()
    return places


def without(
    traced: fx.GraphModule,
    widths: Widths,
    scores: Mapping[int, float],
    keep: Mapping[str, float],
    images: Inputs,
    sample: Sample,
) -> tuple[fx.GraphModule, dict[str, list[int]]]:
    """Return a copy of a network without some channels, refitted, and the places that stay.

    Args:
        traced: The network; left as it is.
        widths: Of it.
        scores: As for ``lost_channels``, as is ``keep``.
        keep: As above.
        images: (N, ...), of which some are refitted on; see ``refit``.
        sample: What one forward takes.
    """
    lost = lost_channels(widths, scores, keep)
    places = kept_places(widths.channels, lost)
    network = remove(traced, sample, places, widths.channels)
    refit(network, traced, widths.channels, lost, images[:REFITTED_ON])
    return network, places


def damage_of_channels(
    traced: fx.GraphModule,
    widths: Widths,
    images: Inputs,
    sample: Sample,
    on_place: Callable[[int, int], None] | None = None,
) -> dict[str, dict[float, float]]:
    """Return how far a network is from itself where one group of layers has fewer channels.

    Not trained, but refitted.

    Args:
        traced: From ``haq.network.graph.trace``.
        widths: Of it.
        images: (N, ...), on which answers are compared; see ``haq.distillation.kd.divergence``.
        sample: What one forward takes.
        on_place: Called with places that are done, and all of them.

    Returns:
        First layer of each group to the divergence of each of its shares; what measured worse with
        more channels, which is noise, counts as it does with fewer.
    """
    reference, scores = answers(traced, images), channel_scores(traced, widths.channels, images)
    damage: dict[str, dict[float, float]] = {}
    places = [(group.name, share) for group in widths.groups for share in group.shares]
    for done, (name, share) in enumerate(places, 1):
        value = 0.0
        if share < 1:
            network, _ = without(traced, widths, scores, {name: share}, images, sample)
            value = float(total_divergence(answers(network, images), reference))
        row = damage.setdefault(name, {})
        row[share] = max([value, *row.values()])
        if on_place:
            on_place(done, len(places))
    return damage
