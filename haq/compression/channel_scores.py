"""What the network's answer loses with each channel, to second order, for all of them at once.

A layer that reads a channel no more, but adds its mean instead, gives something else by d; with the
gradient g of randomly signed outputs, as in ``haq.quantization.second_order``,

    score = 1/2 * mean over images of <g, d>**2        d = values of the channel - their mean

Source: Molchanov et al., "Importance estimation for neural network pruning", arXiv:1906.10771,
for squared products of gradients and activations.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, fx, nn

from haq.compression.channels import Channels
from haq.distillation.kd import signs_of_curvature
from haq.network.capture import evaluating
from haq.network.inputs import Inputs, call
from haq.network.outputs import float_tensors


def channel_scores(
    traced: fx.GraphModule, channels: Channels, images: Inputs, seed: int = 0
) -> dict[int, float]:
    """Return what each group of channels is worth, by its number in ``Channels.groups``.

    Args:
        traced: From ``haq.network.graph.trace``.
        channels: Of it.
        images: (N, ...); some hundred.
        seed: Of the signs.
    """
    names = [name for name in channels.inputs if name not in channels.depthwise]
    generator = torch.Generator().manual_seed(seed)
    scores: dict[int, float] = {}
    for part in images.split(64):
        with _watched(traced, names) as reads, torch.enable_grad(), evaluating(traced):
            answers = float_tensors(call(traced, part))
            goal = torch.stack(
                [(signs_of_curvature(a.detach(), generator) * a.float()).sum() for a in answers]
            ).sum()
            values = [(name, value) for name in names for value in reads[name]]
            slopes = torch.autograd.grad(
                goal, [value for _, value in values], materialize_grads=True, allow_unused=True
            )
        for (name, value), slope in zip(values, slopes, strict=True):
            convolution = isinstance(traced.get_submodule(name), nn.Conv2d)
            worth = _worth(value.detach(), slope, 1 if convolution else -1, len(part))
            groups = channels.groups(channels.inputs[name]).tolist()
            for group, amount in zip(groups, worth.tolist(), strict=True):
                scores[group] = scores.get(group, 0.0) + amount / len(images)
    return scores


@contextmanager
def _watched(traced: fx.GraphModule, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Let every layer read a copy of its own, which is kept."""
    reads: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read = args[0].clone() if args[0].requires_grad else args[0].detach().clone()
        reads[name].append(read.requires_grad_())
        return read, *args[1:]

    with ExitStack() as stack:
        for name in names:
            handle = traced.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: hook(name, args)
            )
            stack.callback(handle.remove)
        yield reads


def _worth(value: Tensor, slope: Tensor, axis: int, images: int) -> Tensor:
    """Return what each channel is worth, summed over the images: (channels,)."""
    value, slope = value.movedim(axis, -1), slope.movedim(axis, -1)
    count = value.shape[-1]
    apart = value - value.reshape(-1, count).mean(0)
    products = (apart * slope).reshape(images, -1, count).sum(1)
    return products.square().sum(0) / 2
