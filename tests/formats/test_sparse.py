"""Codes that are mostly zero: back from every format, as many bytes as the formulas say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.costs import size_bytes
from haq.allocation.sparse import sparse_bits, sparse_bytes
from haq.formats.sparse import FORMATS, decode, encode
from haq.network.layers import Layer

every_format = pytest.mark.parametrize("name", FORMATS)


def codes(count, share, bits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    top = 2 ** (bits - 1) - 1
    values = torch.randint(1, top + 1, (count,), generator=generator)
    values *= 1 - 2 * torch.randint(2, (count,), generator=generator)
    values[torch.randperm(count, generator=generator)[: round(share * count)]] = 0
    return values.to(torch.int8)


@every_format
@given(
    values=st.lists(st.sampled_from([0, 0, 0, 1, -1, 3]), max_size=60),
    gap=st.integers(0, 700),
    bits=st.integers(3, 8),
)
def test_codes_come_back_from_every_format(name, values, gap, bits):
    whole = torch.tensor(values + [0] * gap + [2], dtype=torch.int8)
    data = FORMATS[name].write(whole.numpy(), bits)
    assert decode(name, data, bits, len(whole)).tolist() == whole.tolist()


@every_format
def test_nothing_and_zeros_alone_come_back(name):
    for whole in (torch.zeros(0, dtype=torch.int8), torch.zeros(5000, dtype=torch.int8)):
        data = FORMATS[name].write(whole.numpy(), 4)
        assert decode(name, data, 4, len(whole)).tolist() == whole.tolist()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_files_are_as_large_as_the_formulas_say(share, bits):
    whole = codes(40_000, share, bits)
    zeros = int((whole == 0).sum())
    expected = sparse_bits(len(whole), zeros, bits)
    for name, one in FORMATS.items():
        assert 8 * len(one.write(whole.numpy(), bits)) == pytest.approx(expected[name], rel=0.02)
    name, data = encode(whole.numpy(), bits)
    assert expected[name] <= 1.02 * min(expected.values())
    assert len(data) == pytest.approx(sparse_bytes(len(whole), zeros, bits), rel=0.02)


def test_the_formulas_by_hand():
    four = sparse_bits(10**6, 8 * 10**5, 4)
    assert {name: round(value / 10**6, 3) for name, value in four.items()} == {
        "dense": 4, "bitmask": 1.8, "coded mask": 1.522, "relative index": 1.646,
    }  # fmt: skip
    # A bitmask pays from a share of 1 / bits on.
    for bits in (2, 4, 8):
        at = sparse_bits(1000, 1000 // bits, bits)
        assert at["bitmask"] == at["dense"]


def test_the_size_of_a_pruned_layer_is_that_of_its_cheapest_format():
    layer = Layer("a", "linear", c_in=100, c_out=10, weights=1000, biases=10)
    pruned = Layer("a", "linear", c_in=100, c_out=10, weights=1000, biases=10, zeros=900)
    assert size_bytes(layer, 4) == 500 + 40 + 40
    assert size_bytes(pruned, 4) == sparse_bytes(1000, 900, 4) + 40 + 40 < 200
    assert size_bytes(pruned, 32) == size_bytes(layer, 32)  # what stays float is written whole


@every_format
def test_data_that_do_not_fit_are_refused(name):
    whole = codes(300, 0.8, 4)
    data = FORMATS[name].write(whole.numpy(), 4)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ValueError):
            decode(name, wrong, 4, 300)
    if name != "relative index":  # whose last zeros are not written
        with pytest.raises(ValueError):
            decode(name, data, 4, 9000)


@given(place=st.integers(0, 60), bit=st.integers(0, 7))
def test_a_bit_that_is_turned_is_refused_or_gives_other_codes_never_an_error(place, bit):
    whole = codes(300, 0.9, 4)
    for name, one in FORMATS.items():
        data = bytearray(one.write(whole.numpy(), 4))
        data[place % len(data)] ^= 1 << bit
        try:
            assert len(decode(name, bytes(data), 4, 300)) == 300
        except ValueError:
            pass


def test_a_format_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no format 'zip' \(known: dense, bitmask"):
        decode("zip", b"", 4, 0)
