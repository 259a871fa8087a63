"""Correcting statistics and learning the rounding: by hand, and what they must leave alone."""

import copy

import pytest
import torch
from torch import fx, nn

from haq.allocation.policy import FLOAT, Bits
from haq.datasets import TensorSplit
from haq.models import build
from haq.network.graph import trace
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import codes
from haq.quantization.statistics import correct, moments, statistics
from haq.training.scoring import logits


class Plain(nn.Module):
    """No BatchNorm: two convolutions and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def made(name="resnet20", bits=3):
    torch.manual_seed(0)
    model = (build(name) if name else Plain()).eval()
    images = torch.randn(64, 3, 16, 16)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train().momentum = None  # statistics of these images, and then a little off
    model(images)
    for part in model.eval().modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.add_(0.1 * torch.randn(part.running_mean.shape))
            part.running_var.mul_(0.9 + 0.2 * torch.rand(part.running_var.shape))
    graph = trace(model, images[:1])
    clips = calibrate(graph, [images], "mse")
    policy = {layer.name: Bits(bits, FLOAT) for layer in graph.layers}
    return graph, clips, images, policy


every_kind = pytest.mark.parametrize("name", ["resnet20", None])


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    for room in ("adaround", "statistics"):
        monkeypatch.setattr(f"haq.quantization.{room}.has_bfloat16", lambda: False)


def test_the_moments_by_hand():
    values = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[1.0, 3.0], [5.0, 9.0]]])  # (2, 2, 2)
    mean, var = moments(values, 1)
    assert (mean.tolist(), var.tolist()) == ([2.0, 6.0], [1.0, 3.0])
    assert moments(values, -1).mean.tolist() == [3.0, 5.0]


@every_kind
def test_after_the_correction_every_channel_has_the_moments_of_the_float_network(name):
    graph, clips, images, policy = made(name)
    floats = statistics(graph, images)
    model = quantize(graph, policy, clips)
    correct(model, graph, floats, images)
    wanted, found = (outputs(traced, floats, images) for traced in (graph.traced, model))
    assert found.keys() == wanted.keys() == floats.keys()
    for node, (mean, var) in found.items():
        torch.testing.assert_close(mean, wanted[node].mean, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(var, wanted[node].var, atol=1e-3, rtol=1e-2)


def outputs(traced, nodes, images):
    """Return the moments of what leaves the nodes."""
    found = {}

    class Run(fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n.name in nodes:
                found[n.name] = moments(result, 1 if result.dim() == 4 else -1)
            return result

    with torch.no_grad():
        Run(traced).run(images)
    return found


@every_kind
def test_correcting_the_float_network_or_correcting_twice_changes_nothing(name):
    graph, clips, images, policy = made(name)
    floats = statistics(graph, images)
    whole = quantize(graph, dict.fromkeys(policy, Bits(FLOAT, FLOAT)), clips)
    correct(whole, graph, floats, images)
    torch.testing.assert_close(whole(images), graph.traced(images), atol=1e-4, rtol=1e-4)
    model = quantize(graph, policy, clips)
    correct(model, graph, floats, images)
    once = model(images)
    correct(model, graph, floats, images)
    torch.testing.assert_close(model(images), once, atol=2e-3, rtol=1e-2)


def test_the_codes_stay_where_a_step_takes_up_the_variance():
    graph, clips, images, policy = made(None)
    model = quantize(graph, policy, clips)
    before = all_codes(model, policy)
    correct(model, graph, statistics(graph, images), images)
    assert not torch.equal(model.first.weight_clip, clips.weights["first"][3])
    after = all_codes(model, policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_for_the_whole_layer_stays_as_it_is():
    graph, _, images, policy = made(None)
    clips = calibrate(graph, [images], "mse", per_channel=False)
    model = quantize(graph, policy, clips)
    correct(model, graph, statistics(graph, images), images)
    assert torch.equal(model.first.weight_clip, clips.weights["first"][3])


def all_codes(model, policy):
    found = {}
    for name, bits in policy.items():
        layer = model.get_submodule(name)
        clip = layer.weight_clip.view(-1, *(1,) * (layer.weight.dim() - 1))
        found[name] = codes(layer.weight.detach(), bits.weight, clip)
    return found


@every_kind
def test_learned_weights_are_neighbours_of_the_float_ones_and_nothing_else_changes(name):
    graph, clips, images, policy = made(name)
    model = quantize(graph, policy, clips)
    correct(model, graph, statistics(graph, images), images)
    before, others = all_codes(model, policy), copy.deepcopy(model.state_dict())
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    adaround(model, graph, split(images), steps=6, batch=32, lr=0.3)
    after = all_codes(model, policy)
    moves = torch.cat([(after[n].int() - before[n].int()).flatten() for n in before])
    assert moves.abs().max() == 1
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    for key, value in model.state_dict().items():
        if key.removesuffix(".weight") not in policy:
            assert torch.equal(value, others[key]), key
    assert not model.training


def split(images):
    return TensorSplit(images, torch.zeros(len(images), dtype=torch.int64), (0.0,) * 3, (1.0,) * 3)


@every_kind
def test_the_learned_network_is_nearer_to_the_float_one(name):
    graph, clips, images, policy = made(name)
    model = quantize(graph, policy, clips)
    correct(model, graph, statistics(graph, images), images)
    truth = logits(graph.traced, images)
    before = (logits(model, images) - truth).square().mean()
    adaround(model, graph, split(images), steps=20, batch=32)
    assert (logits(model, images) - truth).square().mean() < before


def test_equal_seeds_learn_equal_weights_and_no_steps_learn_nothing():
    graph, clips, images, policy = made(None)

    def learned(seed, steps=3):
        model = quantize(graph, policy, clips)
        adaround(model, graph, split(images), steps=steps, batch=16, lr=0.1, seed=seed)
        return model.second.weight

    assert torch.equal(learned(0), learned(0))
    assert not torch.equal(learned(0), learned(1))
    assert torch.equal(learned(0, steps=0), graph.traced.second.weight)
