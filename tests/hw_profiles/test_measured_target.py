"""The target of a measured profile: its kernels, and the pairs of bits it offers."""

import pytest
from measured_parts import measured_profile

from haq.allocation.choices import permitted
from haq.allocation.costs import reference, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import build, document
from haq.hw_profiles.measured import (
    FLOATS,
    INTEGERS,
    STANDARD,
)
from haq.hw_profiles.profile import Profile
from haq.network.layers import Layer

A = Layer("a", "conv", 1, 1, macs=1, weights=9, reads_input=True)
B = Layer("b", "conv", 1, 1, macs=1, weights=9)
EVERY_PAIR = [Bits(weight, act) for weight in range(2, 9) for act in range(2, 9)]


def test_choices_are_those_whose_kernels_were_measured():
    target = build(measured_profile())
    assert FLOATS in target.choices(A)
    assert set(target.choices(B)) == {FLOATS, *EVERY_PAIR} - {Bits(8, 8)}
    assert {name: len(some) for name, some in permitted([A, B], target).items()} == {
        "a": 7,  # its input has 8 bits
        "b": 49,
    }


def test_no_pair_that_saturates_on_some_x86_cpu_is_offered():
    for options in ({}, {"runs_on": "any"}, {"provider": "CPUExecutionProvider"}):
        target = build(measured_profile(**options))
        for layer in (A, B):
            integers = set(target.choices(layer)) - {FLOATS}
            assert max(sum(pair) for pair in integers) == 15
            # The sum of two products that such a CPU adds in 16 bits.
            assert all(2 * (2**a - 1) * (2 ** (w - 1) - 1) < 2**15 for w, a in integers)
        assert Bits(8, 8) not in target.pairs
        with pytest.raises(TargetError, match="cannot run layer 'b' at w8a8; it can at w2..8 a2.."):
            target.cost(B, Bits(8, 8))


@pytest.mark.parametrize("options", [{"runs_on": "vnni"}, {"provider": "CUDAExecutionProvider"}])
def test_where_kernels_add_in_32_bits_every_pair_is_offered(options):
    target = build(measured_profile(**options))
    assert set(target.choices(B)) == {FLOATS, *EVERY_PAIR}
    assert Bits(8, 8) in target.pairs
    assert target.cost(B, Bits(8, 8)) == {"latency": 5}


def test_depthwise_layers_never_saturate():
    content = measured_profile().model_dump(mode="json", exclude_defaults=True)
    shape = {"kind": "depthwise", "c_in": 4, "c_out": 4, "groups": 4}
    for row in content["table"]["rows"]:
        if row["layer"] == "b":
            row["shape"] = shape
    target = build(Profile.model_validate(content))
    layer = Layer("b", "depthwise", 4, 4, groups=4)
    assert set(target.choices(layer)) == {FLOATS, *EVERY_PAIR}
    assert Bits(8, 8) in target.pairs


@pytest.mark.parametrize(
    "pair, expected, method",
    [
        (Bits(7, 8), 5, "rounded up"), (Bits(3, 8), 5, "rounded up"), (Bits(8, 7), 6, "exact"),
        (Bits(4, 4), 6, "rounded up"), (Bits(32, 32), 12, "exact"),
    ],
)  # fmt: skip
def test_a_cost_is_that_of_the_kernel(pair, expected, method):
    answer = build(measured_profile()).how(B, pair)["latency"]
    assert answer == (expected, method, "measured")


def test_a_table_of_a_measured_target_by_hand():
    target = build(measured_profile())
    table = tabulate([A, B], permitted([A, B], target), target)
    assert total(table, {"a": FLOATS, "b": Bits(2, 8)}, "latency") == 10 + 5 + 0.5 * 10 * 2
    assert total(table, {"a": Bits(7, 8), "b": FLOATS}, "latency") == 3 + 12 + 0.25 * 10 * 2
    assert reference([A, B], target, "latency", FLOATS) == 22
    assert reference([A, B], target, "latency", STANDARD) == 8


def test_a_measured_target_knows_its_own_layers_and_batch_only():
    with pytest.raises(TargetError, match="mine has no row for layer 'd'"):
        build(measured_profile()).cost(Layer("d", "conv", 1, 1), INTEGERS)
    with pytest.raises(TargetError, match="mine is for a batch of 2; it knows nothing of 1"):
        build(measured_profile(), batch=1)


def test_a_measured_profile_survives_its_file(tmp_path):
    profile = measured_profile()
    (tmp_path / "mine.json").write_text(document.write_json(profile))
    assert document.read(tmp_path / "mine.json") == profile
