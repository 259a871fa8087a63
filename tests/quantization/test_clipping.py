"""Where the methods clip: duties of every method, and what tells them apart."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from haq.errors import HaqError
from haq.quantization.clipping import CLIPPING, activation_clips, weight_clips
from haq.quantization.quantizer import BITS, codes, quantize, step

FINITE = st.floats(-1e6, 1e6, width=32).map(lambda value: value if abs(value) > 1e-20 else 0.0)
SOME = (2, 4, 8)
SAMPLES = st.lists(FINITE, min_size=1, max_size=60).map(torch.tensor)

every_method = pytest.mark.parametrize("method", CLIPPING)
searching = pytest.mark.parametrize("method", ["kl", "mse"])


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy(count: int, seed: int = 0) -> Tensor:
    tail = torch.rand(count, generator=torch.Generator().manual_seed(seed)).log().neg()
    return tail * normal(count, seed + 1).sign()  # Laplace


def with_outlier() -> Tensor:
    values = normal(10_000)
    values[123] = 1e6
    return values


def squared_error(values: Tensor, bits: int, clip: float) -> float:
    return float((quantize(values, bits, clip) - values).double().square().sum())


@every_method
@given(values=SAMPLES, signed=st.booleans())
def test_clips_are_positive_and_within_the_values(method, values, signed):
    values = values if signed else values.abs()
    largest = float(values.abs().max())
    for clip in activation_clips(values, SOME, signed, method).values():
        assert 0 < clip <= largest or (largest == 0 and clip == 1.0)


@every_method
@given(values=SAMPLES, power=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_clips(method, values, power):
    clips = activation_clips(values, SOME, True, method)
    scaled = activation_clips(values * 2.0**power, SOME, True, method)
    zero = not bool(values.any())
    assert scaled == {bits: clip if zero else clip * 2.0**power for bits, clip in clips.items()}


@every_method
@given(values=SAMPLES, seed=st.integers(0, 99))
def test_order_and_repetition_of_the_call_do_not_matter(method, values, seed):
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    clips = activation_clips(values, SOME, True, method)
    assert activation_clips(values[order], SOME, True, method) == clips


@every_method
@given(values=SAMPLES)
def test_neither_signs_nor_zeros_matter(method, values):
    more = torch.cat([-values, torch.zeros(len(values))])
    clips = activation_clips(values, SOME, True, method)
    assert activation_clips(more, SOME, True, method) == clips


@every_method
@given(values=SAMPLES)
def test_what_is_clipped_so_can_be_quantized(method, values):
    for bits, clip in activation_clips(values, SOME, True, method).items():
        assert bool(torch.isfinite(quantize(values, bits, clip)).all())


# Only for large samples: a few values may happen to lie on the grid of one bit-width.
@every_method
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("values", [normal(20_000), heavy(20_000)], ids=["normal", "laplace"])
def test_more_bits_never_clip_more_of_a_smooth_distribution(method, signed, values):
    values = values if signed else values.relu()
    clips = list(activation_clips(values, BITS, signed, method).values())
    assert clips == sorted(clips)


@every_method
def test_a_channel_alone_gets_the_clip_it_gets_among_others(method):
    weight = torch.stack([normal(144, seed) * (seed + 1) for seed in range(6)])
    together = weight_clips(weight, BITS, method)
    for channel, row in enumerate(weight):
        alone = weight_clips(row[None], BITS, method)
        for bits in BITS:
            torch.testing.assert_close(together[bits][channel], alone[bits][0])


@every_method
def test_shapes_of_weight_clips(method):
    weight = normal(5 * 3 * 9).view(5, 3, 3, 3)
    assert weight_clips(weight, [4, 8], method)[4].shape == (5,)
    assert weight_clips(weight, [4, 8], method, per_channel=False)[8].shape == (1,)
    assert list(weight_clips(weight, [8, 2], method)) == [8, 2]


@every_method
def test_a_tensor_of_zeros_has_clip_one_and_codes_zero(method):
    weight = torch.zeros(3, 2, 3, 3)
    for bits, clip in weight_clips(weight, BITS, method).items():
        assert clip.tolist() == [1, 1, 1]
        assert not bool(codes(weight, bits, clip.view(3, 1, 1, 1)).any())
    assert set(activation_clips(torch.zeros(9), BITS, False, method).values()) == {1.0}


@every_method
def test_a_channel_of_zeros_leaves_the_others_alone(method):
    weight = torch.stack([normal(100), torch.zeros(100)])
    for bits, clip in weight_clips(weight, BITS, method).items():
        torch.testing.assert_close(clip[0], weight_clips(weight[:1], BITS, method)[bits][0])
        assert clip[1] == 1.0


@every_method
@pytest.mark.parametrize("value", [0.37, -123.4, 1e-12])
def test_a_constant_channel_stays_what_it_is(method, value):
    weight = torch.full((1, 64), value)
    for bits, clip in weight_clips(weight, BITS, method).items():
        torch.testing.assert_close(quantize(weight, bits, clip[:, None]), weight)


@every_method
def test_one_value_stays_what_it_is(method):
    for bits, clip in activation_clips(torch.tensor([2.5]), BITS, False, method).items():
        assert float(quantize(torch.tensor(2.5), bits, clip, signed=False)) == pytest.approx(2.5)


@every_method
def test_values_too_small_for_a_step_count_as_zeros(method):
    assert activation_clips(torch.tensor([1e-44, 0.0]), [8], False, method) == {8: 1.0}


@pytest.mark.parametrize("method", ["kl", "mse", "percentile"])
def test_an_accident_among_ten_thousand_values_is_clipped_away(method):
    clips = activation_clips(with_outlier(), BITS, True, method)
    assert clips[4] < 10
    assert max(clips.values()) < 20  # at eight bits too: nothing else would be left


def test_max_keeps_the_accident():
    assert set(activation_clips(with_outlier(), BITS, True, "max").values()) == {1e6}


@searching
def test_a_few_large_weights_among_many_small_ones_are_no_accident(method):
    weight = torch.cat([torch.full((44,), 1.0), normal(100) * 1e-6])[None]
    clip = weight_clips(weight, [4], method)[4]
    assert quantize(weight, 4, clip[:, None])[0, 0] == pytest.approx(1.0, abs=0.1)


@searching
def test_few_values_among_zeros_are_no_accident(method):
    values = torch.zeros(50_000)
    values[:2] = torch.tensor([1.0, 9.0])
    assert activation_clips(values, [8], False, method)[8] == pytest.approx(9.0, rel=0.02)


@pytest.mark.parametrize("bits", BITS)
def test_mse_is_as_good_as_the_best_of_many_clips(bits):
    values = normal(500)
    tried = torch.linspace(0.2, 1, 400) * values.abs().max()
    best = min(squared_error(values, bits, float(clip)) for clip in tried)
    found = activation_clips(values, [bits], True, "mse")[bits]
    assert squared_error(values, bits, found) <= 1.05 * best


@pytest.mark.parametrize("bits, optimum", [(2, 1.224), (3, 1.952), (4, 2.474)])
def test_mse_finds_the_known_optimum_of_a_normal_distribution(bits, optimum):
    # Uniform quantizers of 3, 7 and 15 levels: steps 1.224, 0.6508 and 0.3534 (Max, 1960).
    found = activation_clips(normal(200_000), [bits], True, "mse")[bits]
    assert found == pytest.approx(optimum, rel=0.04)


def test_kl_keeps_the_energy_of_coarse_weights():
    # What makes it better than least squares at few bits: these lose a tenth of the energy.
    weight = normal(64 * 144).view(64, 144)
    clip = weight_clips(weight, [3], "kl")[3][:, None]
    least = weight_clips(weight, [3], "mse")[3][:, None]
    energy = weight.square().sum()
    assert float(quantize(weight, 3, clip).square().sum() / energy) == pytest.approx(1, abs=0.05)
    assert float(quantize(weight, 3, least).square().sum() / energy) < 0.97


def test_kl_takes_the_tail_into_account_where_plain_histograms_see_nothing():
    # 144 weights: nearly every one alone in its bin, yet clipping at the largest wastes levels.
    weight = normal(200 * 144).view(200, 144)
    clip = weight_clips(weight, [3], "kl")[3]
    assert 0.5 < float((clip / weight.abs().amax(1)).mean()) < 0.9


@pytest.mark.parametrize("signed", [True, False])
def test_kl_hardly_clips_at_eight_bits(signed):
    values = normal(5000) if signed else normal(5000).relu()
    assert activation_clips(values, [8], signed, "kl")[8] > 0.9 * float(values.max())


def test_max_is_the_largest_magnitude():
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    assert weight_clips(weight, [4], "max")[4].tolist() == [3.0, 0.5]
    assert weight_clips(weight, [4], "max", per_channel=False)[4].tolist() == [3.0]


def test_percentile_by_hand():
    values = torch.arange(1, 2001).float()
    assert activation_clips(values, [2, 8], False, "percentile") == {2: 1998.0, 8: 1998.0}


@every_method
def test_values_that_are_not_numbers_are_counted(method):
    values = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0])
    with pytest.raises(ValueError, match="3 of 5 values are not finite numbers"):
        activation_clips(values, BITS, True, method)
    with pytest.raises(ValueError, match="3 of 5 values are not finite numbers"):
        weight_clips(values[:, None], BITS, method)


@every_method
def test_nothing_cannot_be_calibrated_on(method):
    with pytest.raises(ValueError, match="the tensor is empty"):
        activation_clips(torch.empty(0), BITS, False, method)
    with pytest.raises(ValueError, match="the tensor is empty"):
        weight_clips(torch.empty(0, 3, 3, 3), BITS, method)


@every_method
def test_negative_values_are_not_unsigned(method):
    with pytest.raises(ValueError, match="2 of 3 values of an unsigned tensor are negative, down"):
        activation_clips(torch.tensor([-0.5, 1.0, -2.0]), BITS, False, method)


@every_method
def test_widths_out_of_range_are_refused(method):
    with pytest.raises(ValueError, match="bits must be from 2 to 8, not 9"):
        activation_clips(torch.ones(3), [4, 9], False, method)


def test_an_unknown_method_is_named():
    with pytest.raises(HaqError, match="unknown clipping 'klm'; did you mean 'kl'?"):
        activation_clips(torch.ones(3), BITS, False, "klm")


@every_method
def test_a_step_is_never_lost_to_underflow(method):
    clip = activation_clips(torch.tensor([1e-29, 2e-29]), [8], False, method)[8]
    assert float(step(8, clip, signed=False)) > 0
