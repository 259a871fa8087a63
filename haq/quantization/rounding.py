"""What a quantized network gains without training: corrected statistics, rounding in concert.

Neither needs labels. ``correct`` takes one forward of a few hundred images, which makes it the
cheap evaluation of a search; ``learn_rounding`` takes as long as some epochs of a thousand images.
What they leave is a quantized network like any other: the same tensors under the same names.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from haq.datasets import Split
from haq.distillation.kd import divergence
from haq.network.graph import Graph, evaluating
from haq.quantization.fake_quant import QuantConv2d, QuantLinear
from haq.quantization.quantizer import levels, step
from haq.training.train import Step, channels_last, has_bfloat16, imitate

FURTHEST = 2.0
"""By how much the step of a channel's weights may change."""

TEMPERATURE = 4.0
"""Of the logits that the rounding is learned from."""


class Moments(NamedTuple):
    """Mean and variance of every channel, (channels,) each."""

    mean: Tensor
    var: Tensor


Statistics = Mapping[str, Moments]
"""Node of a traced graph to the moments of what is corrected there: of what a BatchNorm reads, and
of what leaves a layer that none follows."""


def statistics(graph: Graph, images: Tensor) -> Statistics:
    """Return the float network's statistics on some images, for ``correct``."""
    watcher = _Watcher(graph.traced)
    watcher.run(images)
    return watcher.found


def correct(model: fx.GraphModule, graph: Graph, floats: Statistics, images: Tensor) -> None:
    """Bring every channel's mean and variance back to the float network's, in place.

    Rounding shifts and stretches what a layer gives. Where a BatchNorm follows, its running
    statistics take up the difference between the two networks on the same images::

        r     = spread of the quantized network / spread of the float network
        mean' = mean of the quantized network - r * (mean of the float network - mean)
        var'  = r**2 * var

    Elsewhere the layer's bias takes up the mean and the step of its weights the variance, where
    every channel has one, so that the codes stay. Because only differences count, the images need
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
    _Corrector(model, graph, floats).run(images)


class _Watcher(fx.Interpreter):
    """Runs a graph and notes the moments of what is corrected."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False
        self.found: dict[str, Moments] = {}
        self.calls = [node.target for node in module.graph.nodes if node.op == "call_module"]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        quick = has_bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, quick):
            with evaluating(self.module):
                return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module" or self.calls.count(n.target) > 1:
            return super().run_node(n)  # one that is called twice has no moments of its own
        module = self.submodules[str(n.target)]
        if isinstance(module, _BatchNorm):
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.norm(n.name, str(n.target), moments(args[0], 1))
            return super().run_node(n)
        result = super().run_node(n)
        if isinstance(module, nn.Conv2d | nn.Linear) and not self._normalised(n):
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            return self.layer(n.name, str(n.target), result, axis)
        return result

    def _normalised(self, node: fx.Node) -> bool:
        users = [user for user in node.users if user.op == "call_module"]
        return any(isinstance(self.submodules[str(user.target)], _BatchNorm) for user in users)

    def norm(self, node: str, name: str, seen: Moments) -> None:
        self.found[node] = seen

    def layer(self, node: str, name: str, result: Tensor, axis: int) -> Tensor:
        self.found[node] = moments(result, axis)
        return result


class _Corrector(_Watcher):
    """Corrects a quantized graph while running it, so that what follows sees the correction."""

    def __init__(self, module: fx.GraphModule, graph: Graph, floats: Statistics):
        super().__init__(module)
        self.origin, self.floats = graph.traced, floats

    def norm(self, node: str, name: str, seen: Moments) -> None:
        norm, origin = self.submodules[name], self.origin.get_submodule(name)
        assert isinstance(norm, _BatchNorm) and isinstance(origin, _BatchNorm)
        if origin.running_mean is None or origin.running_var is None:
            return  # it normalises with the statistics of the batch anyway
        floats = self.floats[node]
        ratio = (seen.var + norm.eps) / (floats.var + norm.eps)
        away = floats.mean - origin.running_mean
        norm.running_mean = seen.mean - ratio.sqrt() * away
        norm.running_var = ratio * origin.running_var

    def layer(self, node: str, name: str, result: Tensor, axis: int) -> Tensor:
        module = self.submodules[name]
        assert isinstance(module, nn.Conv2d | nn.Linear)
        if node not in self.floats:
            return result
        wanted, seen = self.floats[node], moments(result, axis)
        scale = torch.ones_like(seen.var)  # (channels,)
        if isinstance(module, QuantConv2d | QuantLinear) and module.weight_clip.numel() > 1:
            scale = (wanted.var / seen.var.clamp_min(1e-12)).sqrt().clamp(1 / FURTHEST, FURTHEST)
            module.weight.mul_(scale.view(-1, *(1,) * (module.weight.dim() - 1)))
            module.weight_clip = module.weight_clip * scale
        shift = wanted.mean - scale * seen.mean if module.bias is not None else torch.zeros(())
        if module.bias is not None:
            module.bias.copy_(scale * module.bias + shift)
        shape = [1] * result.dim()
        shape[axis] = -1
        return result * scale.view(shape) + shift.view(shape)


def moments(values: Tensor, axis: int) -> Moments:
    """Return mean and variance over all axes but one, in float32."""
    # As rows, because reductions over several axes take twice as long.
    rows = values.movedim(axis, -1).flatten(0, -2).float()  # (values, channels)
    mean = rows.mean(0)
    return Moments(mean, (rows - mean).square_().mean(0))


def learn_rounding(
    model: nn.Module,
    graph: Graph,
    split: Split,
    *,
    steps: int = 300,
    batch: int = 64,
    lr: float = 0.005,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Choose for every weight which of its two neighbouring levels it is rounded to, in place.

    All layers together learn to give the float network's answer. A weight moves between its
    neighbours, never beyond them::

        w = s * (below + u)        u in [0, 1], at first where the float weight lies

    The gradient passes straight through the rounding to u, which Adam moves. Nothing else changes,
    so the statistics must have been brought up to date by ``correct`` before.

    Args:
        model: From ``quantize``; nothing happens to layers that are float.
        graph: The float network's.
        split: Images, a thousand are enough; augmented anew each time, labels do not count.
        steps: Of Adam, each on one batch.
        batch: Images a step.
        lr: Of u, falling to zero along a cosine.
        seed: Decides the order of the images and their augmentation.
        on_step: Called after every step.

    Source: after Nagel et al., "Up or down? Adaptive rounding for post-training quantization",
    arXiv:2004.10568; there layer by layer.
    """
    layers = [part for part in model.modules() if isinstance(part, QuantConv2d | QuantLinear)]
    if steps == 0 or not layers:
        return
    between = [_Between(layer) for layer in layers]
    model.eval()
    places = []
    for layer, own in zip(layers, between, strict=True):
        parametrize.register_parametrization(layer, "weight", own)
        places.append(layer.get_parameter("parametrizations.weight.original"))
    optimizer = torch.optim.Adam(places, lr, betas=(0.9, 0.99))
    teacher = imitate(graph.traced)
    generator = torch.Generator().manual_seed(seed)
    for number, index in enumerate(_orders(len(split), batch, steps, generator)):
        images, _ = split.batch(index, generator)
        images = channels_last(images)
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * number / steps))
        with torch.autocast("cpu", torch.bfloat16, has_bfloat16()):
            answer = model(images)
        optimizer.zero_grad()
        loss = divergence(answer.float(), teacher(index, images), TEMPERATURE)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for place in places:
                place.clamp_(*_INSIDE)
        if on_step:
            on_step(Step(number + 1, steps, loss.item()))
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")


_INSIDE = (1e-3, 1 - 1e-3)  # of the gap: on the clip itself a rounding error could cut the gradient


class _Between(nn.Module):
    """From where each weight stands between its two levels to the weight."""

    def __init__(self, layer: QuantConv2d | QuantLinear):
        super().__init__()
        shape = (-1, *(1,) * (layer.weight.dim() - 1))
        self.size: Tensor = step(layer.weight_bits, layer.weight_clip, signed=True).view(shape)
        low, high = levels(layer.weight_bits, signed=True)
        self.below = (layer.weight.detach() / self.size).floor().clamp(low, high - 1)

    def forward(self, place: Tensor) -> Tensor:
        """Return the weights."""
        return self.size * (self.below + place)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return where the weights stand, in [0, 1]."""
        return (weight / self.size - self.below).clamp(*_INSIDE)


def _orders(images: int, batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    epochs = -(-steps * batch // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(epochs)])
    return list(torch.split(order[: steps * batch], batch))
