"""Correcting statistics and learning the rounding: by hand, and what they must leave alone."""

import copy

import pytest
import torch
from torch import fx, nn

from haq.allocation.policy import FLOAT, Bits
from haq.datasets import TensorSplit
from haq.models import build
from haq.network.graph import trace
from haq.network.inputs import as_inputs
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import Rounding, quantize
from haq.quantization.quantizer import codes
from haq.quantization.statistics import Moments, correct, moments, note_of_few, statistics
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
    mean, var, _ = moments(values, 1)
    assert (mean.tolist(), var.tolist()) == ([2.0, 6.0], [1.0, 3.0])
    assert moments(values, -1).mean.tolist() == [3.0, 5.0]


@every_kind
def test_after_the_correction_every_channel_has_the_moments_of_the_float_network(name):
    graph, clips, images, policy = made(name)
    floats = statistics(graph, images)
    model = quantize(graph, policy, clips)
    correct(model, graph, floats, images)
    wanted, corrected = (outputs(traced, floats, images) for traced in (graph.traced, model))
    assert corrected.keys() == wanted.keys() == floats.keys()
    for node, (mean, var, _) in corrected.items():
        torch.testing.assert_close(mean, wanted[node].mean, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(var, wanted[node].var, atol=1e-3, rtol=1e-2)


def outputs(traced, nodes, images):
    """Return the moments of what leaves the nodes."""
    seen = {}

    class Run(fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n.name in nodes:
                seen[n.name] = moments(result, 1 if result.dim() == 4 else -1)
            return result

    with torch.no_grad():
        Run(traced).run(images)
    return seen


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


@pytest.mark.parametrize("variance", [1e-9, 1e-7, 1e-5, 1.0])
def test_the_spread_behind_a_norm_is_the_float_one_however_small_the_variance(variance):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Conv2d(4, 2, 1)).eval()  # fmt: skip
    images = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        model[0].weight.mul_(variance**0.5)
        model[1].running_var.copy_(moments(model[0](images), 1).var)
    graph = trace(model, images[:1])
    policy = {layer.name: Bits(3, FLOAT) for layer in graph.layers}
    network = quantize(graph, policy, calibrate(graph, [images], "mse"))
    correct(network, graph, statistics(graph, images), images)
    with torch.no_grad():
        wanted = moments(model[1](model[0](images)), 1)
        seen = moments(network.get_submodule("1")(network.get_submodule("0")(images)), 1)
    torch.testing.assert_close(seen.var, wanted.var, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen.mean, wanted.mean, rtol=1e-3, atol=1e-5)


@every_kind
@pytest.mark.parametrize("alive, largest", [(1, 1), (200_000, 2000), (10**6, 10**4)])
def test_in_parts_the_correction_is_the_same(monkeypatch, name, alive, largest):
    graph, clips, images, policy = made(name)

    def corrected():
        model = quantize(graph, policy, clips)
        correct(model, graph, statistics(graph, images), images)
        return model

    whole = corrected()
    monkeypatch.setattr("haq.quantization.statistics.ALIVE", alive)
    monkeypatch.setattr("haq.quantization.statistics.LARGEST", largest)
    in_parts = corrected().state_dict()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(in_parts[key], value, atol=1e-4, rtol=1e-3)


class InPlace(nn.Module):
    """Changes tensors that are read again."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        x = x.sub_(0.5)
        x = nn.functional.relu(self.norm(self.one(x)), inplace=True)
        y = self.two(x).relu_()
        y += x
        return self.head(y.mean((2, 3)))


def test_values_changed_in_place_are_as_they_were_when_they_are_needed_again(monkeypatch):
    torch.manual_seed(0)
    graph, images = trace(InPlace().eval(), torch.zeros(1, 3, 8, 8)), torch.randn(64, 3, 8, 8)
    clips, before = calibrate(graph, [images.clone()], "mse"), images.clone()
    policy = {layer.name: Bits(3, FLOAT) for layer in graph.layers}
    states = []
    for alive in (2**26, 1):  # the second goes back to the images for every site
        monkeypatch.setattr("haq.quantization.statistics.ALIVE", alive)
        model = quantize(graph, policy, clips)
        correct(model, graph, statistics(graph, images), images)
        states.append(model.state_dict())
        assert torch.equal(images, before)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-5, rtol=1e-4)


def error(model, graph, images):
    with torch.no_grad():
        truth = graph.traced(images)
        return float((model(images) - truth).norm() / (truth - truth.mean(0)).norm())


def test_a_correction_on_few_inputs_is_not_worse_than_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images = torch.rand(256, 64)
    graph = trace(model, images[:1])
    clips = calibrate(graph, [images], "mse")
    policy = {layer.name: Bits(3, 4) for layer in graph.layers}
    none = error(quantize(graph, policy, clips), graph, images)
    for count in (1, 2, 4, 8):
        errors = []
        for first in range(0, 64, 8):
            few = images[first : first + count]
            network = quantize(graph, policy, clips)
            correct(network, graph, statistics(graph, few, clips), few)
            errors.append(error(network, graph, images))
        assert sum(errors) / 8 < none


def test_few_inputs_are_worth_a_note():
    assert note_of_few(32) is None
    assert note_of_few(31).startswith("statistics are corrected on 31 inputs, and in part only: 32")
    assert "on 1 input," in note_of_few(1)


@every_kind
def test_an_outlier_among_the_images_does_not_decide(name):
    graph, clips, images, policy = made(name)
    dirty = images.clone()
    dirty[0, 0, 3, 3] = 1e4
    errors = []
    for some in (images, dirty):
        model = quantize(graph, {n: Bits(3, 8) for n in policy}, clips)
        correct(model, graph, statistics(graph, some, clips), some)
        errors.append(error(model, graph, images))
    assert errors[1] < 1.2 * errors[0]


def test_a_channel_that_rounding_does_not_explain_keeps_its_spread():
    graph, clips, images, policy = made(None)
    floats = dict(statistics(graph, images))
    mean, var, _ = floats["first"]
    floats["first"] = Moments(mean, var * torch.tensor([4.1, 1, 1, 1, 1, 1, 1, 0.2]))
    model = quantize(graph, policy, clips)
    correct(model, graph, floats, images)
    kept = model.first.weight_clip == clips.weights["first"][3]
    assert kept.tolist() == [True, *[False] * 6, True]


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


def test_norms_and_clips_of_activations_are_learned_beside_the_rounding_where_that_is_asked_for():
    graph, clips, images, policy = made("resnet20")
    policy = {name: Bits(3, 4) for name in policy}

    def learned(beside):
        model = quantize(graph, policy, clips)
        correct(model, graph, statistics(graph, images), images)
        adaround(model, graph, split(images), steps=3, batch=32, beside=beside)
        return model.state_dict()

    first = quantize(graph, policy, clips)
    norms = {f"{name}.{part}" for name, module in first.named_modules()
             if isinstance(module, nn.BatchNorm2d) for part in ("weight", "bias")}  # fmt: skip
    acts = {f"{name}.clip" for name, module in first.named_modules()
            if isinstance(module, Rounding) and module.bits != 32}  # fmt: skip
    assert norms and acts
    alone, both = learned(0.0), learned(0.2)
    assert alone.keys() == both.keys()
    weights = {f"{name}.weight" for name in policy}
    assert {k for k, v in both.items() if not torch.equal(v, alone[k])} == norms | acts | weights
    # Three steps of Adam at .005 * .2, along a cosine: no more than .001 * (1 + .75 + .25).
    for name in acts:
        assert (both[name] / alone[name] - 1).abs().max() <= 0.0021
    for name in norms:
        assert (both[name] - alone[name]).abs().max() <= 0.0021


def test_clips_that_are_learned_beside_the_rounding_stay_positive():
    graph, clips, images, policy = made(None)
    policy = {name: Bits(3, 4) for name in policy}
    model = quantize(graph, policy, clips)
    adaround(model, graph, split(images), steps=4, batch=16, lr=0.5, beside=4.0)
    learned = [part.clip for part in model.modules() if isinstance(part, Rounding)]
    assert learned and all(bool((clip > 0).all()) for clip in learned)


def test_equal_seeds_learn_equal_weights_and_no_steps_learn_nothing():
    graph, clips, images, policy = made(None)

    def learned(seed, steps=3):
        model = quantize(graph, policy, clips)
        adaround(model, graph, split(images), steps=steps, batch=16, lr=0.1, seed=seed)
        return model.second.weight

    assert torch.equal(learned(0), learned(0))
    assert not torch.equal(learned(0), learned(1))
    assert torch.equal(learned(0, steps=0), graph.traced.second.weight)


class Embedded(nn.Module):
    """A Linear of embedded tokens; a mask says which of them count."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        return self.linear(self.table(input_ids)) * attention_mask[..., None]


def test_tokens_that_a_mask_leaves_out_do_not_count():
    torch.manual_seed(0)
    model, mask = Embedded().eval(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).repeat(20, 1)
    ids = torch.randint(1, 10, mask.shape)
    padded = as_inputs({"input_ids": ids * mask, "attention_mask": mask})
    graph = trace(model, padded[:2])
    seen = statistics(graph, padded)["linear"]
    with torch.no_grad():
        rows = model.linear(model.table(ids))[mask != 0]
    torch.testing.assert_close(seen.mean, rows.mean(0), rtol=1e-2, atol=1e-2)  # by bfloat16
    other = as_inputs({"input_ids": ids, "attention_mask": mask})
    assert torch.equal(statistics(graph, other)["linear"].mean, seen.mean)


def test_a_batch_of_nothing_but_padding_leaves_the_statistics_numbers():
    torch.manual_seed(0)
    ids = torch.randint(1, 10, (40, 4))
    padded = as_inputs({"input_ids": ids, "attention_mask": torch.zeros_like(ids)})
    seen = statistics(trace(Embedded().eval(), padded[:2]), padded)["linear"]
    assert seen.mean.isfinite().all() and seen.var.isfinite().all()


def test_what_is_left_out_does_not_move_a_bias_that_is_corrected():
    torch.manual_seed(0)
    model, mask = Embedded().eval(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).repeat(20, 1)
    ids = torch.randint(1, 10, mask.shape)
    biases = []
    for rest in (0, 5):
        inputs = as_inputs({"input_ids": torch.where(mask == 0, rest, ids), "attention_mask": mask})
        graph = trace(model, inputs[:2])
        policy = {layer.name: Bits(3, 32, 32) for layer in graph.layers}
        choices = {name: (bits,) for name, bits in policy.items()}
        network = quantize(graph, policy, calibrate(graph, [], "mse", choices=choices))
        correct(network, graph, statistics(graph, inputs), inputs)
        biases.append(network.linear.bias.detach().clone())
    assert torch.equal(*biases)
    assert not torch.equal(biases[0], model.linear.bias)
