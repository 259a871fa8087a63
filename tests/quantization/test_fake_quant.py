import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from haq.allocation.policy import Bits
from haq.errors import HaqError, ModelError, PolicyError
from haq.models import build, input_shape
from haq.network.graph import trace
from haq.quantization.calibration import Clips, calibrate, load_clips, save_clips
from haq.quantization.clipping import CLIPPING
from haq.quantization.fake_quant import Rounding, quantize, uniform
from haq.quantization.quantizer import levels

aten = torch.ops.aten


class Residual(nn.Module):
    """A stem, a block whose shortcut adds in place, a pool and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.one = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.one_norm = nn.BatchNorm2d(8)
        self.side = nn.Conv2d(6, 8, 1, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.one_norm(self.one(x))
        y.add_(self.side(x))
        return self.head(self.relu(y).mean((2, 3)))


class Watch(TorchDispatchMode):
    """Sees what convolutions and matrix products really compute with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.convolution.default:
            self.calls.append((args[0], args[1]))
        if func is aten.addmm.default:
            self.calls.append((args[1], args[2].t()))
        return func(*args, **(kwargs or {}))


def operands(model, x):
    """Return the input and the weights of every layer, in order of execution."""
    with Watch() as watch, torch.no_grad():
        model(x)
    return watch.calls


def randomised(model):
    """Return the model with BatchNorms that do something, negative factors included."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@cache
def made(make=Residual, method="max", per_channel=True):
    """Return a model that no test may change, its graph and its clips."""
    torch.manual_seed(5)
    model = randomised(make())
    graph = trace(model, IMAGES)
    return model, graph, calibrate(graph, [IMAGES[:10], IMAGES[10:]], method, per_channel)


IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LAYERS = ("stem", "one", "side", "head")
MIXED = {
    "stem": Bits(8, 8), "one": Bits(3, 4), "side": Bits(2, 4), "head": Bits(5, 6)
}  # fmt: skip


def policy_of(graph, weight, act):
    return {layer.name: Bits(weight, act) for layer in graph.layers}


def test_32_bits_everywhere_give_the_float_logits_exactly():
    model, graph, clips = made()
    network = quantize(graph, policy_of(graph, 32, 32), clips)
    with torch.no_grad():
        assert torch.equal(network(IMAGES), model(IMAGES))


def test_8_bits_stay_near_the_float_logits_and_2_bits_do_not():
    model, graph, clips = made()
    with torch.no_grad():
        exact = model(IMAGES)
        errors = [
            float((quantize(graph, policy_of(graph, bits, bits), clips)(IMAGES) - exact).norm())
            for bits in (8, 5, 2)
        ]
    assert errors[0] < 0.05 * exact.norm() < 0.2 * errors[2]
    assert errors == sorted(errors)


@pytest.mark.parametrize("method", CLIPPING)
def test_every_layer_computes_with_as_many_levels_as_its_bits_allow(method):
    _, graph, clips = made(method=method)
    network = quantize(graph, MIXED, clips)
    for name, (values, weight) in zip(LAYERS, operands(network, IMAGES), strict=True):
        levels = 2 ** MIXED[name].act - (name == "stem")  # the input is signed, without -128
        assert len(values.unique()) <= levels
        most = 2 ** MIXED[name].weight - 1
        assert all(len(channel.unique()) <= most for channel in weight)


def test_weights_are_codes_times_the_step_of_their_channel():
    _, graph, clips = made()
    _, weight = operands(quantize(graph, MIXED, clips), IMAGES)[1]
    step = (clips.weights["one"][3] / 3).view(-1, 1, 1, 1)  # 3 bits: codes -3..3
    assert clips.weights["one"][3].shape == (8,)
    codes = weight / step
    torch.testing.assert_close(codes, codes.round())
    assert codes.abs().max().round() == 3


def test_one_clip_for_the_whole_tensor_on_request():
    _, graph, clips = made(per_channel=False)
    assert {clip.shape for row in clips.weights.values() for clip in row.values()} == {(1,)}
    _, weight = operands(quantize(graph, MIXED, clips), IMAGES)[1]
    assert len(weight.unique()) <= 7


def test_8_bit_copies_are_kept_beside_the_activation_bits():
    _, graph, clips = made()
    network = quantize(graph, MIXED, clips)
    bits = {name: m.bits for name, m in network.named_modules() if isinstance(m, Rounding)}
    assert bits == {
        "quantizers.x_read": 8,
        "quantizers.relu_read": 4,
        "quantizers.one_norm_kept": 8,
        "quantizers.side_kept": 8,
        "quantizers.relu_1_kept": 8,
        "quantizers.mean_read": 6,
    }


@pytest.mark.parametrize(
    "floats, kept",
    [
        ({"one", "side"}, {"one_norm": 32, "side": 32, "relu_1": 32}),
        ({"stem", "head"}, {"one_norm": 8, "side": 8, "relu_1": 8}),
    ],
)
def test_what_no_layer_reads_is_kept_in_8_bits_only_between_integer_kernels(floats, kept):
    _, graph, clips = made()
    network = quantize(graph, MIXED | dict.fromkeys(floats, Bits(32, 32)), clips)
    found = {name: network.get_submodule(f"quantizers.{name}_kept").bits for name in kept}
    assert found == kept


def test_folding_the_normalisation_changes_no_code_but_its_sign():
    _, graph, clips = made()
    network = quantize(graph, MIXED, clips)
    norm, conv = network.one_norm, network.one
    with torch.no_grad():
        values, rounded = operands(network, IMAGES)[1]
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        assert (gain < 0).any() and (gain > 0).any()
        bias = norm.bias - norm.running_mean * gain
        step = conv.weight_clip / 3
        codes = torch.round(rounded / step.view(-1, 1, 1, 1))
        folded = conv.weight * gain.view(-1, 1, 1, 1)
        folded_step = step * gain.abs()
        folded_codes = torch.round(folded / folded_step.view(-1, 1, 1, 1)).clamp(-3, 3)
        assert torch.equal(folded_codes, codes * gain.sign().view(-1, 1, 1, 1))
        weight = folded_codes * folded_step.view(-1, 1, 1, 1)
        expected = norm(nn.functional.conv2d(values, rounded, stride=2, padding=1))
        result = nn.functional.conv2d(values, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_the_model_and_its_graph_are_left_as_they_are():
    model = Residual()
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, IMAGES)
    code = graph.traced.code
    clips = calibrate(graph, [IMAGES], "max")
    network = quantize(graph, MIXED, clips)
    network.train()
    network(IMAGES).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [model.training, model.norm.training, model.one.training] == [True, False, True]
    assert graph.traced.code == code and type(model.one) is nn.Conv2d


def test_parameters_keep_their_names_and_clips_are_buffers():
    model, graph, clips = made()
    network = quantize(graph, MIXED, clips)
    assert dict(network.named_parameters()).keys() == dict(model.named_parameters()).keys()
    added = network.state_dict().keys() - model.state_dict().keys()
    assert {name for name in added if "quantizers" not in name} == {
        f"{name}.weight_clip" for name in LAYERS
    }


def test_a_state_dict_brings_a_tuned_network_back_exactly():
    _, graph, clips = made()
    network = quantize(graph, MIXED, clips)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value *= 1.25
    again = quantize(graph, MIXED, clips)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(IMAGES), network(IMAGES))


def test_fine_tuning_moves_the_weights_and_stays_on_the_grid():
    _, graph, clips = made()
    network = quantize(graph, MIXED, clips).train()
    start = network.one.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(IMAGES), torch.arange(16) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(network.one.weight, start)
    assert len(network.one.weight.unique()) > 8 * 7  # float underneath
    _, weight = operands(network.eval(), IMAGES)[1]
    assert all(len(channel.unique()) <= 7 for channel in weight)


def test_a_weight_beyond_the_clip_gets_no_gradient():
    _, graph, clips = made()
    network = quantize(graph, MIXED, clips)
    with torch.no_grad():
        network.one.weight[:, 0, 0, 0] = 1.01 * clips.weights["one"][3]
        network.one.weight[:, 0, 0, 1] = 0.99 * clips.weights["one"][3]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.one.weight.detach().clone()
    network(IMAGES).square().sum().backward()
    optimizer.step()
    moved = (network.one.weight != before).any(0)  # (6, 3, 3)
    assert moved[0, 0].tolist() == [False, True, True]


def test_an_activation_beyond_the_clip_passes_no_gradient():
    rounding = Rounding(4, torch.tensor(1.5), signed=False)
    x = torch.tensor([-0.1, 0.0, 0.72, 1.5, 1.6], requires_grad=True)
    y = rounding(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([0, 0, 0.7, 1.5, 1.5]))
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("method", CLIPPING)
@pytest.mark.parametrize("per_channel", [True, False])
def test_clips_are_saved_and_read_without_loss(tmp_path, method, per_channel):
    _, _, clips = made(method=method, per_channel=per_channel)
    save_clips(clips, tmp_path / "clips.safetensors")
    again = load_clips(tmp_path / "clips.safetensors")
    for kept, read in ((clips.weights, again.weights), (clips.acts, again.acts)):
        assert kept.keys() == read.keys()
        for name in kept:
            assert kept[name].keys() == read[name].keys() == set(range(2, 9))
            assert all(torch.equal(clip, read[name][bits]) for bits, clip in kept[name].items())
            assert {clip.dtype for clip in read[name].values()} == {torch.float32}


def test_a_tensor_that_is_changed_in_place_is_calibrated_as_it_was():
    model = Residual().eval()
    nn.init.constant_(model.side.bias, 100)  # so that the sum is much larger
    clips = calibrate(trace(model, IMAGES), [IMAGES], "max")
    with torch.no_grad():
        x = model.relu(model.norm(model.stem(IMAGES)))
        assert clips.acts["one_norm"][8] == model.one_norm(model.one(x)).abs().max()
        assert clips.acts["side"][8] == pytest.approx(model.side(x).abs().max().item(), rel=1e-4)


def test_the_largest_of_a_million_values_is_not_overlooked():
    images = torch.rand(2, 3, 300, 300)
    images[1, 1, 123, 45] = -9
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1)), images)
    clips = calibrate(graph, images.split(1), "max")
    lo, hi = levels(8, True, clips.skew("input_1", 8))
    assert -9.5 < float(clips.acts["input_1"][8] * lo / hi) <= -9


def test_progress_is_told_tensor_by_tensor():
    told = []
    graph = trace(Residual(), IMAGES)
    calibrate(graph, [IMAGES], "max", on_tensor=lambda done, total: told.append((done, total)))
    assert told == [(done, 10) for done in range(1, 11)]  # 4 layers, 6 activation tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    model = Residual()
    graph = trace(model, IMAGES)
    with torch.no_grad():
        model.side.weight[3, 2] = value
    with pytest.raises(ModelError, match="layer 'side' has weights that are not finite numbers"):
        calibrate(graph, [IMAGES], "max")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_activations_that_are_no_numbers_are_named(value):
    model = Residual().eval()
    graph = trace(model, IMAGES)
    model.one_norm.bias.data[0] = value
    with pytest.raises(ModelError, match="tensor 'one_norm' has activations that are not finite"):
        calibrate(graph, [IMAGES], "max")


def test_one_broken_pixel_is_found():
    images = torch.rand(2, 3, 300, 300)
    images[1, 1, 123, 45] = float("nan")
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1)), images[:1])
    with pytest.raises(ModelError, match="tensor 'input_1' has activations"):
        calibrate(graph, [images], "max")


def test_an_unknown_way_to_clip_is_refused():
    with pytest.raises(HaqError, match="unknown clipping 'kI'"):
        made(method="kI")


@pytest.mark.parametrize("method", CLIPPING)
def test_weights_of_zero_stay_zero(method):
    model = Residual()
    nn.init.zeros_(model.one.weight)
    nn.init.zeros_(model.side.weight)
    graph = trace(model, IMAGES)
    clips = calibrate(graph, [IMAGES], method)
    (_, (_, one), (_, side), _) = operands(quantize(graph, MIXED, clips), IMAGES)
    assert not one.any() and not side.any()


def test_a_layer_called_twice_is_rounded_once_and_each_of_its_inputs_too():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    _, graph, clips = made(Twice)
    (first, weight), (second, again) = operands(
        quantize(graph, {"conv": Bits(2, 3)}, clips), IMAGES
    )
    assert torch.equal(weight, again)
    assert (len(first.unique()), len(second.unique())) == (7, 8)


def test_a_float_layer_may_stand_between_quantized_ones():
    model, graph, clips = made()
    network = quantize(graph, MIXED | {"one": Bits(32, 4)}, clips)
    assert type(network.one) is nn.Conv2d
    assert torch.equal(operands(network, IMAGES)[1][1], model.one.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"one": Bits(1, 4), "side": Bits(2, 4)}, "layer 'one' cannot have 1-bit weights"),
        ({"stem": Bits(8, 1)}, "layer 'stem' cannot have 8-bit weights and 1-bit activations"),
        ({"one": Bits(3, 5)}, "'one' and 'side' read the same tensor, but with 5 and 4 bits"),
        ({"tail": Bits(8, 8)}, "unknown layer 'tail'"),
    ],
)
def test_a_policy_that_does_not_suit_the_model_is_refused(change, message):
    _, graph, clips = made()
    with pytest.raises(PolicyError, match=message):
        quantize(graph, MIXED | change, clips)


def test_the_uniform_policy_has_8_bits_at_both_ends():
    _, graph, _ = made()
    assert uniform(graph, 3, 4) == {
        "stem": Bits(8, 8), "one": Bits(3, 4), "side": Bits(3, 4), "head": Bits(8, 8)
    }  # fmt: skip
    assert uniform(graph, 3, 4, edge=6)["head"] == Bits(6, 6)


def test_the_uniform_policy_shares_activations_with_the_ends():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mask, self.box = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.mask(x), self.box(x)

    graph = trace(Heads(), torch.zeros(1, 4))
    assert uniform(graph, 3, 4) == {
        "stem": Bits(8, 8), "mask": Bits(3, 8), "box": Bits(8, 8)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp", "resnet20"])
def test_networks_lose_little_at_8_bits(name):
    torch.manual_seed(0)
    model = build(name).eval()
    images = torch.randn(4, *input_shape(name))
    graph = trace(model, images)
    network = quantize(graph, uniform(graph, 8, 8), calibrate(graph, [images], "max"))
    with torch.no_grad():
        exact = model(images)
        assert (network(images) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(("bits", "ends"), [(8, (-128, 127)), (7, (-63, 63)), (2, (-1, 1))])
def test_signed_activations_of_eight_bits_have_all_codes_of_a_byte(bits, ends):
    images = torch.tensor([[-4.0, 4.0], [1.0, -1.0]])
    graph = trace(nn.Sequential(nn.Linear(2, 2)), images)
    clips = calibrate(graph, [images], "max")
    module = quantize(graph, {"0": Bits(8, bits)}, clips).get_submodule("quantizers.input_1_read")
    assert module.levels == ends
    assert module.step == torch.tensor(4.0) / ends[1]
    values = module(torch.tensor([-99.0, 0.0, 99.0])) / module.step
    assert values.round().tolist() == [ends[0], 0, ends[1]]
    assert module.zero_point + ends[0] >= 0 and module.top <= 255


def test_clips_without_that_code_keep_their_grid(tmp_path):
    images = torch.tensor([[-4.0, 4.0], [1.0, -1.0]])
    graph = trace(nn.Sequential(nn.Linear(2, 2)), images)
    clips = calibrate(graph, [images], "max")
    save_clips(Clips(clips.weights, clips.acts), tmp_path / "old.safetensors")
    network = quantize(graph, {"0": Bits(8, 8)}, load_clips(tmp_path / "old.safetensors"))
    assert network.get_submodule("quantizers.input_1_read").levels == (-127, 127)
