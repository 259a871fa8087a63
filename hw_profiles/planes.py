"""Layers of any number of axes as the 2-D convolutions that an array computes in their place."""

import math
from collections.abc import Iterator
from dataclasses import replace

from haq.network.layers import Layer, Sizes


def planes(layer: Layer) -> Iterator[Layer]:
    """Yield a layer as 2-D convolutions, for each size it is called with.

    Multiply-accumulates stay as many. A 3-D convolution is one 2-D convolution for each output
    plane: the planes that its kernel sees are so many more input channels. A transposed convolution
    is a pointwise one with an output channel for each output and tap; adding up what falls on the
    same place, and writing it, is not counted.

    >>> video = Layer("video", "conv", 3, 8, kernel=(3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2),
    ...     in_size=(4, 16, 16), out_size=(4, 8, 8))
    >>> [(part.c_in, part.kernel, part.out_size, part.calls) for part in planes(video)]
    [(9, (5, 5), (8, 8), 4)]
    """
    for part in layer.by_size():
        yield _plane(as_products(part))


def as_products(layer: Layer) -> Layer:
    """Return a transposed convolution as a pointwise one, any other layer as it is."""
    if layer.kind != "transposed":
        return layer
    ones = (1,) * len(layer.kernel)
    return replace(
        layer, kind="pointwise" if layer.groups == 1 else "grouped",
        c_out=layer.c_out * math.prod(layer.kernel), kernel=ones, stride=ones,
        padding=(0,) * len(ones), out_size=layer.in_size,
    )  # fmt: skip


def products(layer: Layer) -> int:
    """Return the multiply-accumulates of all calls of a layer, for one image.

    >>> products(Layer("a", "conv", 3, 8, (3, 3), in_size=(4, 4), out_size=(4, 4)))
    3456
    """
    return sum(_products(as_products(part)) for part in layer.by_size())


def _products(layer: Layer) -> int:
    taps = layer.c_in // layer.groups * math.prod(layer.kernel)
    return layer.calls * layer.c_out * math.prod(layer.out_size) * taps


def _plane(layer: Layer) -> Layer:
    if len(layer.kernel) == 2:
        return layer
    depth = layer.kernel[0]
    # Several planes of each channel: no depthwise convolution of an array any more.
    kind = "grouped" if layer.kind == "depthwise" and depth > 1 else layer.kind
    return replace(
        layer, kind=kind, c_in=layer.c_in * depth, kernel=layer.kernel[1:],
        stride=layer.stride[1:], padding=layer.padding[1:], in_size=layer.in_size[1:],
        out_size=layer.out_size[1:], calls=layer.calls * layer.out_size[0],
    )  # fmt: skip


def pair(sizes: Sizes) -> tuple[int, int]:
    """Return the two sizes of a plane."""
    height, width = sizes
    return height, width
