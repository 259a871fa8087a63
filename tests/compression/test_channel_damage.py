"""Who reads a layer's channels, and what it does to a network if some go."""

import torch

from haq.compression.widths import damage_of_channels, readers_of
from haq.models import build
from haq.network.graph import trace

SAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def captured():
    torch.manual_seed(0)
    return trace(build("digits_cnn").eval(), SAMPLE).traced


def test_readers_are_those_of_the_channels_through_depthwise_layers():
    readers = readers_of(captured(), SAMPLE)
    assert {name: (dict(one.consumers), set(one.depthwise)) for name, one in readers.items()} == {
        "conv1": ({"conv2": 1.0}, set()),
        "conv2": ({"conv3": 1.0, "conv4": 1.0}, {"conv3"}),
        "conv4": ({"linear": 1.0}, set()),
    }


def test_fewer_channels_do_more_and_a_channel_that_nobody_needs_does_nothing():
    traced = captured()
    with torch.no_grad():  # a quarter of conv1's filters has no effect
        traced.get_submodule("conv1").weight[:4] *= 1e-6
        traced.get_submodule("conv2").weight[:, :4] = 0
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    damage = damage_of_channels(traced, SAMPLE, images, ["conv1"])["conv1"]
    assert damage[1.0] == 0 and damage[0.75] < 1e-3 < damage[0.5] <= damage[0.25]
