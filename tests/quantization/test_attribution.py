"""Attributions along a path: completeness, and a network on which they are worked out by hand."""

import copy

import pytest
import torch
from torch import nn

from haq.allocation.choices import permitted
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import widths
from haq.models import build
from haq.network.graph import trace
from haq.quantization.attribution import attribution
from haq.quantization.calibration import calibrate


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)


def traced(model, shape, images=32):
    torch.manual_seed(1)
    images = torch.randn(images, *shape)
    graph = trace(model.eval(), images[:1])
    return graph, calibrate(graph, [images], "max"), images


def test_the_shares_of_all_tensors_are_the_divergence():
    torch.manual_seed(0)
    graph, clips, images = traced(build("digits_cnn"), (1, 8, 8))
    asked = widths(permitted(graph.layers, None))
    policy = {layer.name: Bits(3, 8) for layer in graph.layers}
    result = attribution(graph, clips, policy, images, asked, steps=16)
    assert result.total == pytest.approx(result.divergence, rel=0.05)
    assert sum(result.shares["weights"].values()) > 0.8 * result.total
    rough = attribution(graph, clips, policy, images, asked, steps=1)
    assert rough.divergence == pytest.approx(result.divergence, rel=1e-5)


def test_two_equal_halves_have_equal_shares():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
            self.other.weight.data.copy_(self.one.weight.data)

        def forward(self, x):
            return self.one(x) + self.other(x)

    torch.manual_seed(0)
    graph, clips, images = traced(Halves(), (4,))
    asked = {"weights": {"one": (2, 3), "other": (2, 3)}, "activations": {}}
    policy = {"one": Bits(2, 8), "other": Bits(2, 8)}
    result = attribution(graph, clips, policy, images, asked, steps=1)
    # A quadratic along a straight way: one step in the middle is exact.
    assert result.total == pytest.approx(result.divergence, rel=1e-4)
    assert result.shares["weights"]["one"] == pytest.approx(result.divergence / 2, rel=1e-4)


def test_tensors_that_are_not_asked_for_stay_float_and_nothing_is_left_behind():
    graph, clips, images = traced(build("digits_mlp"), (1, 8, 8))
    before = copy.deepcopy(graph.traced.state_dict())
    name = graph.layers[1].name
    policy = {layer.name: Bits(2, 2) for layer in graph.layers}
    result = attribution(
        graph, clips, policy, images, {"weights": {name: (2,)}, "activations": {}}, 2
    )
    assert result.shares == {"weights": {name: result.total}, "activations": {}}
    assert all(torch.equal(before[n], v) for n, v in graph.traced.state_dict().items())
    assert all(parameter.grad is None for parameter in graph.traced.parameters())
