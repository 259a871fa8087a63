"""Single weights that are zero make files smaller and nothing faster, on any target."""

from dataclasses import replace

import pytest
from hw_targets import EVERY_TARGET

from haq.allocation.costs import size_bytes
from haq.hw_profiles import load
from haq.network.layers import Layer

LAYERS = [
    Layer("conv", "conv", 16, 32, (3, 3), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8),
          weights=4608, biases=32, macs=294912),
    Layer("fc", "linear", 64, 10, in_size=(1, 1), out_size=(1, 1), weights=640, biases=10,
          macs=640),
]  # fmt: skip


@pytest.mark.parametrize("name", EVERY_TARGET)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_zeros_change_no_cost_of_a_target(name, layer):
    target = load(name)
    pruned = replace(layer, zeros=round(0.9 * layer.weights))
    assert target.choices(pruned) == target.choices(layer)
    for bits in target.choices(layer):
        assert target.cost(pruned, bits) == target.cost(layer, bits)
    assert size_bytes(pruned, 8) < size_bytes(layer, 8) / 2
