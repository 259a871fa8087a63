"""Sensitivities to second order: by hand, against whole forwards, and how their cost grows."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.sensitivities import widths
from haq.distillation.kd import divergence
from haq.errors import ModelError
from haq.models import build
from haq.network.graph import trace
from haq.quantization import second_order as module
from haq.quantization.calibration import calibrate
from haq.quantization.quantizer import quantize as rounded
from haq.quantization.second_order import marginal, second_order
from haq.quantization.sensitivity import sensitivity


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)


def traced(model, shape, images=64):
    torch.manual_seed(1)
    images = torch.randn(images, *shape)
    graph = trace(model.eval(), images[:1])
    clips = calibrate(graph, [images], "max")
    return graph, clips, images, widths(permitted(graph.layers, None))


def values(known):
    rows = (*known.weights.items(), *known.activations.items())
    return [value for _, row in rows for value in row.values()]


class Small(nn.Module):
    """Two convolutions on one tensor, one of them with a BatchNorm, and a head for images."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu_(self.norm(self.left(x)) + self.right(x))
        return self.head(x.mean((2, 3)))


def test_of_one_output_and_one_linear_layer_it_is_exact():
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)  # its divergence is a squared error, and so is a square
    graph, clips, images, _ = traced(model, (6,))
    (name,) = (layer.name for layer in graph.layers)
    asked = {"weights": {name: (2, 3)}, "activations": {}}
    clips.weights[name].update({b: c.max()[None] for b, c in clips.weights[name].items()})
    known = second_order(graph, clips, images, asked)
    for bits in (2, 3):
        quantized = rounded(model.weight, bits, clips.weights[name][bits])
        expected = divergence(images @ quantized.T, model(images))
        assert known.weights[name][bits] == pytest.approx(expected.item(), rel=1e-5)


def test_where_nothing_is_asked_for_nothing_is_measured():
    graph, clips, images, _ = traced(Small(), (3, 6, 6), 4)
    pinned = permitted(graph.layers, None, pins={layer.name: Bits(4, 4) for layer in graph.layers})
    assert not values(second_order(graph, clips, images, widths(pinned)))


@pytest.mark.parametrize("classes", [1, 5])
def test_where_bits_are_many_it_is_what_a_whole_forward_measures(classes, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 64 * 64)
    graph, clips, images, _ = traced(Small(classes), (3, 8, 8))
    asked = {"weights": {"left": (4, 5)}, "activations": {"left": (4, 5)}}
    exact = sensitivity(graph, clips, images, asked)
    known = second_order(graph, clips, images, asked)
    for kind in ("weights", "activations"):
        for bits, value in getattr(exact, kind)["left"].items():
            assert getattr(known, kind)["left"][bits] == pytest.approx(value, rel=0.2, abs=1e-7)
    assert known.activations["left"] == known.activations["right"]


def test_it_ranks_as_the_exact_values_do():
    graph, clips, images, asked = traced(build("digits_cnn"), (1, 8, 8), 128)
    exact = sensitivity(graph, clips, images, asked)
    known = second_order(graph, clips, images, asked)
    assert spearmanr(values(exact), values(known))[0] > 0.95


def test_what_a_bias_takes_up_does_not_count():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    images = torch.ones(64, 2, 4, 4)  # all alike: rounding shifts every channel, and nothing else
    graph = trace(model, images[:1])
    clips = calibrate(graph, [images], "max")
    asked = {"weights": {"0": (2, 3), "2": (2, 3)}, "activations": {}}
    known = second_order(graph, clips, images, asked)
    assert values(known) == pytest.approx([0, 0, 0, 0], abs=1e-9)


def test_images_in_several_parts_count_alike(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 64 * 16)
    graph, clips, images, asked = traced(Small(), (3, 8, 8))
    whole = second_order(graph, clips, images, asked)
    monkeypatch.setattr(module, "REMEMBERED", 2**18)
    seen = []
    parts = second_order(graph, clips, images, asked, lambda *at: seen.append(at))
    assert len(seen) > 6 and [at[0] for at in seen] == list(range(1, seen[0][1] + 1))
    assert spearmanr(values(whole), values(parts))[0] > 0.95


def test_a_layer_that_is_called_twice_counts_as_one_tensor():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)
            self.out = nn.Linear(4, 1, bias=False)

        def forward(self, x):
            return self.out(self.fc(self.fc(x)))

    torch.manual_seed(3)
    graph, clips, images, _ = traced(Twice(), (4,))
    asked = {"weights": {"fc": (7, 8)}, "activations": {}}
    known, exact = (f(graph, clips, images, asked) for f in (second_order, sensitivity))
    for bits in (7, 8):
        assert known.weights["fc"][bits] == pytest.approx(exact.weights["fc"][bits], rel=0.1)


def test_windows_that_stand_in_the_batch_axis_belong_to_their_image():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 1, bias=False)

        def forward(self, x):  # (N, 8) in two windows of 4
            return self.fc(x.reshape(-1, 4)).reshape(-1, 2).sum(1, keepdim=True)

    torch.manual_seed(3)
    graph, clips, images, _ = traced(Windows(), (8,))
    clips.weights["fc"].update({b: c.max()[None] for b, c in clips.weights["fc"].items()})
    asked = {"weights": {"fc": (3, 4)}, "activations": {}}
    known, exact = (f(graph, clips, images, asked) for f in (second_order, sensitivity))
    assert known.weights["fc"] == pytest.approx(exact.weights["fc"], rel=1e-4)


def test_neither_the_network_nor_the_images_change():
    graph, clips, images, asked = traced(Small(), (3, 8, 8))
    before, same = copy.deepcopy(graph.traced.state_dict()), images.clone()
    first, again = (second_order(graph, clips, images, asked) for _ in range(2))
    assert first == again
    assert all(torch.equal(before[name], v) for name, v in graph.traced.state_dict().items())
    assert all(p.grad is None for p in graph.traced.parameters()) and torch.equal(images, same)


def test_about_a_policy_its_own_bits_add_nothing_and_others_what_they_measure(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 64 * 32)
    graph, clips, images, _ = traced(Small(), (3, 8, 8))
    asked = {"weights": {"stem": (6, 7), "left": (6, 7)}, "activations": {"left": (8,)}}
    policy = {layer.name: Bits(6, 8) for layer in graph.layers}
    known = marginal(graph, clips, images, asked, policy)
    assert known.weights["stem"][6] == known.weights["left"][6] == 0
    assert known.activations["left"][8] == 0
    assert known.weights["left"][7] < 0 or known.weights["stem"][7] < 0
    floats = {layer.name: Bits(FLOAT, FLOAT) for layer in graph.layers}
    isolated = second_order(graph, clips, images, asked)
    zero = marginal(graph, clips, images, asked, floats)
    assert zero.weights["left"] == pytest.approx(isolated.weights["left"], rel=1e-4)


def test_answers_that_are_no_numbers_are_refused():
    graph, clips, images, asked = traced(Small(), (3, 8, 8))
    images[0, 0, 0, 0] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        second_order(graph, clips, images, asked)


def test_every_operation_runs_as_often_in_a_chain_of_many_layers_as_there_are_layers(monkeypatch):
    calls = []
    forward = nn.Conv2d._conv_forward
    counting = lambda self, *rest: calls.append(1) or forward(self, *rest)  # noqa: E731
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counting)

    def convolutions(depth):
        parts = [m for _ in range(depth) for m in (nn.Conv2d(2, 2, 1), nn.ReLU())]
        graph, clips, images, asked = traced(nn.Sequential(*parts), (2, 4, 4), 8)
        calls.clear()
        second_order(graph, clips, images, asked)
        return len(calls)

    assert convolutions(20) == pytest.approx(2 * convolutions(10), abs=20)


def test_the_table_of_costs_is_not_needed():
    graph, clips, images, asked = traced(Small(), (3, 8, 8))
    table = tabulate(graph.layers, permitted(graph.layers, None))
    known = second_order(graph, clips, images, asked)
    assert known.weights.keys() == table.choices.keys() and known.images == 64
