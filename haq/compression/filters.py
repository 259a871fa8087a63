"""Filter pruning: whole channels are taken out of a network, and its layers become smaller."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.allocation.widths import kept_channels
from haq.compression.channels import KEPT, Channels, Family, channels_of, families
from haq.errors import HaqError, ModelError, look_up
from haq.network.capture import Sample


def prunable(traced: fx.GraphModule, sample: Sample) -> tuple[Family, ...]:
    """Return the layers of a captured network whose output channels can be removed."""
    return families(channels_of(traced, sample))


def kept_count(share: float, channels: int, layer: str, multiple: int = 1) -> int:
    """Return how many of a layer's channels stay: the nearest multiple, at least one, or all.

    Raises:
        HaqError: The share is not in (0, 1], or none would stay.

    >>> kept_count(0.75, 10, "conv1"), kept_count(0.25, 2, "conv1")
    (8, 1)
    >>> [kept_count(share, 64, "conv1", multiple=16) for share in (0.8, 0.5, 0.01)]
    [48, 32, 16]
    """
    if not 0 < share <= 1:
        raise HaqError(f"layer {layer!r}: a share of channels that stay is above 0 and at most 1, "
                       f"not {share:g}")  # fmt: skip
    if multiple > 1:
        return min(channels, max(multiple, kept_channels(share, channels, multiple)))
    count = kept_channels(share, channels)
    if count < 1:
        raise HaqError(
            f"keeping {share:g} of the {channels} channels of layer {layer!r} would empty it; "
            f"give {0.5 / channels:.3g} or more, or leave the layer out"
        )
    return count


def keep_largest(
    traced: fx.GraphModule, sample: Sample, shares: Mapping[str, float], multiple: int = 1
) -> dict[str, list[int]]:
    """Return the channels that stay where the filters with the smallest L1 norms are removed.

    Channels that go together are compared by the sum of their filters' norms in all their layers.

    Args:
        traced: From ``haq.network.graph.trace``.
        sample: What one forward takes.
        shares: Layer to the share of its channels that stays, in (0, 1]; any layer of a family
            stands for all of them.
        multiple: Of which the number of channels that stay is one, where not all stay.

    Returns:
        Layer, for the first layer of each family, to the places of the output channels that stay,
        rising: what ``remove`` takes.

    Raises:
        HaqError: A layer's channels cannot be removed, or none would stay.
    """
    channels = channels_of(traced, sample)
    chosen = _chosen(families(channels), channels, shares)
    norms = _norms(traced, channels)
    kept = {}
    for family, share in chosen.values():
        count = kept_count(share, len(family.groups), family.name, multiple)
        groups = sorted(family.groups, key=lambda group: (-norms[group], group))
        stays = set(groups[:count])
        own = channels.groups(channels.outputs[family.name]).tolist()
        # Channels of this layer that belong to another family stay, as far as this one goes.
        mine = set(family.groups)
        kept[family.name] = [at for at, g in enumerate(own) if g in stays or g not in mine]
    return kept


def _chosen(
    known: Sequence[Family], channels: Channels, shares: Mapping[str, float]
) -> dict[str, tuple[Family, float]]:
    by_layer = {layer: family for family in known for layer in family.layers}
    chosen: dict[str, tuple[Family, float]] = {}
    for name, share in shares.items():
        if name in channels.outputs and name not in by_layer:
            raise HaqError(
                f"the channels of layer {name!r} cannot be removed: {_why(name, channels)} "
                f"(those that can: {', '.join(by_layer)})"
            )
        family = look_up(by_layer, "layer", name)
        other = chosen.setdefault(family.name, (family, share))[1]
        if other != share:
            raise HaqError(
                f"layers {', '.join(family.layers)} have their channels in common, so they keep "
                f"the same share of them, not {other:g} and {share:g}"
            )
    return chosen


def _why(name: str, channels: Channels) -> str:
    if name in channels.depthwise:
        return "it is depthwise, and has those of the layer before it"
    return "the output, or an operation that mixes channels, needs all of them"


def _norms(traced: fx.GraphModule, channels: Channels) -> dict[int, float]:
    """Return the L1 norm of the filters of each group of channels, over all their layers."""
    norms: dict[int, float] = {}
    for name, numbers in channels.outputs.items():
        if name not in channels.depthwise:
            weight = _weight(traced, name)
            lengths = weight.detach().abs().flatten(1).sum(1).tolist()
            for group, length in zip(channels.groups(numbers).tolist(), lengths, strict=True):
                norms[group] = norms.get(group, 0.0) + length
    return norms


def _weight(traced: fx.GraphModule, name: str) -> Tensor:
    weight = traced.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def remove(
    traced: fx.GraphModule,
    sample: Sample,
    keep: Mapping[str, Sequence[int]],
    channels: Channels | None = None,
) -> fx.GraphModule:
    """Return a copy of a captured network without some channels.

    Its layers are smaller; its modules and parameters keep their names. The output is that of the
    network in which all that reads these channels has zeros for weights.

    Args:
        traced: From ``haq.network.graph.trace``; left as it is.
        sample: What one forward takes.
        keep: Layer to the places of its output channels that stay; with the others goes what
            belongs to them elsewhere.
        channels: Of the network, where they are known.

    Raises:
        HaqError: A channel cannot be removed, or a layer would be left without channels.
    """
    channels = channels or channels_of(traced, sample)
    gone = _gone(channels, keep)
    pruned = copy.deepcopy(traced)
    for name in channels.outputs.keys() | channels.inputs.keys():
        module = pruned.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        outputs = _stays(channels, channels.outputs.get(name), gone, module.weight.shape[0], name)
        inputs = _stays(channels, channels.inputs.get(name), gone, _inputs(module), name)
        _shrink(module, outputs, inputs, name in channels.depthwise)
    for name, numbers in channels.norms.items():
        _shrink_norm(pruned.get_submodule(name), _alive(channels, numbers, gone))
    for node in pruned.graph.nodes:
        if node.name in channels.pads:
            _shrink_pad(node, _alive(channels, channels.pads[node.name], gone))
        elif node.name in channels.sizes:
            _shrink_size(node, channels.sizes[node.name], channels, gone)
    pruned.graph.lint()
    pruned.recompile()
    return pruned


def _gone(channels: Channels, keep: Mapping[str, Sequence[int]]) -> Tensor:
    """Return the groups of channels that are removed."""
    gone: set[int] = set()
    for name, places in keep.items():
        numbers = look_up(channels.outputs, "layer", name)
        _check_places(name, places, len(numbers))
        removed = torch.ones(len(numbers), dtype=torch.bool)
        removed[list(places)] = False
        groups = channels.groups(numbers[removed])
        if bool((groups == KEPT).any()):
            raise HaqError(
                f"the channels of layer {name!r} cannot be removed: {_why(name, channels)}"
            )
        gone |= set(groups.tolist())
    return torch.tensor(sorted(gone), dtype=torch.int64)


def _check_places(name: str, places: Sequence[int], count: int) -> None:
    inside = all(type(place) is int and 0 <= place < count for place in places)
    if not places or not inside or len(set(places)) != len(places):
        raise HaqError(
            f"layer {name!r} has {count} channels: name those that stay, at least one, each once, "
            f"by their places 0 to {count - 1}"
        )


def _alive(channels: Channels, numbers: Tensor, gone: Tensor) -> Tensor:
    return ~torch.isin(channels.groups(numbers), gone)


def _stays(
    channels: Channels, numbers: Tensor | None, gone: Tensor, count: int, name: str
) -> Tensor:
    alive = torch.ones(count, dtype=torch.bool)
    alive = alive if numbers is None else _alive(channels, numbers, gone)
    if not bool(alive.any()):
        raise HaqError(f"pruning would empty layer {name!r}; keep more channels before it")
    return alive


def _inputs(module: nn.Conv2d | nn.Linear) -> int:
    return module.in_channels if isinstance(module, nn.Conv2d) else module.in_features


def _shrink(
    module: nn.Conv2d | nn.Linear, outputs: Tensor, inputs: Tensor, depthwise: bool
) -> None:
    weight = _chosen_rows(module.weight, outputs)
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1
    if not grouped:
        weight = _chosen_rows(weight, inputs, 1)
    layout = torch.channels_last if _is_channels_last(module.weight) else torch.contiguous_format
    own = weight.clone(memory_format=layout)
    module.weight = nn.Parameter(own, module.weight.requires_grad)
    if module.bias is not None:
        module.bias = nn.Parameter(_chosen_rows(module.bias, outputs), module.bias.requires_grad)
    counts = int(outputs.sum()), int(inputs.sum())
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = counts
        module.groups = counts[1] if depthwise else module.groups
    else:
        module.out_features, module.in_features = counts


def _chosen_rows(value: Tensor, alive: Tensor, axis: int = 0) -> Tensor:
    # By place, not by mask: of a tensor without memory a mask cannot tell how much is left.
    return value.detach().index_select(axis, alive.nonzero().flatten().to(value.device))


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)


def _shrink_norm(module: nn.Module, alive: Tensor) -> None:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    module.num_features = int(alive.sum())
    for name in ("weight", "bias"):
        value = getattr(module, name)
        if value is not None:
            setattr(module, name, nn.Parameter(_chosen_rows(value, alive), value.requires_grad))
    for name in ("running_mean", "running_var"):
        value = getattr(module, name)
        if value is not None:
            setattr(module, name, _chosen_rows(value, alive))


def _shrink_pad(node: fx.Node, alive: Tensor) -> None:
    """Let a node that adds channels of zeros add as many as are left."""
    given: Any = node.args[1]
    widths = [*given, 0][:6]
    widths[4] = int(alive[: widths[4]].sum())
    widths[5] = int(alive[len(alive) - widths[5] :].sum())
    node.args = (node.args[0], widths, *node.args[2:])


def _shrink_size(node: fx.Node, numbers: Tensor, channels: Channels, gone: Tensor) -> None:
    """Let a node that gives a shape give the one without the channels that are gone."""
    alive = _alive(channels, numbers, gone)
    given: Any = node.args[1]
    left = [_left(alive, axis) for axis in range(alive.dim())]
    if math.prod(left) != int(alive.sum()):
        raise ModelError(
            f"the channels asked for cannot be removed: {node.name} gives a shape that they do "
            "not fill evenly; keep the same share of every part, or leave the layers before it out"
        )
    sizes = [
        count if isinstance(size, int) and size > 0 and count < whole else size
        for size, count, whole in zip(given, left, alive.shape, strict=True)
    ]
    node.args = (node.args[0], sizes, *node.args[2:])


def _left(alive: Tensor, axis: int) -> int:
    return int(alive.movedim(axis, 0).flatten(1).any(1).sum())
