"""BatchNorm as a multiplier and a bias, and folded into the weights before it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.network.graph import trace
from haq.quantization.bn_folding import affine, fold_norms, norms_of
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS, codes, step


class Pair(nn.Module):
    """A layer, its BatchNorm and a head."""

    def __init__(self, bias=False, affine=True, conv=True):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3, bias=bias) if conv else nn.Linear(6, 4, bias=bias)
        self.norm = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(4, affine=affine)
        self.head = nn.Conv2d(4, 1, 1) if conv else nn.Linear(4, 1)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.2, 3)
        if affine:
            self.norm.weight.data.copy_(torch.tensor([1.5, -0.7, 0.0, 1e-3]))
            self.norm.bias.data.normal_()

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.layer(x))))


def quantized(model, bits=3, per_channel=True):
    shape = (2, 5, 5) if isinstance(model.head, nn.Conv2d) else (6,)
    graph = trace(model, torch.zeros(1, *shape))
    weights = {}
    for layer in graph.layers:
        rows = graph.traced.get_parameter(f"{layer.name}.weight").detach().abs().flatten(1).amax(1)
        weights[layer.name] = dict.fromkeys(BITS, rows if per_channel else rows.amax().view(1))
    acts = {point.tensor: dict.fromkeys(BITS, torch.tensor(2.0)) for point in graph.points}
    # Float activations: the rounding of floats must not be enlarged before it is looked at.
    policy = {layer.name: Bits(bits, FLOAT) for layer in graph.layers}
    return quantize(graph, policy, Clips(weights, acts)), torch.randn(16, *shape)


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [2, 8, FLOAT])
def test_folding_changes_nothing_but_the_rounding_of_floats(conv, affine, bias, bits):
    torch.manual_seed(bits)
    network, x = quantized(Pair(bias, affine, conv), bits)
    with torch.no_grad():
        before = network(x)
        fold_norms(network)
        torch.testing.assert_close(network(x), before, rtol=1e-5, atol=1e-5)


def test_folding_changes_scales_and_signs_but_no_code():
    network, _ = quantized(Pair())
    layer, (multiplier, offset) = network.layer, affine(network.norm)
    clip = layer.weight_clip.clone().view(-1, 1, 1, 1)
    before = codes(layer.weight, 3, clip)
    fold_norms(network)
    after = codes(layer.weight, 3, layer.weight_clip.view(-1, 1, 1, 1))
    # By hand: multipliers 1.5, -0.7, 0 and 0.001, each by one over the standard deviation.
    for channel, sign in enumerate([1, -1, 0, 1]):
        assert torch.equal(after[channel], sign * before[channel])
    alive = multiplier != 0
    assert torch.equal(layer.weight_clip[alive], (clip.flatten() * multiplier.abs())[alive])
    assert step(3, layer.weight_clip, signed=True).min() > 0
    one, left = affine(network.norm)
    assert (one.tolist(), left.tolist()) == ([1, 1, 1, 1], offset.tolist())


def test_folding_twice_is_folding_once():
    network, _ = quantized(Pair(bias=True))
    fold_norms(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fold_norms(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_one_scale_a_layer_stays_one():
    network, _ = quantized(Pair(), per_channel=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fold_norms(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Shared(nn.Module):
    """What is not folded: a norm of two layers, a norm of batches, a norm behind an addition."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.both, self.added = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.batches = nn.BatchNorm1d(4, track_running_stats=False)
        self.last, self.own = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.both(self.one(x)) + self.both(self.two(x))
        return self.own(self.last(self.batches(self.three(self.added(y)))))


def test_only_a_norm_of_its_own_folds_into_a_layer():
    assert norms_of(trace(Shared(), torch.zeros(2, 4)).traced) == {"last": "own"}


@given(st.floats(1e-8, 0.5), st.integers(0, 100), st.booleans())
def test_multiplier_and_bias_are_the_batch_norm_bit_for_bit(eps, seed, last):
    torch.manual_seed(seed)
    norm, plain = nn.BatchNorm2d(5, eps=eps).eval(), nn.BatchNorm2d(5, eps=0).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0, 2)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    plain.weight.data, plain.bias.data = affine(norm)
    x = torch.randn(2, 5, 3, 4)
    x = x.to(memory_format=torch.channels_last) if last else x
    with torch.no_grad():
        assert torch.equal(norm(x), plain(x))
