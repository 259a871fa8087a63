"""Where the methods clip: duties of every method, and what tells them apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from haq.calibrate import CLIPPING, NOTHING, activation_clips, weight_clips
from haq.errors import HaqError
from haq.quantizers import codes, quantize

WIDTHS = range(2, 9)
every_method = pytest.mark.parametrize("method", CLIPPING)
weights = arrays("float32", (3, 20), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)


@every_method
@given(weight=weights)
@settings(max_examples=20)
def test_a_clip_is_positive_and_not_above_the_largest_value(method, weight):
    highest = weight.abs().amax(1)
    for clip in weight_clips(weight, WIDTHS, method).values():
        assert clip.shape == (3,)
        assert bool((clip > 0).all())
        assert bool(((clip <= highest * (1 + 1e-6)) | (highest <= NOTHING)).all())


@every_method
@given(weight=weights, power=st.integers(-8, 8))
@settings(max_examples=20)
def test_the_unit_does_not_matter(method, weight, power):
    small, large = (weight_clips(w, [2, 4, 8], method) for w in (weight, weight * 2.0**power))
    used = weight.abs().amax(1) > 1e-20
    for bits, clip in small.items():
        assert torch.equal(clip[used] * 2.0**power, large[bits][used])


@every_method
def test_the_order_of_the_values_does_not_matter(method):
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    mixed = weight[:, torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    before, after = (weight_clips(w, [3, 5], method) for w in (weight, mixed))
    assert all(torch.allclose(before[bits], after[bits], rtol=1e-5) for bits in before)


@every_method
def test_a_channel_does_not_depend_on_its_neighbours_scale(method):
    weight = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    alone = weight_clips(weight[:1], [3], method)[3]
    beside = weight_clips(torch.stack([weight[0], 1000 * weight[1]]), [3], method)[3]
    assert beside[0] == pytest.approx(float(alone[0]), rel=0.1)


@every_method
def test_zeros_are_clipped_at_one_and_stay_zeros(method):
    weight = torch.zeros(2, 3, 3, 3)
    weight[1] = torch.randn(3, 3, 3)
    for bits, clip in weight_clips(weight, WIDTHS, method).items():
        assert clip[0] == 1.0
        assert not codes(weight[0], bits, clip[0]).any()
    assert set(activation_clips(torch.zeros(50), WIDTHS, False, method).values()) == {1.0}


@every_method
def test_a_constant_channel_is_nearly_exact(method):
    weight = torch.full((2, 9), 0.37)
    for bits, clip in weight_clips(weight, WIDTHS, method).items():
        rounded = quantize(weight, bits, clip[:, None])
        assert torch.allclose(rounded, weight, rtol=0.05)


@every_method
def test_one_outlier_of_a_million(method):
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values[77] = 1e6
    clips = activation_clips(values, [4, 8], True, method)
    assert (clips[4] == 1e6) == (method == "max")
    assert clips[4] < 10 or method == "max"


def test_max_is_the_largest_magnitude():
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    assert weight_clips(weight, [4], "max")[4].tolist() == [3.0, 0.5]
    assert weight_clips(weight, [4], "max", per_channel=False)[4].tolist() == [3.0]


def test_the_percentile_leaves_one_of_a_thousand_out():
    assert activation_clips(torch.arange(1, 2001).float(), [8], False, "percentile")[8] == 1998


@pytest.mark.parametrize("method", ["kl", "mse"])
def test_fewer_bits_clip_a_normal_distribution_earlier(method):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    clips = list(activation_clips(values, range(2, 8), True, method).values())
    assert clips == sorted(clips)


def test_mse_clips_a_normal_distribution_where_the_textbook_does():
    # Max (1960): steps of 0.6508 and 0.3534 standard deviations; 3 and 7 levels on each side.
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    clips = activation_clips(values, [3, 4], True, "mse")
    assert clips[3] == pytest.approx(3 * 0.6508, rel=0.08)
    assert clips[4] == pytest.approx(7 * 0.3534, rel=0.08)


def test_kl_takes_the_tail_into_account_where_plain_histograms_see_nothing():
    # 144 weights: nearly every one alone in its bin, yet clipping at the largest wastes levels.
    weight = torch.randn(200, 144, generator=torch.Generator().manual_seed(0))
    clip = weight_clips(weight, [3], "kl")[3]
    assert 0.5 < float((clip / weight.abs().amax(1)).mean()) < 0.9


@every_method
def test_what_cannot_be_calibrated_on(method):
    with pytest.raises(ValueError, match="2 of 4 values are not finite"):
        weight_clips(torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]), [4], method)
    with pytest.raises(ValueError, match="empty"):
        activation_clips(torch.empty(0), [4], True, method)
    with pytest.raises(ValueError, match="an unsigned tensor has a value of -1"):
        activation_clips(torch.tensor([-1.0, 2.0]), [4], False, method)


def test_an_unknown_method():
    with pytest.raises(HaqError, match="unknown clipping 'kll'; did you mean 'kl'"):
        weight_clips(torch.ones(1, 2), [4], "kll")


@every_method
def test_a_single_value(method):
    assert activation_clips(torch.tensor([0.7]), [8], False, method)[8] == pytest.approx(
        0.7, rel=0.1
    )
