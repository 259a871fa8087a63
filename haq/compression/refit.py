"""Least squares: layers that lost channels learn to give what they gave, from those left.

Source: He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks",
arXiv:1707.06168, section 3.1, step 2; here with an offset, and one layer after the other on what
the layers before it give by then.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from haq.compression.channels import Channels
from haq.network.capture import evaluating
from haq.network.inputs import Inputs, arguments

ROWS = 8192
"""Places of all images that a layer is fitted at, about."""

PULL = 1e-3
"""Of the mean square of the inputs: how strongly weights are held where they were."""


def refit(
    network: fx.GraphModule,
    original: fx.GraphModule,
    channels: Channels,
    lost: Tensor,
    images: Inputs,
) -> None:
    """Refit the layers of a network whose input channels went, in place.

    Each is given the weights with which it comes nearest to what it gives in the original network,
    in the channels that both have::

        least over W, b of  sum over places |W x + b - y|**2 + pull * |W - W now|**2

    The offset b goes into the layer's bias, or into the mean of the BatchNorm that follows. Layers
    that are called several times, depthwise and grouped ones stay as they are.

    Args:
        network: What ``haq.compression.filters.remove`` made of the original.
        original: Left as it is.
        channels: Of the original.
        lost: The groups of channels that were removed.
        images: (N, ...), without labels.
    """
    left = _fitted(network, channels, lost)
    if not left:
        return
    with torch.no_grad(), evaluating(network), evaluating(original):
        wanted = _Wanted(original, left)
        wanted.run(*arguments(original.graph, images))
        _Fit(network, wanted.results).run(*arguments(network.graph, images))


def _fitted(network: fx.GraphModule, channels: Channels, lost: Tensor) -> dict[str, Tensor]:
    """Return the layers that are fitted, each with the outputs that are left to it."""
    calls = Counter(str(n.target) for n in network.graph.nodes if n.op == "call_module")
    left = {}
    for name, read in channels.inputs.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        fewer = bool(torch.isin(channels.groups(read), lost).any())
        if fewer and calls[name] == 1 and _is_plain(layer):
            gone = torch.isin(channels.groups(channels.outputs[name]), lost)
            left[name] = (~gone).nonzero().flatten()
    return left


def _is_plain(layer: nn.Conv2d | nn.Linear) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return (
        layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )


class _Run(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # takes seconds, and is not shown


class _Wanted(_Run):
    """Notes what layers give, at the places that they are fitted at."""

    def __init__(self, module: fx.GraphModule, left: Mapping[str, Tensor]):
        super().__init__(module)
        self.left, self.results = left, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = str(n.target)
        if n.op == "call_module" and name in self.left:
            rows = _rows_given(result, self.fetch_attr(name))
            self.results[name] = rows[:, self.left[name]]
        return result


class _Fit(_Run):
    """Fits layers as they are met, so that each sees what those before it give by then."""

    def __init__(self, module: fx.GraphModule, wanted: Mapping[str, Tensor]):
        super().__init__(module)
        self.wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module" and str(n.target) in self.wanted:
            (read, *_), _ = self.fetch_args_kwargs_from_env(n)
            layer = self.fetch_attr(str(n.target))
            _fit(layer, self._norm_after(n), _rows_read(read, layer), self.wanted[str(n.target)])
        return super().run_node(n)

    def _norm_after(self, node: fx.Node) -> _BatchNorm | None:
        users = [user for user in node.users if user.op == "call_module"]
        norm = self.fetch_attr(str(users[0].target)) if len(node.users) == len(users) == 1 else None
        alone = isinstance(norm, _BatchNorm) and norm.running_mean is not None
        return norm if alone else None


def _places(images: int, count: int) -> Tensor:
    """Return at which places of every image a layer is fitted."""
    chosen = min(count, max(1, ROWS // images))
    generator = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=generator)[:chosen]


def _rows_given(result: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer gives at the places it is fitted at, (places, outputs)."""
    if isinstance(layer, nn.Linear):
        rows = result.reshape(len(result), -1, result.shape[-1])
    else:
        rows = result.flatten(2).transpose(1, 2)
    return rows[:, _places(*rows.shape[:2])].flatten(0, 1).float()


def _rows_read(read: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer multiplies with its weights at these places, (places, products)."""
    if isinstance(layer, nn.Linear):
        rows = read.reshape(len(read), -1, read.shape[-1])
        return rows[:, _places(*rows.shape[:2])].flatten(0, 1).float()
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
    parts = []
    for part in read.float().split(16):
        patches = functional.unfold(
            part, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        places = _places(len(read), patches.shape[-1])
        parts.append(patches[:, :, places].transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _fit(layer: nn.Module, norm: _BatchNorm | None, read: Tensor, wanted: Tensor) -> None:
    """Give a layer the weights that come nearest to what is wanted of it."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    now = weight.flatten(1).double()
    mean, aim = read.mean(0).double(), wanted.mean(0).double()
    apart = (read - mean.float()).double()
    error = (wanted - aim.float()).double() - apart @ now.T
    square = apart.T @ apart
    square.diagonal().add_(PULL * float(square.diagonal().mean()) + 1e-12)
    change = torch.linalg.solve(square, apart.T @ error).T
    if not bool(change.isfinite().all()):
        return
    fitted = now + change
    offset = aim - fitted @ mean
    if isinstance(bias, Tensor):
        bias.copy_(offset)
    elif norm is not None:
        assert norm.running_mean is not None
        norm.running_mean.sub_(offset)
    weight.copy_(fitted.reshape(weight.shape))
