"""Correction of a quantized network's statistics without training or labels.

It takes one forward of a few hundred images, which makes it the cheap evaluation of a search. What
it leaves is a quantized network like any other: the same tensors under the same names.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.network.capture import evaluating
from haq.network.graph import Graph
from haq.network.inputs import Inputs, counted, mask_of
from haq.network.modules import Product, along_weight
from haq.network.sites import Point, insert
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import Quantized
from haq.quantization.interpreter import PartialRun
from haq.quantization.quantizer import levels
from haq.training.numerics import has_bfloat16

FURTHEST = 2.0
"""By how much rounding changes the spread of a channel; where it changed by more, something else is
the matter, and the spread stays as it is."""

FEW = 32
"""Below so many images moments are noisy, so that only a share of a difference is corrected."""

ALIVE = 2**26
"""Values (of 4 bytes) of all images that are kept between two forwards."""

LARGEST = 2**23
"""Values of the largest tensor of one forward."""


class Moments(NamedTuple):
    """Mean and variance of every channel, (channels,) each.

    Attributes:
        mean: Of all images and places.
        var: About the mean.
        trust: From 0 to 1: which share of a difference in such moments is to be corrected.
    """

    mean: Tensor
    var: Tensor
    trust: float = 1.0


Statistics = Mapping[str, Moments]
"""Node of a traced graph to the moments of what is corrected there: of what a BatchNorm reads, and
of what leaves a layer that none follows."""


class _Site(NamedTuple):
    """Where statistics are corrected: at a BatchNorm, or behind a layer that none follows."""

    node: str
    module: str
    norm: bool


def note_of_few(count: int) -> str | None:
    """Return what a user should be told where so many inputs are all there are; None if enough."""
    if count >= FEW:
        return None
    return (
        f"statistics are corrected on {count} input{'s' if count > 1 else ''}, and in part only: "
        f"{FEW} or more make the quantized network better"
    )


def statistics(graph: Graph, images: Inputs, clips: Clips | None = None) -> Statistics:
    """Return the float network's statistics on some images, for ``correct``.

    Args:
        graph: The float network's.
        images: What the network takes, (N, ...). Tokens that an ``attention_mask`` leaves out do
            not count, where a layer gives a row for each token.
        clips: From ``calibrate``: activations beyond their clip at 8 bits count as if they were on
            it, so that an outlier among the images does not decide. Tensors without clips count as
            they are.
    """
    sites = _sites(graph.traced)
    running = {site.node: _Running() for site in sites}
    with _quickly(graph.traced):
        run = PartialRun(_clipped(graph, clips) if clips else graph.traced)
        for part in images.split(_part(run, images)):
            values, position = run.begin(part), 0
            for site in sites:
                stop = _stop(run, site)
                run.advance(values, position, stop)
                running[site.node].add(*_seen(run, values, site), mask_of(part))
                position = stop
    return {node: several.moments() for node, several in running.items()}


def correct(model: fx.GraphModule, graph: Graph, floats: Statistics, images: Inputs) -> None:
    """Bring every channel's mean and variance back to the float network's, in place.

    Rounding shifts and stretches what a layer gives. Where a BatchNorm follows, its running
    statistics take up the difference between the two networks on the same images::

        ratio = variance of the quantized network / variance of the float network
        mean' = mean of the quantized network - sqrt(ratio) * (mean of the float network - mean)
        var'  = ratio * (var + eps) - eps

    Elsewhere the layer's bias takes up the mean and the step of its weights the variance, where
    every channel has one, so that the codes stay. Of few images only a share of the difference is
    corrected. Because only differences count, the images need
    not be augmented as in training, unlike where statistics are measured afresh.

    Args:
        model: From ``quantize`` on the graph; what it has in place of the float network's
            statistics and biases is replaced, so that correcting twice changes nothing.
        graph: The float network's.
        floats: From ``statistics``.
        images: Those that ``statistics`` saw.

    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction",
    arXiv:1906.04721, section 4.2, for the bias.
    """
    with _quickly(model):
        walk = _Walk(model, images)
        for site in _sites(graph.traced):
            module, seen = model.get_submodule(site.module), walk.moments(site)
            if isinstance(module, _BatchNorm):
                origin = graph.traced.get_submodule(site.module)
                assert isinstance(origin, _BatchNorm)
                _correct_norm(module, origin, floats[site.node], seen)
            else:
                assert isinstance(module, Product)
                alone = not _is_shared(model, site.module)
                walk.change(site, *_correct_layer(module, floats[site.node], seen, alone))


@contextmanager
def _quickly(model: nn.Module) -> Iterator[None]:
    # Without the cache of autocast, which would go on with weights that were changed since.
    quick = has_bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, quick, cache_enabled=False):
        with evaluating(model):
            yield


def _sites(traced: fx.GraphModule) -> list[_Site]:
    """Return where statistics are corrected, in order of execution.

    A module that is called twice has no moments of its own; a BatchNorm that normalises with the
    statistics of each batch needs no correction.
    """
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    modules = {node: traced.get_submodule(str(node.target)) for node in calls}
    several = [id(module) for module in modules.values()]
    sites = []
    for node, module in modules.items():
        norm = isinstance(module, _BatchNorm) and module.running_mean is not None
        followed = any(isinstance(modules.get(user), _BatchNorm) for user in node.users)
        if several.count(id(module)) == 1:
            if norm or (isinstance(module, Product) and not followed):
                sites.append(_Site(node.name, str(node.target), norm))
    return sites


def _clipped(graph: Graph, clips: Clips) -> fx.GraphModule:
    """Return the float network with every tensor that is quantized cut off at its clip."""

    def clip(point: Point) -> nn.Module:
        high, skew = clips.acts[point.tensor][8], clips.skew(point.tensor, 8)
        lo, hi = levels(8, point.signed, skew)
        return nn.Hardtanh(float(high * lo / hi), float(high))

    known = [point for point in graph.points if point.tensor in clips.acts]
    return insert(copy.deepcopy(graph.traced), known, clip).eval()


def _part(run: PartialRun, images: Inputs) -> int:
    """Return how many images to run at once."""
    return max(1, LARGEST // max(run.sizes(images[:2]).values()))


def _stop(run: PartialRun, site: _Site) -> int:
    """Return up to which node to run a graph for the values that a site is about."""
    return run.place[site.node] + (0 if site.norm else 1)


def _seen(run: PartialRun, values: Mapping[fx.Node, Any], site: _Site) -> tuple[Tensor, int]:
    """Return the values that a site is about, and the axis of their channels."""
    node = run.nodes[run.place[site.node]]
    if site.norm:
        return values[node.all_input_nodes[0]], 1
    return values[node], channel_axis(run.module.get_submodule(site.module))


def channel_axis(module: nn.Module) -> int:
    """Return which axis of what a layer gives counts its channels."""
    return -1 if isinstance(module, nn.Linear) else 1


class _Walk:
    """A run of a graph on all images from site to site, so that what follows sees the correction.

    Between two sites all values are kept that are still needed; where they are too many, the run
    goes back to an earlier node.
    """

    def __init__(self, model: fx.GraphModule, images: Inputs):
        self.run = PartialRun(model)
        self.limit = ALIVE / len(images)
        self.alive = self.run.alive(images[:2])
        parts = images.split(_part(self.run, images))
        self.parts, self.masks = [self.run.begin(p) for p in parts], [mask_of(p) for p in parts]
        self.position = 0

    def moments(self, site: _Site) -> Moments:
        """Return the moments of the values that a site is about."""
        stop, running = _stop(self.run, site), _Running()
        fitting = [p for p in range(self.position, stop + 1) if self.alive[p] <= self.limit]
        middle = max(fitting, default=self.position)
        for number, values in enumerate(self.parts):
            self.run.advance(values, self.position, middle)
            ahead = dict(values)
            self.run.advance(ahead, middle, stop)
            running.add(*_seen(self.run, ahead, site), self.masks[number])
            self.parts[number] = values
        self.position = middle
        return running.moments()

    def change(self, site: _Site, scale: Tensor, shift: Tensor) -> None:
        """Change what a layer gave before it was corrected."""
        node = self.run.nodes[self.run.place[site.node]]
        for values in self.parts:
            if node in values:
                shape = [1] * values[node].dim()
                shape[channel_axis(self.run.module.get_submodule(site.module))] = -1
                values[node] = values[node] * scale.view(shape) + shift.view(shape)


def _correct_norm(norm: _BatchNorm, origin: _BatchNorm, floats: Moments, seen: Moments) -> None:
    assert origin.running_mean is not None and origin.running_var is not None
    ratio = _ratio(seen.var, floats.var) ** seen.trust
    away = floats.mean - origin.running_mean
    mean = seen.mean - ratio.sqrt() * away
    norm.running_mean = torch.lerp(origin.running_mean, mean, seen.trust)
    norm.running_var = ratio * (origin.running_var + norm.eps) - norm.eps


def _is_shared(model: fx.GraphModule, layer: str) -> bool:
    """Return whether something else reads a layer's weights too."""
    return bool(model.graph.find_nodes(op="get_attr", target=f"{layer}.weight", sort=False))


def _correct_layer(
    module: Product, floats: Moments, seen: Moments, alone: bool
) -> tuple[Tensor, Tensor]:
    """Correct a layer, and return by what its results are multiplied and what is added."""
    scale = torch.ones_like(seen.var)  # (channels,)
    if alone and isinstance(module, Quantized) and module.weight_clip.numel() > 1:
        scale = _ratio(floats.var, seen.var) ** (seen.trust / 2)
        module.weight.mul_(along_weight(scale, module))
        module.weight_clip = module.weight_clip * scale
    if module.bias is None:
        return scale, torch.zeros_like(scale)
    # About the mean, so that a spread that is corrected in part moves nothing.
    shift = torch.lerp(seen.mean, floats.mean, seen.trust) - scale * seen.mean
    module.bias.copy_(scale * module.bias + shift)
    return scale, shift


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return the ratio of two variances; 1 where rounding does not explain it."""
    ratio = above / below.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where((ratio > FURTHEST**-2) & (ratio < FURTHEST**2), ratio, 1.0)


class _Running:
    """Mean and variance of values that come in parts."""

    def __init__(self) -> None:
        self.count = self.images = 0
        self.mean = self.squares = torch.zeros(())  # squares: sum of squared differences

    def add(self, values: Tensor, axis: int, mask: Tensor | None = None) -> None:
        self.images += len(values)
        values = counted(values, mask) if axis == -1 else values
        part, count = moments(values, axis), values.numel() // values.shape[axis]
        total = self.count + count
        away = part.mean - self.mean
        self.squares = self.squares + count * part.var + away.square() * self.count * count / total
        self.mean = self.mean + away * count / total
        self.count = total

    def moments(self) -> Moments:
        # Places of one image are alike: four times as many tell twice as much.
        seen = self.images * (self.count / self.images) ** 0.5
        return Moments(self.mean, self.squares / self.count, min(1.0, seen / FEW))


def moments(values: Tensor, axis: int) -> Moments:
    """Return mean and variance over all axes but one, in float32."""
    # As rows, because reductions over several axes take twice as long.
    rows = values.movedim(axis, -1).flatten(0, -2).float()  # (values, channels)
    mean = rows.mean(0)
    return Moments(mean, (rows - mean).square_().mean(0))


def restored(
    values: Tensor, like: Tensor, axis: int, trust: float, mean: bool = True, variance: bool = True,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return values that have each channel's mean and variance from others, in float32.

    Args:
        values: What a rounded layer gives.
        like: What the layer itself gives, of the same shape.
        axis: Of the channels.
        trust: From 0 to 1: which share of the differences is corrected.
        mean: Whether the mean is.
        variance: Whether the variance is, where rounding explains the difference.
        mask: Which tokens count, of rows for each token.
    """
    shape = [1] * values.dim()
    shape[axis] = -1
    now, then = (moments(counted(x, mask) if axis == -1 else x, axis) for x in (values, like))
    scale = _ratio(then.var, now.var) ** (trust / 2) if variance else torch.ones_like(now.var)
    shift = torch.lerp(now.mean, then.mean, trust) - scale * now.mean if mean else 0 * now.mean
    return values.float() * scale.view(shape) + shift.view(shape)
