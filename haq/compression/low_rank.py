"""Layers in the place of one that is nearly of low rank: fewer weights, nearly the same output."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haq.errors import HaqError, look_up


def rank_for_energy(values: Tensor, energy: float) -> int:
    """Return how many singular values hold a share of the sum of all squares.

    >>> rank_for_energy(torch.tensor([3.0, 1.0, 0.0]), 0.9)
    1
    """
    shares = values.double().square().cumsum(0)
    return int((shares < energy * shares[-1] * (1 - 1e-12)).sum()) + 1


class LowRankLinear(nn.Sequential):
    """Two linear layers of rank r in the place of one of m outputs and n inputs: r (m + n)."""

    @staticmethod
    def shapes(layer: nn.Linear, rank: int) -> "LowRankLinear":
        """Return the two layers without weights that mean anything."""
        return LowRankLinear(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        )


class SpatialSeparableConv(nn.Sequential):
    """A K x 1 and a 1 x K convolution in the place of a K x K one: r k (I + O) weights."""


class Tucker2Conv(nn.Sequential):
    """1 x 1, K x K and 1 x 1 in the place of a K x K one: I r_i + r_i r_o k^2 + r_o O weights."""


class DepthwiseSeparableConv(nn.Sequential):
    """Depthwise K x K and 1 x 1 in the place of a K x K one: I k^2 + I O weights."""


class TwoConv3x3(nn.Sequential):
    """Two 3 x 3 convolutions with a ReLU between them in the place of a 5 x 5 one."""


class Factors(NamedTuple):
    """A layer's weights as those of the layers that take its place.

    Attributes:
        weights: Of each layer, in order.
        lost: Length of the difference of the weights, or a bound of it.
    """

    weights: tuple[Tensor, ...]
    lost: float


def linear_factors(weight: Tensor, rank: int) -> Factors:
    """Return (r, n) and (m, r) whose product is nearest to ``weight`` (m, n)."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return Factors((root[:, None] * v[:rank], u[:, :rank] * root), float(s[rank:].norm()))


def separable_factors(weight: Tensor, rank: int) -> Factors:
    """Return (r, I, k, 1) and (O, r, 1, k) that are nearest to ``weight`` (O, I, k, k) together."""
    outputs, inputs, height, width = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    first = (u[:, :rank] * root).T.reshape(rank, inputs, height, 1)
    second = (root[:, None] * v[:rank]).reshape(rank, outputs, 1, width).transpose(0, 1)
    return Factors((first, second.contiguous()), float(s[rank:].norm()))


def tucker_factors(weight: Tensor, ranks: tuple[int, int]) -> Factors:
    """Return (r_i, I, 1, 1), (r_o, r_i, k, k) and (O, r_o, 1, 1) near ``weight`` (O, I, k, k).

    The spaces are those of the unfoldings' largest singular values (HOSVD); what is lost is at most
    the root of the sum of both unfoldings' squared tails.
    """
    outer, inner = weight.flatten(1), weight.transpose(0, 1).flatten(1)
    u_out, s_out, _ = torch.linalg.svd(outer, full_matrices=False)
    u_in, s_in, _ = torch.linalg.svd(inner, full_matrices=False)
    r_in, r_out = ranks
    a, b = u_in[:, :r_in], u_out[:, :r_out]
    core = torch.einsum("oikl,ia,ob->bakl", weight, a, b)
    lost = math.hypot(float(s_out[r_out:].norm()), float(s_in[r_in:].norm()))
    return Factors(
        (a.T[:, :, None, None].contiguous(), core, b[:, :, None, None].contiguous()), lost
    )


def depthwise_factors(weight: Tensor) -> Factors:
    """Return (I, 1, k, k) and (O, I, 1, 1) that are nearest to ``weight`` (O, I, k, k)."""
    outputs, inputs, *kernel = weight.shape
    u, s, v = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    root = s[:, :1].sqrt()  # (I, 1)
    maps = (root * v[:, 0]).reshape(inputs, 1, *kernel)
    mixed = (root * u[:, :, 0]).T.reshape(outputs, inputs, 1, 1)
    return Factors((maps, mixed.contiguous()), float(s[:, 1:].norm()))


class Plan(NamedTuple):
    """What takes the place of a layer: the kind and its ranks, all that the shapes depend on.

    Attributes:
        kind: Name in ``FACTORISED``.
        ranks: One for "linear" and "separable", those of inputs and outputs for "tucker", none for
            the others.
    """

    kind: str
    ranks: tuple[int, ...] = ()


def layers_for(layer: nn.Conv2d | nn.Linear, plan: Plan) -> nn.Sequential:
    """Return the layers that take a layer's place, with weights drawn at random.

    Args:
        layer: A convolution of one group and no dilation, or a linear layer.
        plan: Kind and ranks.
    """
    if isinstance(layer, nn.Linear):
        return LowRankLinear.shapes(layer, *plan.ranks)
    inputs, outputs, bias = layer.in_channels, layer.out_channels, layer.bias is not None
    (height, width) = layer.kernel_size
    stride, padding = _pair(layer.stride), _pair(layer.padding)
    more: Any = {"padding_mode": layer.padding_mode}
    if plan.kind == "separable":
        (rank,) = plan.ranks
        return SpatialSeparableConv(
            nn.Conv2d(
                inputs, rank, (height, 1), (stride[0], 1), (padding[0], 0), bias=False, **more
            ),
            nn.Conv2d(
                rank, outputs, (1, width), (1, stride[1]), (0, padding[1]), bias=bias, **more
            ),
        )
    if plan.kind == "tucker":
        before, behind = plan.ranks
        return Tucker2Conv(
            nn.Conv2d(inputs, before, 1, bias=False),
            nn.Conv2d(before, behind, (height, width), stride, padding, bias=False, **more),
            nn.Conv2d(behind, outputs, 1, bias=bias),
        )
    if plan.kind == "depthwise":
        return DepthwiseSeparableConv(
            nn.Conv2d(inputs, inputs, (height, width), stride, padding, groups=inputs, bias=False,
                      **more),
            nn.Conv2d(inputs, outputs, 1, bias=bias),
        )  # fmt: skip
    return TwoConv3x3(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, stride, 1, bias=bias),
    )


def factorised(layer: nn.Conv2d | nn.Linear, plan: Plan) -> nn.Sequential:
    """Return the layers that take a layer's place, with the weights that come nearest to it.

    "two3x3" has no such weights: its own are drawn at random and have to be learned.
    """
    layers = layers_for(layer, plan).to(layer.weight)
    if plan.kind == "two3x3":
        return layers
    weight = layer.weight.detach().double()
    if plan.kind == "linear":
        factors = linear_factors(weight, *plan.ranks)
    elif plan.kind == "separable":
        factors = separable_factors(weight, *plan.ranks)
    elif plan.kind == "tucker":
        factors = tucker_factors(weight, (plan.ranks[0], plan.ranks[1]))
    else:
        factors = depthwise_factors(weight)
    with torch.no_grad():
        for own, value in zip(layers, factors.weights, strict=True):
            _weight(own).copy_(value)
        last = layers[-1]
        assert isinstance(last, nn.Conv2d | nn.Linear)
        if layer.bias is not None and last.bias is not None:
            last.bias.copy_(layer.bias)
    return layers


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight


def _pair(values: Any) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def weights_of(layer: nn.Conv2d | nn.Linear, plan: Plan) -> int:
    """Return how many weights the layers in a layer's place have, without biases."""
    if isinstance(layer, nn.Linear):
        return plan.ranks[0] * (layer.in_features + layer.out_features)
    inputs, outputs = layer.in_channels, layer.out_channels
    height, width = layer.kernel_size
    if plan.kind == "separable":
        return plan.ranks[0] * (height * inputs + width * outputs)
    if plan.kind == "tucker":
        before, behind = plan.ranks
        return inputs * before + before * behind * height * width + behind * outputs
    if plan.kind == "depthwise":
        return inputs * height * width + inputs * outputs
    return 9 * inputs * outputs + 9 * outputs * outputs


KINDS: Mapping[str, str] = {
    "linear": "a linear layer",
    "separable": "a convolution with a kernel above 1 x 1",
    "tucker": "a convolution with a kernel above 1 x 1",
    "depthwise": "a convolution with a kernel above 1 x 1",
    "two3x3": "a 5 x 5 convolution with a padding of 2",
}
"""What can take the place of which layer."""


def check_factorisable(name: str, layer: nn.Module, kind: str) -> None:
    """Refuse a layer that a kind of factorisation is not for.

    Raises:
        HaqError: It is not; the message says what it is for.
    """
    look_up(KINDS, "factorisation", kind)
    if kind == "linear":
        suits = isinstance(layer, nn.Linear)
    else:
        suits = isinstance(layer, nn.Conv2d) and _plain(layer) and max(layer.kernel_size) > 1
    if kind == "two3x3" and suits:
        assert isinstance(layer, nn.Conv2d)
        suits = (layer.kernel_size, layer.padding) == ((5, 5), (2, 2))
    if not suits:
        raise HaqError(
            f"layer {name!r} cannot become {kind}: that is for {KINDS[kind]}"
            + ("" if kind == "linear" else ", of one group and without dilation")
        )


def _plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.dilation == (1, 1) and not isinstance(layer.padding, str)


def plan_for(
    name: str, layer: nn.Conv2d | nn.Linear, kind: str, ranks: Any = None, energy: float = 0.9
) -> Plan:
    """Return the plan of a layer: with the ranks given, or those that hold a share of its energy.

    Args:
        name: Of the layer, for the message.
        layer: With its weights.
        kind: In ``KINDS``.
        ranks: One number, or two for "tucker"; None to choose them.
        energy: Share of the sum of squared singular values that the ranks chosen hold.

    Raises:
        HaqError: The layer is not of that kind, a rank is out of range, or nothing is saved.
    """
    check_factorisable(name, layer, kind)
    if ranks is None and not 0 < energy <= 1:
        raise HaqError(f"energy {energy:g}: give a share above 0 and at most 1")
    chosen = _ranks(layer, kind, energy) if ranks is None else _given(ranks)
    plan, most = Plan(kind, chosen), _largest(layer, kind)
    if len(chosen) != len(most) or any(not 1 <= r <= m for r, m in zip(chosen, most, strict=False)):
        limits = " and ".join(f"1 to {limit}" for limit in most) or "none"
        raise HaqError(f"layer {name!r} cannot become {kind} with ranks {chosen}: give {limits}")
    count = weights_of(layer, plan)
    if count >= layer.weight.numel():
        raise HaqError(
            f"layer {name!r} as {kind} with ranks {list(chosen)} would have {count} weights, and "
            f"it has {layer.weight.numel()}: {_what_would_save(layer, kind)}"
        )
    return plan


def _given(ranks: Any) -> tuple[int, ...]:
    numbers = (ranks,) if isinstance(ranks, int) else tuple(ranks)
    return tuple(number if type(number) is int else 0 for number in numbers)


def _largest(layer: nn.Conv2d | nn.Linear, kind: str) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (min(layer.in_features, layer.out_features),)
    height, width = layer.kernel_size
    if kind == "separable":
        return (min(layer.in_channels * height, layer.out_channels * width),)
    return (layer.in_channels, layer.out_channels) if kind == "tucker" else ()


def _ranks(layer: nn.Conv2d | nn.Linear, kind: str, energy: float) -> tuple[int, ...]:
    weight = layer.weight.detach().double()
    if kind == "linear":
        return (rank_for_energy(torch.linalg.svdvals(weight), energy),)
    if kind == "separable":
        outputs, inputs, height, width = weight.shape
        matrix = weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
        return (rank_for_energy(torch.linalg.svdvals(matrix), energy),)
    if kind == "tucker":
        sides = (weight.transpose(0, 1).flatten(1), weight.flatten(1))
        return tuple(rank_for_energy(torch.linalg.svdvals(side), energy) for side in sides)
    return ()


def break_even(layer: nn.Conv2d | nn.Linear, kind: str) -> int:
    """Return the largest rank with which fewer weights are left; 0 if there is none.

    For "tucker" both ranks are taken to be the same.
    """
    ranks, whole = len(_largest(layer, kind)), layer.weight.numel()
    most = min(_largest(layer, kind), default=0)
    counts = {rank: weights_of(layer, Plan(kind, (rank,) * ranks)) for rank in range(1, most + 1)}
    return max((rank for rank, count in counts.items() if count < whole), default=0)


def _what_would_save(layer: nn.Conv2d | nn.Linear, kind: str) -> str:
    if not _largest(layer, kind):
        return "leave it as it is"
    rank = break_even(layer, kind)
    return f"a rank of at most {rank} saves some" if rank else "no rank saves any"
