"""Correction of a quantized network's statistics without training or labels.

It takes one forward of a few hundred images, which makes it the cheap evaluation of a search. What
it leaves is a quantized network like any other: the same tensors under the same names.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.network.capture import evaluating
from haq.network.graph import Graph
from haq.quantization.fake_quant import QuantConv2d, QuantLinear
from haq.training.numerics import has_bfloat16

FURTHEST = 2.0
"""By how much the step of a channel's weights may change."""


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
