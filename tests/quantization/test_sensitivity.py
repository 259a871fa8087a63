"""Sensitivities: by hand on two layers, against whole forwards, and as the objective of budgets."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from haq.allocation.budgets import Budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.sensitivities import (
    Sensitivity,
    load_sensitivity,
    objective,
    save_sensitivity,
    widths,
)
from haq.errors import ModelError, RunError
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.sensitivity import sensitivity


class Residual(nn.Module):
    """Two convolutions that read one tensor, an addition in place and a head; no BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.left(x)
        y += self.right(x)
        x = torch.relu_(y)
        return self.head(x.mean((2, 3)))


def made(model=None, shape=(3, 8, 8)):
    torch.manual_seed(0)
    model = (model or Residual()).eval()
    images = torch.randn(12, *shape)
    graph = trace(model, images[:1])
    clips = calibrate(graph, [images], "max")
    table = tabulate(graph.layers, permitted(graph.layers, None))
    return graph, clips, images, table


def kl(answer, reference):
    p, q = reference.softmax(1), answer.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean().item()


def test_every_value_is_that_of_a_whole_forward(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)
    graph, clips, images, table = made()
    found = sensitivity(graph, clips, images, widths(table.choices))
    floats = {layer.name: Bits(FLOAT, FLOAT) for layer in graph.layers}
    reference = quantize(graph, floats, clips)(images)
    for name in floats:
        for bits in range(2, 9):
            model = quantize(graph, floats | {name: Bits(bits, FLOAT)}, clips)
            expected = pytest.approx(kl(model(images), reference), abs=2e-6)
            assert found.weights[name][bits] == expected
    assert found.weights["left"][2] > found.weights["left"][4] > found.weights["left"][8]


def test_the_activations_are_rounded_where_layers_read_them(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)
    graph, clips, images, table = made()
    found = sensitivity(graph, clips, images, widths(table.choices)).activations
    assert found.keys() == {"left", "right", "head"}  # the input always has 8 bits
    assert found["left"] == found["right"]
    traced = quantize(graph, dict.fromkeys((n.name for n in graph.layers), Bits(32, 32)), clips)
    reference = traced(images)
    (point,) = [p for p in graph.points if "left" in p.layers]
    rounding = traced.get_submodule(f"quantizers.{point.tensor}_read")
    rounding.bits, rounding.clip = 3, clips.acts[point.tensor][3]
    assert found["left"][3] == pytest.approx(kl(traced(images), reference), abs=2e-6)


def test_images_in_several_parts_give_the_same(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)
    graph, clips, images, table = made()
    whole = sensitivity(graph, clips, images, widths(table.choices))
    monkeypatch.setattr("haq.quantization.sensitivity.REMEMBERED", 12_000)
    seen = []
    parts = sensitivity(graph, clips, images, widths(table.choices), lambda *at: seen.append(at))
    for name, row in whole.weights.items():
        assert parts.weights[name] == pytest.approx(row, rel=1e-3, abs=1e-6)
    done, total = zip(*seen, strict=True)
    assert list(done) == list(range(1, total[0] + 1))
    assert total[0] % 6 == 0 and total[0] > 6  # four layers and two tensors, more than once


def test_what_a_norm_remembers_of_its_training_does_not_count():
    graph, clips, images, table = made(build("digits_cnn"), (1, 8, 8))
    known = sensitivity(graph, clips, images, widths(table.choices))
    assert any(value > 1e-4 for row in known.weights.values() for value in row.values())
    for norm in graph.traced.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.add_(3)
            norm.running_var.mul_(5)
    again = sensitivity(graph, clips, images, widths(table.choices))
    for name, row in known.weights.items():
        assert again.weights[name] == pytest.approx(row, rel=1e-3)


def test_neither_the_model_nor_the_images_are_changed():
    graph, clips, images, _ = made(build("resnet20"), (3, 32, 32))
    before = copy.deepcopy(graph.traced.state_dict())
    kept = images.clone()
    sensitivity(graph, clips, images[:4], {"weights": {"conv1": (2, 3)}, "activations": {}})
    after = graph.traced.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(images, kept)


def test_only_what_is_asked_for_is_measured_and_float_is_nothing():
    graph, clips, images, _ = made()
    asked = {"weights": {"left": (2, 32)}, "activations": {}}
    found = sensitivity(graph, clips, images, asked)
    assert (found.weights.keys(), found.weights["left"].keys()) == ({"left"}, {2})
    assert not found.activations


def test_a_network_that_gives_no_logits_is_measured_by_its_squared_error(monkeypatch):
    monkeypatch.setattr("haq.quantization.places.has_bfloat16", lambda: False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph, clips, images, _ = made(model)
    found = sensitivity(graph, clips, images, {"weights": {"2": (2, 3)}, "activations": {}})
    floats = {"0": Bits(32, 32), "2": Bits(32, 32)}
    reference = quantize(graph, floats, clips)(images)
    answer = quantize(graph, floats | {"2": Bits(2, 32)}, clips)(images)
    share = (answer - reference).square().mean() / reference.var(correction=0)
    assert found.weights["2"][2] == pytest.approx(share.item(), rel=1e-4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x), x


class Answering(Twice):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.fc(x))


def of_two_and_three_bits(model):
    torch.manual_seed(1)
    nn.init.normal_(model.fc.weight), nn.init.zeros_(model.fc.bias)
    graph, clips, images, _ = made(model, (4,))
    asked = {"weights": {"fc": (2, 3)}, "activations": {}}
    return sensitivity(graph, clips, images, asked).weights["fc"]


def test_the_divergences_of_several_outputs_are_added_up():
    alone = of_two_and_three_bits(Answering(lambda y: y))
    assert 0 < alone[3] < alone[2]
    assert of_two_and_three_bits(Twice()) == alone  # the second one is the input itself
    both = of_two_and_three_bits(Answering(lambda y: {"ids": y.argmax(1), "a": y, "b": (y, None)}))
    assert both == pytest.approx({bits: 2 * value for bits, value in alone.items()})


def test_answers_that_hold_no_floats_are_refused():
    with pytest.raises(ModelError, match="the network gives no tensor of floats"):
        of_two_and_three_bits(Answering(lambda y: y.argmax(1)))


def test_values_that_are_no_numbers_are_refused():
    graph, clips, images, _ = made()
    images[0, 0, 0, 0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        sensitivity(graph, clips, images, {"weights": {"left": (2, 3)}, "activations": {}})


# --- the objective ---------------------------------------------------------------------------


def test_the_objective_by_hand():
    graph, _, _, _ = made()
    choices = permitted(graph.layers, None, (2, 3), None, {"stem": 8, "head": 8})
    choices |= {n: tuple(p for p in choices[n] if p.act in (4, 8)) for n in ("left", "right")}
    known = Sensitivity(
        "kl", 12,
        {"left": {2: 0.5, 3: 0.1}, "right": {2: 0.4, 3: 0.6}},  # more than at 2 bits: noise
        {"left": {4: 0.03, 8: 0.01}, "right": {4: 0.03, 8: 0.01}},
    )  # fmt: skip
    found = objective(known, tabulate(graph.layers, choices))
    assert found["stem"].tolist() == found["head"].tolist() == [0.0]
    assert found["left"] == pytest.approx(np.array([0.53, 0.51, 0.13, 0.11]))
    assert found["right"] == pytest.approx(np.array([0.4, 0.4, 0.4, 0.4]))  # left has the tensor


def test_missing_sensitivities_are_named():
    *_, table = made()
    with pytest.raises(RunError, match="know nothing of layer 'stem' at 2 bits"):
        objective(Sensitivity("kl", 1, {}, {}), table)


def test_what_is_saved_is_read(tmp_path):
    known = Sensitivity("kl", 256, {"a": {2: 0.1, 8: 1e-9}}, {"a": {4: 0.25}})
    save_sensitivity(known, tmp_path / "sensitivity.json")
    assert load_sensitivity(tmp_path / "sensitivity.json") == known


@pytest.mark.parametrize("content", ["", "[]", '{"measure": "kl"}', '{"weights": 3}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "sensitivity.json").write_text(content)
    with pytest.raises(RunError, match=r"sensitivity.json cannot be read"):
        load_sensitivity(tmp_path / "sensitivity.json")


def test_a_layer_that_may_stay_float_adds_nothing_there():
    graph, clips, images, _ = made()
    floats = {name: (Bits(2, 8), Bits(4, 8), Bits(32, 32)) for name in ("left", "right")}
    choices = permitted(graph.layers, None, pins={"stem": 8, "head": 8}) | floats
    table = tabulate(graph.layers, choices)
    found = sensitivity(graph, clips, images, widths(table.choices))
    goal = objective(found, table)
    assert found.weights["left"].keys() == {2, 4}
    assert found.activations["left"].keys() == {8}
    assert goal["left"][2] == 0 < goal["left"][1] < goal["left"][0]
    budget = Budget("avg_weight_bits", 16)
    assert {pair.act for name, pair in solve(goal, table, [budget]).items() if name in floats} in (
        {8},
        {32},
    )
