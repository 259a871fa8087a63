import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import Bits
from haq.datasets import TensorSplit
from haq.errors import ConversionError
from haq.models import build
from haq.network.graph import trace
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate
from haq.quantization.convert import check_errors, convert_and_check, convert_to_integers
from haq.quantization.fake_quant import QuantConv2d, quantize
from haq.quantization.folding import InputGrid, fold, rescale_to_kernel_range
from haq.quantization.quantizer import BITS, levels, step
from haq.quantization.statistics import correct, statistics
from haq.training.train import train

SAMPLE = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained_digits(weight: int, act: int) -> nn.Module:
    """Return a quantized digits_cnn whose BatchNorms have seen data."""
    torch.manual_seed(0)
    model = build("digits_cnn")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    model.train()(SAMPLE)
    graph = trace(model.eval(), SAMPLE[:1])
    policy = {layer.name: Bits(weight, 8 if layer.reads_input else act) for layer in graph.layers}
    return quantize(graph, policy, calibrate(graph, [SAMPLE], "max"))


@pytest.mark.parametrize(
    "top, largest",
    [
        # 8-bit activations: 2 * 255 * 64 = 32 640 fits into 16 bits, 2 * 255 * 65 does not.
        (255, {2: 64, 3: 63, 4: 63, 5: 60, 6: 62, 7: 63, 8: 127}),
        # 7 bits: 2 * 127 * 127 fits; 2 bits have the code 1, 3 bits 3 * 42, 4 bits 7 * 18.
        (127, {2: 127, 3: 126, 4: 126, 5: 120, 6: 124, 7: 126, 8: 127}),
        (15, {2: 127, 3: 126, 4: 126, 5: 120, 6: 124, 7: 126, 8: 127}),
    ],
)
def test_the_largest_codes_of_weights(top, largest):
    codes = {b: levels(b, signed=True)[1] * rescale_to_kernel_range(b, top) for b in BITS}
    assert codes == largest


@given(bits=st.integers(2, 7), act=st.integers(2, 8))
def test_no_pair_of_products_overflows_16_bits_and_no_larger_factor_fits(bits, act):
    top, code = 2**act - 1, levels(bits, signed=True)[1]
    factor = rescale_to_kernel_range(bits, top)
    assert factor * code <= 127 and 2 * top * factor * code <= 32_767
    more = (factor + 1) * code
    assert more > 127 or 2 * top * more > 32_767


def test_a_layer_folded_by_hand():
    layer = nn.Conv2d(1, 2, 1, bias=True)
    layer.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    layer.bias.data = torch.tensor([0.5, 0.0])
    layer.__class__ = QuantConv2d
    layer.weight_bits, layer.weight_clip = 2, torch.tensor([1.0, 2.0])
    norm = nn.BatchNorm2d(2, eps=0.0).eval()
    norm.running_mean, norm.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 5.0])
    weight, scale, bias, factor = fold(layer, norm)
    # 2 bits: codes 1 and -1, times 64; the second is turned by its multiplier of -3.
    assert (weight.flatten().tolist(), factor) == ([64, 64], 64)
    assert scale.tolist() == [1.0 / 2 / 64, 2.0 * 3 / 64]
    assert bias.tolist() == [2.0 + (0.5 - 1.0) / 2, 5.0]


def test_a_channel_that_the_norm_switches_off_has_codes_of_zero_and_a_scale():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.__class__ = QuantConv2d
    layer.weight_bits, layer.weight_clip = 4, torch.tensor([1.0])
    norm = nn.BatchNorm2d(1).eval()
    norm.weight.data.zero_()
    weight, scale, bias, _ = fold(layer, norm)
    assert (weight.tolist(), scale.tolist(), bias.tolist()) == ([[[[0]]]], [1.0], [0.0])


@given(weight=st.sampled_from([2, 4, 8]), act=st.sampled_from([3, 8]))
def test_converted_biases_are_whole_numbers_of_what_one_product_is_worth(weight, act):
    network = trained_digits(weight, act)
    convert_to_integers(network)
    layer, norm = network.get_submodule("conv2"), network.get_submodule("bn2")
    rounding = network.get_submodule("quantizers.relu_read")
    size = step(rounding.bits, rounding.clip, rounding.signed)
    folded = fold(layer, norm, InputGrid(size, rounding.top))
    unit = folded.scale.double() * size
    whole = folded.bias / unit
    assert (whole - whole.round()).abs().max() < 0.01  # float32 has 24 bits for some 10


def test_converting_changes_the_logits_by_less_than_the_grids_do():
    network = trained_digits(8, 8)
    converted = copy.deepcopy(network)
    convert_to_integers(converted)
    with torch.no_grad():
        before, after = network(SAMPLE), converted(SAMPLE)
    assert 0 < (before - after).abs().max() < 0.02 * before.abs().max()


def test_converting_twice_changes_nothing():
    network = trained_digits(4, 4)
    convert_to_integers(network)
    again = copy.deepcopy(network)
    convert_to_integers(again)
    with torch.no_grad():
        assert torch.equal(again(SAMPLE), network(SAMPLE))


class Tied(nn.Module):
    """Two convolutions of one Parameter, each with a BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm2(self.two(torch.relu(self.norm1(self.one(x))))))
        return self.head(x.mean((2, 3)))


class Named(Tied):
    """One convolution called twice, under two names, with two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.two = self.one


class SharedNorm(Tied):
    """BatchNorms that share their parameters and statistics, but are two modules."""

    def __init__(self):
        super().__init__()
        self.norm2.weight, self.norm2.bias = self.norm1.weight, self.norm1.bias
        self.norm2.running_mean = self.norm1.running_mean


class ZeroFilters(Tied):
    """Half of the filters are zero, behind a BatchNorm with next to no variance."""

    def __init__(self):
        super().__init__()
        self.two.weight = nn.Parameter(self.one.weight.detach().clone())
        with torch.no_grad():
            self.one.weight[:4] = 0


class WideEps(Tied):
    """An eps larger than the variances."""

    def __init__(self):
        super().__init__()
        self.norm1.eps, self.norm2.eps = 0.7, 3.0


ODD = [Tied, Named, SharedNorm, ZeroFilters, WideEps]


def odd_network(kind, bits, act):
    """Return a quantized network of ours, the float one and images."""
    torch.manual_seed(1)
    images = torch.randn(32, 3, 10, 10)
    model = kind()
    for norm in (model.norm, model.norm1, model.norm2):
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    graph = trace(model.eval(), images[:1])
    policy = {layer.name: Bits(bits, 8 if layer.reads_input else act) for layer in graph.layers}
    return quantize(graph, policy, calibrate(graph, [images], "max")), graph.traced, images


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("bits, act", [(8, 8), (4, 8), (3, 4), (2, 3)])
def test_converting_leaves_the_error_of_odd_networks_as_it_is(kind, bits, act):
    network, floats, images = odd_network(kind, bits, act)
    error = convert_and_check(network, floats, images)
    assert error.after <= 1.05 * error.before + 2e-3


class Several(Tied):
    """Answers with logits, in two layouts, and with values that no input has a share in."""

    def forward(self, x):
        y = super().forward(x)
        return {"logits": y, "by_class": y.t(), "classes": y.argmax(1), "heat": self.norm.weight[0]}


class Classes(Tied):
    """Answers with whole numbers alone."""

    def forward(self, x):
        return super().forward(x).argmax(1)


@pytest.mark.parametrize("bits, act", [(4, 8), (3, 4)])
def test_only_floats_for_each_input_tell_an_error(bits, act):
    several, plain = (convert_and_check(*odd_network(kind, bits, act)) for kind in (Several, Tied))
    assert several.before == pytest.approx(plain.before, rel=0.05) and plain.before > 0.01
    assert several.after == pytest.approx(plain.after, rel=0.05)
    assert convert_and_check(*odd_network(Classes, bits, act)) == (0, 0)


@pytest.mark.parametrize(
    "before, after, explained", [(0.1, 0.106, 0.1), (0.1, 0.2, 0.2), (0, 0, 0)]
)
def test_an_error_may_grow_by_a_twentieth_or_as_rounded_biases_explain(before, after, explained):
    check_errors(before, after, explained)


@pytest.mark.parametrize(
    "before, after, explained", [(0.1, 0.11, 0.1), (0.09, 3.9, 0.1), (0.1, math.nan, 0.1)]
)
def test_a_network_that_answers_otherwise_after_conversion_is_refused(before, after, explained):
    with pytest.raises(ConversionError, match=f"was {before} before and is {after}, and rounding"):
        check_errors(before, after, explained)


@pytest.mark.parametrize("variance", [1e-8, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("act", [3, 4, 8])
def test_the_constant_of_a_filter_of_zeros_is_exact(variance, act):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[2].weight[:4], model[2].bias[:4] = 0, 0
        model[3].running_var[:4], model[3].bias[:4] = variance, 0.3
    images = torch.randn(8, 3, 12, 12)
    graph = trace(model, images[:1])
    policy = {layer.name: Bits(4, act) for layer in graph.layers}
    network = quantize(graph, policy, calibrate(graph, [images], "max"))
    convert_to_integers(network)
    with torch.no_grad():
        constant = network.get_submodule("3")(network.get_submodule("2")(torch.ones(1, 8, 5, 5)))
    assert constant[0, :4].sub(0.3).abs().max() < 1e-6


def test_the_copy_has_every_parameter_once_and_learns_all_of_them():
    model = Tied().requires_grad_(False)
    network, _, _ = odd_network(lambda: model, 4, 4)
    assert network.one.weight is not network.two.weight
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Counting(nn.Module):
    """A network with buffers that are no floats, and parameters that take no gradient."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.register_buffer("order", torch.arange(7, -1, -1))
        self.register_buffer("used", torch.ones(8, dtype=torch.bool))
        self.requires_grad_(False)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3))[:, self.order] * self.used)


def test_buffers_of_whole_numbers_go_all_the_way():
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8)
    graph = trace(Counting().eval(), images[:1])
    clips = calibrate(graph, [images], "mse")
    network = quantize(graph, {layer.name: Bits(4, 8) for layer in graph.layers}, clips)
    correct(network, graph, statistics(graph, images, clips), images)
    split = TensorSplit(images, torch.arange(32) % 4, (0.0,) * 3, (1.0,) * 3)
    adaround(network, graph, split, steps=2, batch=16)
    before = network.conv.weight.detach().clone()
    train(network, split, epochs=1, lr=0.01, seed=0, batch=16, decay="weights")
    assert not torch.equal(network.conv.weight, before)
    error = convert_and_check(network, graph.traced, images)
    assert error.after <= 1.05 * error.before + 2e-3
    assert network.order.tolist() == list(range(7, -1, -1)) and network.order.dtype == torch.int64


class Again(nn.Module):
    """A layer that reads two tensors, one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.again(self.again(self.first(x).relu()).relu()).relu())


def test_a_bias_that_has_a_unit_for_each_call_is_rounded_in_the_call_alone():
    torch.manual_seed(0)
    graph = trace(Again().eval(), torch.randn(2, 6))
    policy = {layer.name: Bits(4, 8) for layer in graph.layers}
    network = quantize(graph, policy, calibrate(graph, [torch.randn(64, 6)], "max"))
    biases = {layer: network.get_parameter(f"{layer}.bias").clone() for layer in policy}
    convert_to_integers(network)
    moved = {
        name
        for name in policy
        if not torch.equal(network.get_parameter(f"{name}.bias"), biases[name])
    }
    assert moved == {"first", "head"}


class Linearly(nn.Module):
    """Attention whose keys are shares over the rows, not over the values of a row."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        summed = (4 * k).softmax(-2).transpose(-2, -1) @ v
        return self.head((q.softmax(-1) @ summed).mean(1))


def test_a_softmax_over_rows_stays_one():
    torch.manual_seed(0)
    images = torch.randn(64, 5, 6)
    graph = trace(Linearly().eval(), images[:2])
    policy = {layer.name: Bits(8, 8) for layer in graph.layers}
    network = quantize(graph, policy, calibrate(graph, [images], "max"))
    assert convert_and_check(network, graph.traced, images).after < 0.05
