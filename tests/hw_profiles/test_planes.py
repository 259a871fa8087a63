"""What arrays of 2-D convolutions make of layers of other numbers of axes."""

import math

import pytest
import torch
from hw_targets import EVERY_TARGET
from torch import nn

from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.errors import TargetError
from haq.hw_profiles import load
from haq.hw_profiles.planes import planes
from haq.network.graph import trace

NETWORKS = {
    "rows": (lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2), (4, 16)),
    "rows, depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), (4, 16)),
    "video": (lambda: nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=1), (4, 5, 8, 8)),
    "video, depthwise": (lambda: nn.Conv3d(4, 4, 3, groups=4, padding=1), (4, 5, 8, 8)),
    "video, pointwise": (lambda: nn.Conv3d(4, 6, 1), (4, 5, 8, 8)),
    "transposed rows": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2), (4, 16)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 8, 8)),
    "transposed video": (lambda: nn.ConvTranspose3d(4, 6, 3, stride=2), (4, 3, 5, 5)),
}


@pytest.fixture(params=NETWORKS)
def layer(request):
    build, shape = NETWORKS[request.param]
    return trace(nn.Sequential(build(), nn.ReLU()), torch.zeros(1, *shape)).layers[0]


def test_planes_multiply_as_often_as_the_layer(layer):
    products = 0
    for part in planes(layer):
        assert len(part.kernel) == len(part.in_size) == len(part.out_size) == 2
        assert part.c_in % part.groups == part.c_out % part.groups == 0
        taps = part.c_in // part.groups * math.prod(part.kernel)
        products += part.calls * part.c_out * taps * math.prod(part.out_size)
    assert products == layer.macs


@pytest.mark.parametrize("name", EVERY_TARGET)
def test_every_target_has_a_cost_or_one_sentence(layer, name):
    target = load(name)
    try:
        table = tabulate([layer], permitted([layer], target), target)
    except TargetError as error:
        assert layer.name in str(error) and "\n" not in str(error)
        return
    for quantity in target.units:
        assert (table.rows[quantity][layer.name] > 0).all()


def test_a_row_is_an_image_of_one_line():
    layer = trace(nn.Conv1d(4, 6, 5, stride=2, padding=2), torch.zeros(1, 4, 16)).layers[0]
    assert (layer.kernel, layer.stride, layer.padding) == ((1, 5), (1, 2), (0, 2))
    assert (layer.in_size, layer.out_size, layer.macs) == ((1, 16), (1, 8), 6 * 4 * 5 * 8)


def test_a_transposed_convolution_multiplies_every_input_with_every_weight():
    net = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    layer = trace(net, torch.zeros(1, 4, 8, 8)).layers[0]
    assert (layer.kind, layer.weights, layer.scales) == ("transposed", 4 * 3 * 9, 6)
    assert (layer.in_size, layer.out_size) == ((8, 8), (17, 17))
    assert layer.macs == 8 * 8 * 4 * 3 * 9
