"""Rooflines, and the ceilings of every target."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hw_targets import EVERY_TARGET
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import TARGETS, bitfusion, load
from haq.hw_profiles.ceilings import Ceilings, ceilings
from haq.hw_profiles.document import parse
from haq.hw_profiles.roofline import RooflineFormula
from haq.network.layers import Kind, Layer

CONV = Layer(
    "conv", "conv", 16, 32, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8)
)  # fmt: skip
W8A8 = Bits(8, 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def roofline(batch: int) -> RooflineFormula:
    formula = load("roofline-45nm", batch).formula
    assert isinstance(formula, RooflineFormula)
    return formula


def test_a_layer_bound_by_computing_by_hand() -> None:
    # 2 images, 32 * 64 outputs of 144 taps: 589824 products at 256 a ns. Moved are 36864 bits of
    # weights, 16384 of inputs and 32768 of outputs, at 96 bits a ns.
    cost = roofline(2).cost(CONV, W8A8)
    assert cost["latency"] == pytest.approx(589824 / 256) and 86016 / 96 < 589824 / 256
    product_pj = 0.203 + 0.1 + 8 * 0.021366 + 8 * 0.059474
    assert cost["energy"] == pytest.approx((589824 * product_pj + 20 * 86016) / 1000)


def test_a_layer_bound_by_the_memory_by_hand() -> None:
    # At 2 bits by 4, products are 8 times as fast, and outputs still have 8 bits.
    cost = roofline(2).cost(CONV, Bits(weight=2, act=4))
    moved = 36864 // 4 + 16384 // 2 + 32768
    assert cost["latency"] == pytest.approx(moved / 96) and 589824 / 256 / 8 < moved / 96
    product_pj = 0.203 / 8 + 0.1 + 2 * 0.021366 + 4 * 0.059474
    assert cost["energy"] == pytest.approx((589824 * product_pj + 20 * moved) / 1000)


def test_groups_see_their_own_channels_only() -> None:
    depthwise = replace(CONV, kind="depthwise", c_out=16, groups=16)
    energy = roofline(1).cost(depthwise, W8A8)["energy"]
    products, moved = 16 * 64 * 9, 8 * (16 * 9 + 2 * 16 * 64)
    product_pj = 0.203 + 0.1 + 8 * 0.021366 + 8 * 0.059474
    assert energy == pytest.approx((products * product_pj + 20 * moved) / 1000)


def test_weights_are_fetched_once_for_a_batch_and_again_for_another_call() -> None:
    fc = Layer("fc", "linear", 1000, 1000)
    one, many = (roofline(batch).cost(fc, W8A8)["latency"] for batch in (1, 4))
    assert [one, many] == [pytest.approx(8 * (1e6 + n * 2000) / 96) for n in (1, 4)]
    assert roofline(1).cost(replace(fc, calls=2), W8A8)["latency"] == 2 * one


sizes = st.integers(1, 300)


@given(c_in=sizes, c_out=sizes, pixels=sizes, weight=st.integers(1, 7), act=st.integers(1, 7))
def test_more_bits_never_cost_less(
    c_in: int, c_out: int, pixels: int, weight: int, act: int
) -> None:
    layer = Layer("fc", "linear", c_in, c_out, in_size=(pixels, 1), out_size=(pixels, 1))
    fewer = roofline(1).cost(layer, Bits(weight, act))
    for more in (Bits(weight + 1, act), Bits(weight, act + 1)):
        for quantity, cost in roofline(1).cost(layer, more).items():
            assert cost >= fewer[quantity]


# Ceilings.


@pytest.mark.parametrize(
    "name, bits, macs_per_second, bytes_per_second",
    [
        # 16 * 16 * 256 binary products a cycle at 200 MHz, two channels of 256 bits.
        ("bismo-cloud", (1, 1), 13.1072e12, 12.8e9),
        ("bismo-cloud", (8, 8), 204.8e9, 12.8e9),
        ("bismo-cloud", (2, 8), 819.2e9, 12.8e9),
        # 8 * 8 * 256 at 200 MHz: half of 6.5536 binary TOPS; two channels of 32 bits.
        ("bismo-edge", (1, 1), 3.2768e12, 1.6e9),
        # 16 * 32 units at 500 MHz, 16 products each at 2 bits; 192 bits a cycle.
        ("bitfusion-eyeriss", (8, 8), 256e9, 12e9),
        ("bitfusion-eyeriss", (2, 2), 4.096e12, 12e9),
        ("bitfusion-eyeriss", (6, 3), 512e9, 12e9),
        ("bitfusion-default", (8, 8), 32e9, 8e9),
        ("bitfusion-stripes", (8, 8), 501.76e9, 501.76e9),
        ("roofline-45nm", (8, 8), 256e9, 12e9),
        ("roofline-45nm", (4, 2), 2.048e12, 12e9),
    ],
)
def test_ceilings_by_hand(
    name: str, bits: tuple[int, int], macs_per_second: float, bytes_per_second: float
) -> None:
    expected = Ceilings(pytest.approx(macs_per_second), pytest.approx(bytes_per_second))
    assert ceilings(load(name), Bits(*bits)) == expected


def test_a_table_has_no_ceilings(tmp_path: Path) -> None:
    table = tmp_path / "board.csv"
    table.write_text("layer,weight_bits,act_bits,latency_us\nfc,8,8,12\n")
    assert ceilings(load(f"table:{table}"), W8A8) is None


@pytest.mark.parametrize("name", EVERY_TARGET)
@given(
    c_in=sizes, c_out=sizes, kind=st.sampled_from(["pointwise", "depthwise", "linear"]),
    place=st.integers(0, 63), batch=st.sampled_from([1, 16]),
)  # fmt: skip
def test_no_layer_breaks_through_the_ceiling(
    name: str, c_in: int, c_out: int, kind: Kind, place: int, batch: int
) -> None:
    target = load(name, batch)
    bits = target.pairs[place % len(target.pairs)]
    top = ceilings(target, bits)
    if top is None:
        pytest.skip("it states no ceilings")
    c_out = c_in if kind == "depthwise" else c_out
    layer = Layer("layer", kind, c_in, c_out, groups=c_in if kind == "depthwise" else 1)
    if kind == "depthwise":
        layer = replace(layer, kernel=(3, 3), in_size=(7, 7), out_size=(7, 7), padding=(1, 1))
    macs = batch * c_out * prod(layer.out_size) * c_in // layer.groups * prod(layer.kernel)
    seconds = target.cost(layer, bits)["latency"] * target.si["latency"]
    assert seconds * top.macs_per_second >= macs * (1 - 1e-9)


def test_bitfusion_moves_no_more_than_its_memory_can() -> None:
    target = load("bitfusion-eyeriss")
    top = ceilings(target, W8A8)
    assert top is not None and isinstance(target.formula, bitfusion.BitFusionFormula)
    for layer in (CONV, replace(CONV, kind="depthwise", c_out=16, groups=16)):
        work = target.formula.work(layer, W8A8)
        moved_bytes = (work.dram_read + work.dram_written) / 8
        assert moved_bytes <= top.bytes_per_second * work.cycles / 500e6


# Profiles that cannot be.


def _changed(name: str, change: Callable[[dict[str, Any]], object]) -> str:
    content: dict[str, Any] = json.loads(TARGETS[name].read_text(encoding="utf-8"))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        (
            "bitfusion-eyeriss",
            lambda profile: profile["model"]["array"].update(rows=0),
            "model.bitfusion: array.rows must be at least 1, not 0",
        ),
        (
            "bitfusion-eyeriss",
            lambda profile: profile["model"]["array"].update(fewest_bits=16),
            "array.fewest_bits must not be more than array.most_bits",
        ),
        (
            "bitfusion-eyeriss",
            lambda profile: profile["model"]["energy"].update(dram_pj=-1.0),
            "energy.dram_pj must not be negative, and is -1.0",
        ),
        (
            "bitfusion-eyeriss",
            lambda profile: profile["bits"].update(pairs=[[16, 16]]),
            "array.most_bits is 8, so 16 must not be among the bits",
        ),
        (
            "bitfusion-eyeriss",
            lambda profile: profile.pop("clock_hz"),
            "a bitfusion model needs clock_hz, and bits that say what it runs",
        ),
        (
            "bitfusion-eyeriss",
            lambda profile: profile["quantities"]["energy"].update(unit="uJ"),
            "a bitfusion model gives latency in cycles and energy in nJ, not energy in uJ",
        ),
        (
            "roofline-45nm",
            lambda profile: profile["model"]["machine"].update(bytes_per_second=0.0),
            "machine.bytes_per_second must be more than 0, not 0.0",
        ),
        (
            "roofline-45nm",
            lambda profile: profile["model"]["machine"].update(mac_pj=-0.1),
            "machine.mac_pj must not be negative, and is -0.1",
        ),
        (
            "roofline-45nm",
            lambda profile: profile.pop("bits"),
            "a roofline model needs bits that say what it runs",
        ),
    ],
)
def test_a_profile_that_its_formula_cannot_serve_is_refused(
    name: str, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    with pytest.raises(TargetError, match=sentence):
        parse(_changed(name, change), "profile x.json")
