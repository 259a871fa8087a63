"""How the weights of layers lie: a transposed convolution has its inputs first."""

import pytest
import torch
from torch import nn

from haq.network.modules import along_weight, as_weight, outputs_first


@pytest.mark.parametrize("groups", [1, 2])
def test_the_outputs_of_a_transposed_convolution_are_told_apart(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    rows = outputs_first(layer.weight, layer)
    assert rows.shape == (6, 4 // groups, 3, 3)
    assert torch.equal(as_weight(rows, layer), layer.weight)
    scales = torch.arange(1.0, 7.0)
    scaled = layer.weight * along_weight(scales, layer)
    assert torch.equal(outputs_first(scaled, layer), rows * scales.view(-1, 1, 1, 1))


def test_a_scale_of_an_output_scales_that_output():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    x, scales = torch.randn(2, 4, 5), torch.arange(1.0, 7.0)
    before = layer(x)
    layer.weight.data *= along_weight(scales, layer)
    assert torch.allclose(layer(x), before * scales.view(1, -1, 1), atol=1e-5)
