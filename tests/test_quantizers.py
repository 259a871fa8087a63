"""The linear quantizer, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haq.quantizers import codes, levels, quantize, step

values = arrays("float32", st.integers(1, 40), elements=st.floats(-100, 100, width=32)).map(
    torch.from_numpy
)
clips = st.floats(2**-10, 2**10, width=32)
widths = st.integers(2, 8)


def test_two_bits_round_by_hand():
    x = torch.tensor([-9.0, -0.6, -0.4, 0.0, 0.4, 0.6, 9.0])
    assert quantize(x, 2, 1.0).tolist() == [-1, -1, 0, 0, 0, 1, 1]


def test_two_unsigned_bits_round_by_hand():
    x = torch.tensor([-1.0, 0.4, 0.6, 1.4, 2.6, 9.0])
    assert quantize(x, 2, 3.0, signed=False).tolist() == [0, 0, 1, 1, 3, 3]


def test_halves_go_to_the_even_level():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize(x, 3, 3.0).tolist() == [0, 2, 2, 0, -2, -2]


def test_it_divides_and_does_not_multiply_by_the_inverse():
    size = torch.tensor(6.3) / 127
    x = (torch.arange(126) + 0.5) * size
    expected = torch.round(x / size).clamp(-127, 127) * size
    assert torch.equal(quantize(x, 8, 6.3), expected)
    assert not torch.equal(torch.round(x * (1 / size)) * size, expected)


@pytest.mark.parametrize(
    "bits, signed, ends",
    [(2, True, (-1, 1)), (8, True, (-127, 127)), (2, False, (0, 3)), (8, False, (0, 255))],
)
def test_levels(bits, signed, ends):
    assert levels(bits, signed) == ends


@given(x=values, bits=widths, clip=clips, signed=st.booleans())
def test_quantizing_twice_changes_nothing(x, bits, clip, signed):
    once = quantize(x, bits, clip, signed)
    assert torch.equal(quantize(once, bits, clip, signed), once)


@given(x=values, bits=widths, clip=clips)
def test_the_grid_is_symmetric_and_holds_zero(x, bits, clip):
    assert torch.equal(quantize(-x, bits, clip), -quantize(x, bits, clip))
    assert quantize(torch.zeros(1), bits, clip).item() == 0


@given(x=values, bits=widths, clip=clips, signed=st.booleans())
def test_codes_times_step_are_the_values(x, bits, clip, signed):
    whole = codes(x, bits, clip, signed)
    low, high = levels(bits, signed)
    assert low <= int(whole.min()) <= int(whole.max()) <= high
    assert torch.equal(whole.float() * step(bits, clip, signed), quantize(x, bits, clip, signed))


@given(x=values, bits=widths, clip=clips)
def test_no_value_inside_the_clip_moves_by_more_than_half_a_step(x, bits, clip):
    inside = x.clamp(-clip, clip)
    size = clip / levels(bits, True)[1]
    moved = (quantize(inside, bits, clip) - inside).abs().max()
    assert float(moved) <= size / 2 * (1 + 1e-5)


@given(x=values, bits=widths, clip=clips)
def test_pytorchs_own_quantizer_agrees_away_from_the_halves(x, bits, clip):
    size = float(step(bits, clip, True))
    low, high = levels(bits, True)
    position = x / size
    clear = (position - position.floor() - 0.5).abs() > 1e-3
    theirs = torch.fake_quantize_per_tensor_affine(x, size, 0, low, high)
    ours = quantize(x, bits, clip)
    assert torch.allclose(ours[clear], theirs[clear], rtol=1e-6, atol=0)


def test_one_clip_a_channel():
    x = torch.tensor([[0.6, 9.0], [0.6, 9.0]])
    clip = torch.tensor([[1.0], [10.0]])
    assert quantize(x, 2, clip).tolist() == [[1, 1], [0, 10]]


@pytest.mark.parametrize(
    "signed, clip, passes",
    [
        (True, 1.0, [0, 1, 1, 1, 1, 1, 0]),
        (False, 1.0, [0, 0, 0, 1, 1, 1, 0]),
        (True, [[1.0], [0.25]], [0, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_gradients_pass_inside_the_clip_only(signed, clip, passes):
    x = torch.tensor([[-1.1, -1.0, -0.3, 0.0, 0.3, 1.0, 1.1]] * 2, requires_grad=True)
    quantize(x, 4, torch.tensor(clip), signed).sum().backward()
    assert x.grad[0].tolist() == passes
    if isinstance(clip, list):
        assert x.grad[1].tolist() == [0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_stay(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    y = quantize(x, 4, 1.0)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_nan_stays_nan_and_has_no_code():
    x = torch.tensor([0.2, float("nan")])
    assert quantize(x, 4, 1.0).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="cannot encode 1 NaN among 2 values"):
        codes(x, 4, 1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_is_positive_and_finite(clip):
    with pytest.raises(ValueError, match="clips must be positive and finite"):
        quantize(torch.ones(2), 4, clip)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_are_2_to_8(bits):
    with pytest.raises(ValueError, match="bits must be from 2 to 8"):
        quantize(torch.ones(2), bits, 1.0)
