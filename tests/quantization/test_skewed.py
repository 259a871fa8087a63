"""Grids with a zero point: by hand, and against grids that are symmetric."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import Bits
from haq.errors import HaqError
from haq.network.graph import trace
from haq.quantization.calibration import calibrate, load_clips, save_clips
from haq.quantization.clipping import CLIPPING, activation_clips
from haq.quantization.convert import convert_and_check
from haq.quantization.fake_quant import Rounding, quantize
from haq.quantization.quantizer import BITS, codes, levels
from haq.quantization.quantizer import quantize as rounded
from haq.quantization.skewed import is_skewed, skewed_grids

ACTIVATIONS = {"silu": nn.SiLU(), "gelu": nn.GELU(), "hardswish": nn.Hardswish()}


def activated(name, count=50_000):
    generator = torch.Generator().manual_seed(0)
    return ACTIVATIONS[name](1.5 * torch.randn(count, generator=generator))


def test_a_grid_with_a_zero_point_by_hand():
    # 2 bits, one negative code: -1, 0, 1, 2, a step of 3 / 2.
    x = torch.tensor([-9.0, -1.0, -0.7, 0.0, 0.8, 2.3, 9.0])
    assert levels(2, True, zero_point=1) == (-1, 2)
    assert rounded(x, 2, 3.0, True, 1).tolist() == [-1.5, -1.5, 0.0, 0.0, 1.5, 3.0, 3.0]


def test_gradients_pass_between_both_ends_of_the_grid():
    x = torch.tensor([-1.6, -1.5, 0.0, 3.0, 3.1], requires_grad=True)
    Rounding(2, torch.tensor(3.0), True, skew=1)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("skew", [-1, 3])
def test_a_zero_point_without_a_positive_code_is_refused(skew):
    with pytest.raises(ValueError, match=f"zero point {skew} is not from 0 to 2"):
        levels(2, True, skew)


def test_the_quantizer_says_what_its_codes_are():
    symmetric, skewed = (
        Rounding(4, torch.tensor(1.4), True),
        Rounding(4, torch.tensor(1.2), True, 3),
    )
    assert (symmetric.levels, symmetric.zero_point, symmetric.top) == ((-7, 7), 8, 15)
    assert (skewed.levels, skewed.zero_point, skewed.top) == ((-3, 12), 3, 15)
    assert skewed.step.item() == pytest.approx(0.1)
    unsigned = Rounding(4, torch.tensor(1.5), False)
    assert (unsigned.levels, unsigned.zero_point, unsigned.top) == ((0, 15), 0, 15)


@pytest.mark.parametrize(
    "values, skewed",
    [
        ([-1.0, 2.0], True), ([-1.1, 2.0], False), ([-2.0, 1.0], True), ([-2.0, 2.0], False),
        ([0.0, 2.0], True), ([-2.0, -1.0], True), ([0.0, 0.0], False),
    ],
)  # fmt: skip
def test_a_tensor_is_skewed_where_one_side_is_half_as_long_as_the_other(values, skewed):
    assert is_skewed(torch.tensor(values)) == skewed


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_squared_error_is_less_than_half_of_a_symmetric_grid(name, bits):
    x = activated(name)
    grid = skewed_grids(x, [bits], "mse")[bits]
    clip = activation_clips(x, [bits], True, "mse")[bits]
    skewed = (rounded(x, bits, grid.clip, True, grid.skew) - x).square().mean()
    symmetric = (rounded(x, bits, clip, True) - x).square().mean()
    assert skewed < 0.5 * symmetric


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_other_grid_has_a_much_smaller_squared_error(bits):
    x = activated("silu", 5_000)
    grid = skewed_grids(x, [bits], "mse")[bits]
    chosen = (rounded(x, bits, grid.clip, True, grid.skew) - x).square().mean()
    every = [
        (rounded(x, bits, clip, True, skew) - x).square().mean()
        for skew in range(2**bits - 1)
        for clip in torch.linspace(0.2, float(x.max()), 60).tolist()
    ]
    assert chosen < 1.02 * min(every)


@given(
    values=st.lists(st.floats(-3, 9, width=32), min_size=2, max_size=40).map(torch.tensor),
    bits=st.integers(2, 8),
    sign=st.sampled_from([-1, 1]),
)
def test_at_the_maximum_no_value_is_further_from_the_grid_than_half_a_step(values, bits, sign):
    values = sign * values
    if not is_skewed(values):
        return
    grid = skewed_grids(values, [bits], "max")[bits]
    lo, hi = levels(bits, True, grid.skew)
    size = grid.clip / hi
    assert hi - lo == 2**bits - 1
    away = (rounded(values, bits, grid.clip, True, grid.skew) - values).abs().max()
    assert float(away) <= size * 0.501 + 1e-6


@pytest.mark.parametrize("method", CLIPPING)
def test_multiples_of_a_step_are_exact(method):
    for grid, bits in zip(
        skewed_grids(activated("gelu"), BITS, method).values(), BITS, strict=True
    ):
        hi = levels(bits, True, grid.skew)[1]
        size = torch.tensor(grid.clip) / hi
        assert (size * hi / hi).item() == size.item() and math.isclose(size * hi, grid.clip)


def test_an_unknown_way_to_clip_is_refused():
    with pytest.raises(HaqError, match="unknown clipping 'kI'"):
        skewed_grids(activated("silu"), [4], "kI")


class Smooth(nn.Module):
    """A network of SiLU, GELU and Hardswish."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        with torch.no_grad():
            self.two.weight.mul_(5)  # so that Hardswish is hardly ever negative

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.one(x)))
        y = nn.functional.hardswish(self.two(x))
        return self.head(nn.functional.gelu((x + y).mean((2, 3))))


def smooth(bits, method="mse"):
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8)
    graph = trace(Smooth().eval(), images[:1])
    clips = calibrate(graph, [images], method)
    policy = {layer.name: Bits(8, 8 if layer.reads_input else bits) for layer in graph.layers}
    return graph, clips, quantize(graph, policy, clips), images


@pytest.mark.parametrize("method", CLIPPING)
def test_the_activations_of_smooth_networks_are_skewed(method):
    _, clips, network, images = smooth(4, method)
    assert {"silu", "hardswish"} <= clips.skews.keys()
    module = network.get_submodule("quantizers.silu_read")
    assert module.skew == clips.skew("silu", 4) < 4
    values = []
    module.register_forward_hook(lambda part, args, result: values.append(result))
    with torch.no_grad():
        network(images)
    whole = codes(values[0], 4, module.clip, False) if module.skew == 0 else values[0] / module.step
    assert torch.equal(whole.round(), whole.float()) and len(values[0].unique()) <= 16


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_networks_with_zero_points_are_converted_as_others_are(bits):
    graph, _, network, images = smooth(bits)
    error = convert_and_check(network, graph.traced, images)
    assert error.after <= 1.05 * error.before + 2e-3


def test_zero_points_are_saved_and_read(tmp_path):
    _, clips, _, _ = smooth(4)
    save_clips(clips, tmp_path / "clips.safetensors")
    again = load_clips(tmp_path / "clips.safetensors")
    for tensor in clips.acts:
        assert [again.skew(tensor, b) for b in BITS] == [clips.skew(tensor, b) for b in BITS]
