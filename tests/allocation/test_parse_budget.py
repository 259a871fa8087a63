"""Reading budgets, and saying what is wrong with those that are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from haq.allocation.budgets import parse_budget
from haq.allocation.policy import Bits
from haq.errors import BudgetError, TargetError
from haq.network.layers import Layer

CONV = Layer("conv1", "conv", 3, 8, weights=216, biases=8, macs=1000)
FC = Layer("fc", "linear", 8, 10, weights=80, biases=10, macs=80)
BOTH = (CONV, FC)


@dataclass
class Chip:
    """Runs 1 to 8 bits in weight bits times activation bits times MACs cycles of 5 ns."""

    name: str = "chip"
    batch: int = 16
    units: Mapping[str, str] = field(default_factory=lambda: {"latency": "cycles", "energy": "nJ"})
    si: Mapping[str, float] = field(default_factory=lambda: {"latency": 5e-9, "energy": 1e-9})

    def choices(self, layer: Layer) -> Sequence[Bits]:
        return [Bits(weight, act) for weight in range(1, 9) for act in range(1, 9)]

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        if max(bits) > 8:
            raise TargetError(f"{self.name} runs 1 to 8 bits")
        cycles = float(layer.macs * bits.weight * bits.act)
        return {"latency": cycles, "energy": 2 * cycles}


@pytest.mark.parametrize(
    "text, limit",
    [
        ("avg_weight_bits=3", 3),
        ("avg_weight_bits=2.25", 2.25),
        ("avg_weight_bits=3 bits", 3),
        ("size=700", 700),
        ("size=90kB", 90_000),
        (" size = 1.5 MB ", 1_500_000),
        ("size=2KiB", 2048),
        ("size=1e3B", 1000),
        ("bops=1.2G", 1.2e9),
        ("bops=12", 12),
        ("latency=8000", 8000),
        ("latency=8000cycles", 8000),
        ("latency=5ms", 1e6),  # 5 ms / 5 ns
        ("latency=900us", 180_000),
        ("latency=900µs", 180_000),
        ("energy=3mJ", 3e6),
        ("energy=7 nJ", 7),
        ("latency=50%w8a8", 0.5 * 64 * 1080),
        ("latency=30% w4a8", 0.3 * 32 * 1080),
        ("bops=25%w8a8", 16 * 1080),
        ("size=12.5%fp32", (4 * 216 + 32 + 4 * 80 + 40) / 8),
        ("avg_weight_bits=50%w8a8", 4),
    ],
)
def test_a_budget_by_hand(text, limit):
    budget = parse_budget(text, BOTH, Chip())
    assert budget.quantity == text.split("=")[0].strip()
    assert budget.limit == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize(
    "text, message",
    [
        ("size", "cannot read budget 'size': write it like size=90kB, avg_weight_bits=3,"),
        ("size=", "cannot read budget 'size=': write it like"),
        ("size=kB", "cannot read budget"),
        ("size=1.2.3kB", "unknown unit '.3kB'"),
        ("sice=90kB", r"unknown budget 'sice'; did you mean 'size'\?"),
        ("latncy=5ms", r"unknown budget 'latncy'; did you mean 'latency'\? .* energy, latency, si"),
        ("size=90kiB", "unknown unit 'kiB'; give a bare number or one of B, kB, KB"),
        ("size=5ms", "unknown unit 'ms'"),
        ("latency=5mJ", "unknown unit 'mJ'; give a bare number or one of cycles, s, ms, us"),
        ("avg_weight_bits=3B", r"unknown unit 'B'; give a bare number or one of bits"),
        ("latency=50%", "is a share of 'nothing': name a reference such as 50%w8a8"),
        ("latency=50%w9a9", "is a share of 'w9a9': name a reference"),
        ("latency=50%fp32", "chip cannot run fp32; take a reference it can run"),
        ("size=0", "'size=0': the limit must be positive and finite; write it like size=90kB"),
        ("size=-3kB", "the limit must be positive"),
        ("size=nan", "the limit must be positive"),
        ("size=inf", "the limit must be positive"),
        ("size=1e999", "the limit must be positive"),
        ("latency=0%w8a8", "the limit must be positive"),
    ],
)
def test_what_is_no_budget_says_why(text, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(text, BOTH, Chip())


@pytest.mark.parametrize(
    "text, meant", [("latncy=5ms", "latency"), ("enrgy=3mJ", "energy"), ("sise=3kB", "size")]
)
def test_without_a_target_the_quantities_that_need_one_are_known_all_the_same(text, meant):
    message = (
        rf"did you mean '{meant}'\? \(known: avg_weight_bits, bops, coded_size, energy, latency, "
        r"size\); latency and energy need --target"
    )
    with pytest.raises(BudgetError, match=message):
        parse_budget(text, BOTH, None)


@pytest.mark.parametrize("text", ["latency=5ms", "latency=50%w8a8", "energy=3mJ"])
def test_latency_and_energy_need_a_target(text):
    with pytest.raises(BudgetError, match="needs hardware to count on: name it with --target"):
        parse_budget(text, BOTH, None)


def test_a_target_that_counts_no_energy_says_so():
    with pytest.raises(BudgetError, match="chip knows no energy, only latency"):
        parse_budget("energy=3mJ", BOTH, Chip(units={"latency": "cycles"}))


def test_a_target_without_a_clock_takes_its_own_unit_only():
    chip = Chip(si={})
    assert parse_budget("latency=7cycles", BOTH, chip).limit == 7
    with pytest.raises(BudgetError, match="unknown unit 'ms'; give a bare number or one of cycles"):
        parse_budget("latency=5ms", BOTH, chip)


def test_references_count_what_stays_float():
    floats = 1000
    assert parse_budget("size=12.5%fp32", BOTH, None, floats).limit == (1256 + 4000) / 8
    assert parse_budget("size=50%w8a8", BOTH, None, floats).limit == (440 + 4000) / 2
    average = (8 * 296 + 32 * 1000) / 1296
    assert parse_budget("avg_weight_bits=50%w8a8", BOTH, None, floats).limit == average / 2
    assert parse_budget("bops=25%w8a8", BOTH, None, floats).limit == 16 * 1080
