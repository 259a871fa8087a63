"""NE16: cycles of the engine's performance model, and what follows from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import load
from haq.hw_profiles.ne16 import parts
from haq.network.layers import Layer

NE16 = load("gap9-ne16")


def conv(c_in: int, c_out: int, side: int, kernel: int = 3, groups: int = 1) -> Layer:
    kinds = {1: "pointwise"} if groups == 1 else {}
    kind = (
        "depthwise"
        if 1 < groups == c_in
        else kinds.get(kernel, "conv" if groups == 1 else "grouped")
    )
    size = (side, side)
    return Layer("a", kind, c_in, c_out, (kernel,) * 2, groups=groups, in_size=size, out_size=size)


def cycles(layer: Layer, weight_bits: int = 8) -> float:
    return NE16.cost(layer, Bits(weight_bits, 8))["latency"]


@pytest.mark.parametrize(
    "layer, expected",
    [
        (conv(64, 64, 8), {8: 22_644, 6: 18_036, 4: 13_428, 3: 11_124, 2: 8_820}),
        (conv(64, 384, 14, kernel=1), dict.fromkeys((8, 6, 4, 3, 2), 94_200)),
        (conv(384, 384, 14, groups=384), {8: 136_200, 6: 117_000, 4: 97_800, 3: 88_200, 2: 78_600}),
    ],
)
def test_cycles_are_those_of_the_published_model(layer: Layer, expected: dict[int, int]):
    assert {bits: cycles(layer, bits) for bits in expected} == expected


def test_a_tile_by_hand():
    # 16 input channels are one pass: 31 to load, 6, 6 + 32 * 2 to multiply, 2; then 9 + 32 and 13.
    assert cycles(conv(16, 32, 3), 2) == 31 + 6 + (6 + 64) + 2 + (9 + 32) + 13
    # One channel more is a pass more; one output channel more is a tile of one.
    assert cycles(conv(17, 32, 3), 2) == 2 * (31 + 6 + 70 + 2) + 41 + 13
    assert cycles(conv(16, 33, 3), 2) == cycles(conv(16, 32, 3), 2) + 31 + 6 + 8 + 2 + 10 + 13
    # A fourth row of outputs is another row of tiles.
    assert cycles(conv(16, 32, 4), 2) == 4 * cycles(conv(16, 32, 3), 2)


def test_a_linear_layer_is_a_1x1_convolution_of_its_positions():
    fc = Layer("fc", "linear", 64, 10)
    assert cycles(fc) == cycles(conv(64, 10, 1, kernel=1))
    assert cycles(Layer("fc", "linear", 64, 10, in_size=(7, 1), out_size=(7, 1))) == 3 * cycles(fc)


def test_other_kernels_are_cut_into_3x3_and_1x1():
    five, three, one = (cycles(conv(16, 32, 6, kernel=side)) for side in (5, 3, 1))
    assert five == three + 16 * one
    of_channels = [cycles(conv(32, 32, 6, kernel=side, groups=32)) for side in (3, 5)]
    assert of_channels[1] == 4 * of_channels[0]


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_the_parts_of_a_kernel_cover_it(kernel: tuple[int, int]):
    large, small = parts(kernel)
    assert 9 * large + small == kernel[0] * kernel[1]


def test_groups_are_done_one_after_the_other_and_images_too():
    assert cycles(conv(64, 64, 6, groups=2)) == 2 * cycles(conv(32, 32, 6))
    layer = conv(64, 64, 6)
    batch = load("gap9-ne16", batch=5).cost(layer, Bits(4, 8))["latency"]
    assert batch == 5 * cycles(layer, 4)


def test_it_has_8_bit_activations_only():
    layer = conv(64, 64, 6)
    assert NE16.choices(layer) == tuple(Bits(weight, 8) for weight in range(2, 9))
    with pytest.raises(
        TargetError, match="gap9-ne16 cannot run layer 'a' at w8a4; it can at w2..8"
    ):
        NE16.cost(layer, Bits(8, 4))


def test_what_it_is_worth_is_said():
    answer = NE16.how(conv(64, 64, 6), Bits(8, 8))["latency"]
    assert (answer.method, answer.provenance) == ("model", "modelled")
