"""The numbers behind packets: quantizer, entropies, tables, the coder. Checks C-D1 and C-D2."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from haq.errors import UpdateError
from haq.formats.coder import rans, tables
from haq.formats.update import entropies, order, quantizer
from haq.formats.update.contexts import CONTEXTS, codes, symbols
from haq.formats.update.field import Field

W = np.array([-1, -0.66, -0.35, -0.14, 0, 0.14, 0.2, 0.39, 0.41, 0.61, 1])


@pytest.mark.parametrize(
    "offset, z",
    [
        (0.4, [-4, -3, -1, 0, 0, 0, 1, 1, 2, 2, 4]),
        (0.5, [-4, -3, -1, -1, 0, 1, 1, 2, 2, 2, 4]),
    ],
)
def test_quantizer_by_hand(offset, z):
    assert quantizer.quantize(W, 0.25, offset).tolist() == z


def test_the_largest_code_is_kept():
    assert quantizer.quantize(W, 0.25, 0.5, most=3).tolist()[-1] == 3


@given(arrays.arrays(np.float32, 40, elements=st.floats(-8, 8, width=32)), st.floats(0, 0.99))
def test_the_quantizer_treats_both_signs_alike_and_errs_by_less_than_a_step(w, offset):
    z = quantizer.quantize(w, 0.5, offset)
    assert np.array_equal(quantizer.quantize(-w, 0.5, offset), -z)
    assert (np.abs(w - 0.5 * z) <= 0.5 * max(offset, 1 - offset) + 1e-6).all()


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_must_be_positive_and_finite(step):
    with pytest.raises(UpdateError, match="steps are positive and finite"):
        quantizer.quantize(W, step, 0.5)


def test_an_offset_of_one_is_refused():
    with pytest.raises(UpdateError, match="rounding offset of 1"):
        quantizer.quantize(W, 0.25, 1.0)


@pytest.mark.parametrize(
    "ratio, offset, bits",
    [(1, 0.5, 2.48414), (1.22993, 0.4, 2.06558), (0.25, 0.4, 4.40947), (3, 0.3, 0.69563)],
)
def test_entropy_of_a_laplacian(ratio, offset, bits):
    assert entropies.laplace_entropy(ratio, offset) == pytest.approx(bits, abs=1e-5)
    numbers = np.random.default_rng(0).laplace(0, 1, 400_000)
    z = quantizer.quantize(numbers, ratio, offset)
    assert entropies.order0(z) / len(z) == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize(
    "mean, size, other_mean, other_size, nats",
    [
        (0, 1, 0, 2, 0.193147181), (0.5, 1, 0, 2, 0.246412510), (0, 2, 0, 1, 0.306852819),
        (0, 1, 3, 1, 2.049787068),
    ],
)  # fmt: skip
def test_relative_entropy_of_laplacians(mean, size, other_mean, other_size, nats):
    known = entropies.laplace_divergence(mean, size, other_mean, other_size)
    assert known == pytest.approx(nats, abs=1e-9)


def test_offsets_of_a_laplacian():
    assert quantizer.centroid_offset(1.22993) == pytest.approx(0.4, abs=1e-5)
    assert quantizer.centroid_offset(1e-6) == pytest.approx(0.5)
    assert quantizer.magnitude_offset(1.0) == pytest.approx(0.541325, abs=1e-6)


def test_non_zero_levels_are_the_means_of_their_bins():
    w = np.random.default_rng(1).laplace(0, 1, 400_000)
    z = quantizer.quantize(w, 1.22993, 0.4)
    assert np.abs(w[z != 0]).mean() == pytest.approx(np.abs(1.22993 * z[z != 0]).mean(), abs=0.01)


def test_offsets_below_five_bits_follow_the_weights_and_are_a_half_above():
    w = np.random.default_rng(2).laplace(0, 1, 10_000).astype(np.float32)
    assert quantizer.offset_for(w, 1.2, 4) == pytest.approx(0.4, abs=0.01)
    assert quantizer.offset_for(w, 1.2, 5) == 0.5
    assert quantizer.offset_for(np.zeros(3, np.float32), 1.0, 2) == 0.5


def test_permuted_values_have_no_relative_entropy():
    w = np.random.default_rng(3).normal(size=1000)
    assert entropies.histogram_divergence(w, w[::-1]) == 0
    assert entropies.histogram_divergence(w, 2 * w) > 0.1


@given(arrays.arrays(np.uint8, st.integers(1, 255), elements=st.integers(0, 45)))
def test_frequencies_sum_to_4096_and_keep_what_occurs(levels):
    if levels.max() < 2:
        levels[0] = 2
    shares = tables.frequencies(levels)
    assert shares.sum() == 4096
    assert ((shares > 0) == (levels > 0)).all()


def test_frequencies_by_hand():
    # Weights 8, 10, 0, 1 of 19; 4092 beside one each: they end at 1722.9, 3876.6, 3876.6, 4092.
    assert tables.frequencies(np.array([9, 10, 1, 2], np.uint8)).tolist() == [1723, 2155, 1, 217]


@pytest.mark.parametrize(
    "levels, sentence",
    [([0, 1], "no symbol with a weight"), ([46], "level 46, and the highest is 45")],
)
def test_tables_that_are_none_are_refused(levels, sentence):
    with pytest.raises(UpdateError, match=sentence):
        tables.frequencies(np.array(levels, np.uint8))


@given(arrays.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 10**6)))
def test_levels_cost_little_over_the_entropy(counts):
    if not counts.sum():
        return
    shares = tables.frequencies(tables.levels_of(counts))
    used = counts > 0
    spent = (counts[used] * (12 - np.log2(shares[used]))).sum()
    # Four levels an octave, and a slot of 4096 for each symbol.
    assert spent <= tables.bits_of(counts) + counts.sum() * 0.09 + 1e-6


@settings(deadline=None)
@given(st.data())
def test_the_coder_gives_back_symbols_and_what_it_began_with(data):
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    lanes = data.draw(st.integers(1, 40))
    shares = [tables.frequencies(numbers.integers(2, 46, 9).astype(np.uint8)) for _ in range(3)]
    lengths = data.draw(st.lists(st.integers(0, 200), min_size=0, max_size=4))
    runs = [(numbers.integers(0, 9, n), numbers.integers(0, 3, n)) for n in lengths]
    stash = numbers.bytes(data.draw(st.integers(0, 2 * lanes)))
    states, words = rans.encode(runs, shares, lanes, stash)
    decoder = rans.Decoder(states, words)
    entries = tables.expanded(shares)
    for values, table in runs:
        assert decoder.run(table, entries).tolist() == values.tolist()
    assert decoder.end() == stash.ljust(2 * lanes, b"\0")


def test_a_symbol_that_is_alone_takes_nothing():
    run = (np.zeros(10_000, np.int64), np.zeros(10_000, np.int64))
    _, words = rans.encode([run], [np.array([4096])], 4)
    assert len(words) == 0


def test_words_that_are_missing_or_left_over_are_seen():
    shares = [tables.frequencies(np.full(16, 5, np.uint8))]
    run = (np.arange(400) % 16, np.zeros(400, np.int64))
    states, words = rans.encode([run], shares, 3)
    with pytest.raises(UpdateError, match="end too early"):
        rans.Decoder(states, words[:-1]).run(run[1], tables.expanded(shares))
    decoder = rans.Decoder(states, np.append(words, words[:1]))
    decoder.run(run[1], tables.expanded(shares))
    with pytest.raises(UpdateError, match="1 words of the coder are left over"):
        decoder.end()


def test_lanes_that_are_none_or_begin_or_end_as_no_encoders_do_are_seen():
    none, state = np.zeros(0, np.uint16), np.array([1 << 16], np.uint32)
    assert rans.Decoder(state, none).end() == b"\0\0"
    assert rans.Decoder(2 * state - 1, none).end() == b"\xff\xff"
    with pytest.raises(UpdateError, match="begins below 2"):
        rans.Decoder(state - 1, none)
    with pytest.raises(UpdateError, match="does not end where encoders begin"):
        rans.Decoder(2 * state, none).end()
    with pytest.raises(UpdateError, match="no lanes, and symbols to decode"):
        rans.Decoder(state[:0], none).run(np.zeros(1, int), tables.expanded([np.array([4096])]))


shapes = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 30)),
    st.just(()),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(17), st.just(17)),
)


@given(shapes)
def test_every_place_of_a_tensor_is_in_one_pass(shape):
    size = order.planes(shape)
    seen = np.zeros(size, int)
    for one in order.passes(shape):
        seen[one.plane, one.row :: one.stride, one.column :: one.stride] += 1
    assert (seen == 1).all()


@given(shapes)
def test_planes_and_back(shape):
    values = np.arange(int(np.prod(shape, dtype=int)))
    assert order.from_planes(order.to_planes(values, shape)).tolist() == values.tolist()


@settings(deadline=None)
@given(shapes, st.integers(2, 8), st.booleans(), st.integers(0, 2**32))
def test_symbols_stand_for_codes_whatever_the_base_predicts(shape, bits, has_base, seed):
    numbers = np.random.default_rng(seed)
    size, top = order.planes(shape), 2 ** (bits - 1) - 1
    apart = bool(seed % 2)
    z = numbers.integers(-top - 1, top + 1, size).astype(np.int32)
    base = numbers.integers(-16 * top, 16 * top + 1, size).astype(np.int32) if has_base else None
    near = numbers.integers(-1023, 1024, order.coefficients_of(shape[2:], has_base)).tolist()
    field = Field(shape, bits, near, base, None if base is None else base == 0)
    for one in field.passes:
        step = field.step(one)
        here = z[one.plane, one.row :: one.stride, one.column :: one.stride]
        values = symbols(step, here, bits, apart)
        assert values.min() >= 0 and values.max() <= 2 * top + 1
        assert 0 <= step.context.min() and step.context.max() < CONTEXTS
        assert np.array_equal(codes(step, values, bits, apart), here)
        field.learn(one, here)
