"""The linear quantizer, by hand and by property."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from haq.quantization.quantizer import BITS, codes, levels, quantize, step

INF, NAN = math.inf, math.nan
FLOATS = st.floats(-1e6, 1e6, width=32)
TENSORS = st.lists(FLOATS, min_size=1, max_size=40).map(torch.tensor)
CLIPS = st.floats(2.0**-30, 2.0**30, width=32)
WIDTHS = st.integers(2, 8)

every_width = pytest.mark.parametrize("bits", BITS)
either_sign = pytest.mark.parametrize("signed", [True, False])


def gradient(x: Tensor, bits: int, clip: Tensor | float, signed: bool = True) -> list[float]:
    x = x.clone().requires_grad_()
    quantize(x, bits, clip, signed).sum().backward()
    assert x.grad is not None
    return [float(value) for value in x.grad.flatten()]


@pytest.mark.parametrize(
    "bits, signed, expected",
    [
        (2, True, (-1, 1)),
        (3, True, (-3, 3)),
        (8, True, (-127, 127)),
        (2, False, (0, 3)),
        (8, False, (0, 255)),
    ],
)
def test_levels_are_narrow_where_signed(bits, signed, expected):
    assert levels(bits, signed) == expected


@pytest.mark.parametrize("bits", [1, 9, 0, -3, 32])
def test_other_widths_do_not_exist(bits):
    with pytest.raises(ValueError, match=f"bits must be from 2 to 8, not {bits}"):
        quantize(torch.ones(2), bits, 1.0)


def test_two_bits_round_by_hand():
    x = torch.tensor([-9.0, -0.6, -0.4, 0.0, 0.4, 0.6, 9.0])
    assert quantize(x, 2, 1.0).tolist() == [-1, -1, 0, 0, 0, 1, 1]


def test_halves_round_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])  # the step is 1
    assert quantize(x, 4, 7.0).tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_unsigned_by_hand():
    x = torch.tensor([-1.0, 0.0, 0.4, 0.6, 1.3, 4.0])  # clip 1.5 with two bits: the step is 0.5
    assert quantize(x, 2, 1.5, signed=False).tolist() == [0, 0, 0.5, 0.5, 1.5, 1.5]


def test_each_channel_has_its_own_clip():
    x = torch.tensor([[0.4, 0.6], [4.0, 6.0]]).view(2, 1, 1, 2)
    clip = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    assert quantize(x, 2, clip).flatten().tolist() == [0, 1, 0, 10]


def test_it_divides_and_does_not_multiply_by_the_inverse():
    size = torch.tensor(6.3) / 127
    x = (torch.arange(126) + 0.5) * size
    expected = torch.round(x / size).clamp(-127, 127) * size
    assert torch.equal(quantize(x, 8, 6.3), expected)
    assert not torch.equal(torch.round(x * (1 / size)) * size, expected)


@given(x=TENSORS, bits=WIDTHS, clip=CLIPS, signed=st.booleans())
def test_it_is_the_definition_bit_for_bit(x, bits, clip, signed):
    lo, hi = levels(bits, signed)
    size = torch.tensor(clip) / hi
    expected = size * torch.clamp(torch.round(x / size), lo, hi)
    assert torch.equal(quantize(x, bits, clip, signed), expected)


@given(x=TENSORS, bits=WIDTHS, clip=CLIPS, signed=st.booleans())
def test_quantizing_twice_changes_nothing(x, bits, clip, signed):
    once = quantize(x, bits, clip, signed)
    assert torch.equal(quantize(once, bits, clip, signed), once)


@given(x=TENSORS, bits=WIDTHS, clip=CLIPS, signed=st.booleans())
def test_codes_times_the_step_is_the_quantized_tensor(x, bits, clip, signed):
    whole = codes(x, bits, clip, signed)
    lo, hi = levels(bits, signed)
    assert whole.dtype == (torch.int8 if signed else torch.uint8)
    assert lo <= int(whole.min()) and int(whole.max()) <= hi
    assert torch.equal(whole * step(bits, clip, signed), quantize(x, bits, clip, signed))


@given(x=TENSORS, bits=WIDTHS, clip=CLIPS)
def test_signs_do_not_matter(x, bits, clip):
    assert torch.equal(quantize(-x, bits, clip), -quantize(x, bits, clip))


@given(x=TENSORS, bits=WIDTHS, clip=CLIPS, signed=st.booleans())
def test_no_value_moves_by_more_than_half_a_step_inside_the_clip(x, bits, clip, signed):
    size = float(step(bits, clip, signed))
    inside = x.clamp(-clip if signed else 0.0, clip)
    moved = (quantize(inside, bits, clip, signed).double() - inside.double()).abs().max()
    assert float(moved) <= size / 2 * (1 + 2e-5)


@every_width
@either_sign
def test_it_agrees_with_torch_away_from_the_halves(bits, signed):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * 2
    lo, hi = levels(bits, signed)
    size = step(bits, 3.0, signed)
    ratio = (x / size).double()
    clear = (ratio - ratio.floor() - 0.5).abs() > 1e-3
    reference = torch.fake_quantize_per_tensor_affine(x, float(size), 0, lo, hi)
    torch.testing.assert_close(quantize(x, bits, 3.0, signed)[clear], reference[clear])


@every_width
def test_it_agrees_with_torch_per_channel(bits):
    x = torch.randn(6, 500, generator=torch.Generator().manual_seed(bits))
    clip = torch.linspace(0.5, 3, 6)
    size = step(bits, clip, signed=True)
    ratio = (x / size[:, None]).double()
    clear = (ratio - ratio.floor() - 0.5).abs() > 1e-3
    lo, hi = levels(bits, True)
    zeros = torch.zeros(6, dtype=torch.int32)
    reference = torch.fake_quantize_per_channel_affine(x, size, zeros, 0, lo, hi)
    torch.testing.assert_close(quantize(x, bits, clip[:, None])[clear], reference[clear])


def test_gradients_pass_inside_the_clip_and_at_its_ends_and_nowhere_else():
    beyond = math.nextafter(1.0, 2.0) + 1e-7
    x = torch.tensor([-2.0, -beyond, -1.0, -0.3, 0.0, 0.9, 1.0, beyond, 2.0])
    assert gradient(x, 3, 1.0) == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert gradient(x, 3, 1.0, signed=False) == [0, 0, 0, 0, 1, 1, 1, 0, 0]


@either_sign
def test_gradients_per_channel_are_those_of_each_channel_alone(signed):
    x = torch.linspace(-4, 4, 33).repeat(3, 1)
    clip = torch.tensor([0.5, 1.7, 9.0])
    together = gradient(x, 4, clip[:, None], signed)
    for row, one in enumerate(clip):
        assert together[33 * row : 33 * (row + 1)] == gradient(x[row], 4, float(one), signed)


def test_the_incoming_gradient_is_passed_on():
    x = torch.tensor([0.1, 0.2, 5.0], requires_grad=True)
    quantize(x, 4, 1.0).backward(torch.tensor([3.0, -2.0, 7.0]))
    assert x.grad is not None and x.grad.tolist() == [3, -2, 0]


def test_it_can_be_differentiated_twice():
    x = torch.tensor([0.5, 5.0], requires_grad=True)
    (first,) = torch.autograd.grad(quantize(x, 4, 1.0).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [2, 0]


def test_a_clip_that_takes_no_gradient_gets_none():
    clip = torch.tensor(1.0)
    x = torch.ones(3, requires_grad=True)
    quantize(x, 4, clip).sum().backward()
    assert clip.grad is None and x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_memory_format_are_kept(dtype):
    x = torch.randn(2, 4, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = quantize(x, 4, 1.0)
    y.sum().backward()
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_rounded_in_float32():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(quantize(x, 6, 2.3), quantize(x.float(), 6, 2.3).bfloat16())


def test_the_argument_is_left_alone():
    x = torch.tensor([0.3, 7.0])
    quantize(x, 4, 1.0)
    assert x.tolist() == torch.tensor([0.3, 7.0]).tolist()


def test_nan_stays_nan_and_infinity_goes_to_the_last_level():
    y = quantize(torch.tensor([NAN, INF, -INF]), 4, 7.0)
    assert math.isnan(y[0]) and y[1:].tolist() == [7, -7]


def test_nan_has_no_code():
    with pytest.raises(ValueError, match="cannot encode 2 NaN among 3 values"):
        codes(torch.tensor([NAN, 1.0, NAN]), 4, 1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, NAN, INF, 1e-45])
def test_a_clip_must_be_a_positive_number(clip):
    message = re.escape(f"clips must be positive and finite, not {float(torch.tensor(clip))!r}")
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(2), 4, clip)
    with pytest.raises(ValueError, match=message):
        codes(torch.ones(2), 4, torch.tensor([1.0, clip]))
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(2), 4, torch.tensor([clip]))
