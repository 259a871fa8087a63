"""Rates: cycles and energy of MPIC by hand, and what a profile of rates must say."""

import json

import pytest

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import TARGETS, load
from haq.hw_profiles.ceilings import ceilings
from haq.network.layers import Layer

MPIC = load("mpic")
LAYER = Layer("a", "conv", 16, 32, (3, 3), in_size=(8, 8), out_size=(8, 8))
PUBLISHED = {
    (2, 2): 6.5, (4, 2): 4.0, (8, 2): 2.2, (2, 4): 3.9, (4, 4): 3.5, (8, 4): 2.1,
    (2, 8): 2.5, (4, 8): 2.3, (8, 8): 2.1,
}  # fmt: skip


@pytest.mark.parametrize("pair, rate", PUBLISHED.items())
def test_cycles_and_energy_by_hand(pair: tuple[int, int], rate: float):
    macs = 16 * 32 * 9 * 64
    cost = MPIC.cost(LAYER, Bits(*pair))
    assert cost["latency"] == pytest.approx(macs / rate)
    # 5.38 mW at 250 MHz are 21.52 pJ a cycle.
    assert cost["energy"] == pytest.approx(macs / rate * 21.52e-3)
    assert MPIC.si["latency"] * 250e6 == pytest.approx(1)


def test_it_has_2_4_and_8_bits_and_nothing_between():
    assert set(MPIC.choices(LAYER)) == {Bits(*pair) for pair in PUBLISHED}
    with pytest.raises(TargetError, match="mpic cannot run layer 'a' at w3a8"):
        MPIC.cost(LAYER, Bits(3, 8))


def test_batches_calls_and_other_kinds_count_their_macs():
    one = MPIC.cost(LAYER, Bits(8, 8))["latency"]
    assert load("mpic", batch=5).cost(LAYER, Bits(8, 8))["latency"] == pytest.approx(5 * one)
    fc = Layer("fc", "linear", 64, 10)
    assert MPIC.cost(fc, Bits(8, 8))["latency"] == pytest.approx(640 / 2.1)


def test_nothing_is_said_of_the_memory():
    assert ceilings(MPIC, Bits(8, 8)) is None


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"rates": []}, "at least 1 item"),
        ({"watts": None}, "energy needs watts"),
        ({"watts": 0}, "greater than 0"),
        ({"rates": [{"weight": 8, "act": 8, "macs_per_cycle": 0}]}, "greater than 0"),
        ({"rates": [{"weight": 8, "act": 8, "macs_per_cycle": 1}] * 2}, "w8a8 stands there twice"),
        ({"rates": [{"weight": 8, "act": 8, "macs_per_cycle": 1}]}, "there is none for w2a2"),
    ],
)
def test_a_profile_of_rates_says_what_it_declares(tmp_path, change, sentence):
    content = json.loads(TARGETS["mpic"].read_text())
    content["model"] |= change
    path = tmp_path / "board.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TargetError, match=sentence):
        load(str(path))


def test_a_board_without_a_power_has_cycles_alone(tmp_path):
    content = json.loads(TARGETS["mpic"].read_text())
    del content["model"]["watts"], content["quantities"]["energy"]
    path = tmp_path / "board.json"
    path.write_text(json.dumps(content))
    assert set(load(str(path)).cost(LAYER, Bits(8, 8))) == {"latency"}
