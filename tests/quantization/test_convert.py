import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import Bits
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers, fold, stretch
from haq.quantization.fake_quant import QuantConv2d, quantize
from haq.quantization.quantizer import BITS, levels, step

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


def test_no_code_of_up_to_seven_bits_grows_beyond_64():
    grown = {bits: levels(bits, signed=True)[1] * stretch(bits) for bits in BITS}
    assert grown == {2: 32, 3: 48, 4: 56, 5: 60, 6: 62, 7: 63, 8: 127}


def test_a_layer_folded_by_hand():
    layer = nn.Conv2d(1, 2, 1, bias=True)
    layer.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    layer.bias.data = torch.tensor([0.5, 0.0])
    layer.__class__ = QuantConv2d
    layer.weight_bits, layer.weight_clip = 2, torch.tensor([1.0, 2.0])
    norm = nn.BatchNorm2d(2, eps=0.0).eval()
    norm.running_mean, norm.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 5.0])
    weight, scale, bias = fold(layer, norm)
    # 2 bits: codes 1 and -1, times 32; the second is turned by its multiplier of -3.
    assert weight.flatten().tolist() == [32, 32]
    assert scale.tolist() == [1.0 / 2 / 32, 2.0 * 3 / 32]
    assert bias.tolist() == [2.0 + (0.5 - 1.0) / 2, 5.0]


def test_a_channel_that_the_norm_switches_off_has_codes_of_zero_and_a_scale():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.__class__ = QuantConv2d
    layer.weight_bits, layer.weight_clip = 4, torch.tensor([1.0])
    norm = nn.BatchNorm2d(1).eval()
    norm.weight.data.zero_()
    weight, scale, bias = fold(layer, norm)
    assert (weight.tolist(), scale.tolist(), bias.tolist()) == ([[[[0]]]], [1.0], [0.0])


@given(weight=st.sampled_from([2, 4, 8]), act=st.sampled_from([3, 8]))
def test_settled_biases_are_whole_numbers_of_what_one_product_is_worth(weight, act):
    network = trained_digits(weight, act)
    convert_to_integers(network)
    layer, norm = network.get_submodule("conv2"), network.get_submodule("bn2")
    rounding = network.get_submodule("quantizers.relu1_read")
    folded = fold(layer, norm)
    unit = folded.scale.double() * step(rounding.bits, rounding.clip, rounding.signed)
    whole = folded.bias / unit
    assert (whole - whole.round()).abs().max() < 0.01  # float32 has 24 bits for some 10


def test_settling_changes_the_logits_by_less_than_the_grids_do():
    network = trained_digits(8, 8)
    settled = copy.deepcopy(network)
    convert_to_integers(settled)
    with torch.no_grad():
        before, after = network(SAMPLE), settled(SAMPLE)
    assert 0 < (before - after).abs().max() < 0.02 * before.abs().max()


def test_settling_twice_changes_nothing():
    network = trained_digits(4, 4)
    convert_to_integers(network)
    again = copy.deepcopy(network)
    convert_to_integers(again)
    with torch.no_grad():
        assert torch.equal(again(SAMPLE), network(SAMPLE))
