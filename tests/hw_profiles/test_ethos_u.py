"""Ethos-U: bytes in flash as Arm's compiler writes them, cycles by hand, and what is refused."""

import contextlib
import csv
import io
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hw_targets import needs_vela
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_files import convolution

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import ethos_u, find, load
from haq.hw_profiles.ceilings import ceilings
from haq.hw_profiles.ethos_u import drawn, in_flash_order
from haq.network.layers import CallShape, Layer

NAMES = [
    "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256",
    "ethos-u65-512",
]  # fmt: skip
FIRST = Layer("first", "conv", 3, 16, (3, 3), padding=(1, 1), in_size=(32, 32), out_size=(32, 32))
LAST = Layer("last", "conv", 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))


@needs_vela
def test_a_layer_that_computes_for_long_by_hand():
    # 3 channels: kernel first, 9 taps in 3 steps of 4. A step computes 2 x 1 places of 8 channels
    # in 4 cycles: 512 * 2 of these a step; the last block of 1,024 / 4 outputs leaves at 4 cycles.
    cost = load("ethos-u55-128").cost(FIRST, Bits(8, 8))
    assert cost["latency"] == 512 * 2 * 3 * 4 + 1024
    assert load("ethos-u55-128").cost(FIRST, Bits(2, 8))["latency"] == cost["latency"]


@needs_vela
def test_a_layer_of_many_weights_waits_for_the_flash():
    u55 = load("ethos-u55-128")
    cost = u55.cost(LAST, Bits(8, 8))
    assert cost["latency"] == cost["flash"] + 64  # a byte a cycle, 64 until the first one
    fewer = [u55.cost(LAST, Bits(bits, 8)) for bits in (4, 3, 2)]
    assert len({one["latency"] for one in fewer}) == 1 and fewer[0]["latency"] < cost["latency"]
    assert u55.si["latency"] == 2e-9


@needs_vela
def test_a_layer_of_few_products_waits_for_its_inputs_and_outputs():
    layer = Layer("a", "pointwise", 64, 16, in_size=(32, 32), out_size=(32, 32))
    cost = load("ethos-u55-256").cost(layer, Bits(8, 8))
    assert cost["latency"] == 32 * 32 * (64 + 16) / 8  # eight bytes a cycle


@needs_vela
def test_groups_take_as_long_as_layers_of_their_own():
    sizes = {"in_size": (16, 16), "out_size": (16, 16)}
    one = Layer("a", "conv", 8, 8, (3, 3), padding=(1, 1), **sizes)
    four = Layer("a", "grouped", 32, 32, (3, 3), padding=(1, 1), groups=4, **sizes)
    costs = [load("ethos-u55-128").cost(layer, Bits(8, 8)) for layer in (one, four)]
    assert costs[1]["latency"] == 4 * costs[0]["latency"]


@needs_vela
def test_a_transposed_convolution_is_a_dense_one_over_its_outputs():
    sizes = {"kernel": (4, 4), "padding": (1, 1), "out_size": (16, 16)}
    up = Layer("a", "transposed", 8, 8, stride=(2, 2), in_size=(8, 8), **sizes)
    dense = Layer("a", "conv", 8, 8, in_size=(16, 16), **sizes)
    ways = [load("ethos-u55-32").cost(layer, Bits(8, 8))["latency"] for layer in (up, dense)]
    # Its blocks have 11 rows, so two of them compute 22 rows of which 16 are there.
    assert ways[0] * 16 == ways[1] * 22


def test_kernels_of_transposed_convolutions_are_stored_from_behind():
    codes = np.arange(4, dtype=np.int8).reshape(1, 1, 2, 2)
    layer = Layer("a", "transposed", 1, 1, (2, 2), (2, 2))
    assert in_flash_order(codes, layer).ravel().tolist() == [3, 2, 1, 0]
    assert in_flash_order(codes, replace(layer, kind="conv")).ravel().tolist() == [0, 1, 2, 3]


@needs_vela
def test_calls_take_time_and_no_more_flash_but_where_blocks_differ():
    def cost(layer):
        return load("ethos-u55-128").cost(layer, Bits(8, 8))

    once = cost(LAST)
    assert cost(replace(LAST, calls=3)) == once | {"latency": 3 * once["latency"]}
    for size, streams in ((32, 1), (4, 2)):  # blocks are 16 channels deep, of 4 x 4 outputs 64
        sizes = (8, 8), (size, size)
        shapes = tuple(CallShape(one, one, 0, 1) for one in sizes)
        both = cost(replace(LAST, calls=2, shapes=shapes))
        alone = [cost(replace(LAST, in_size=one, out_size=one)) for one in sizes]
        assert both["latency"] == sum(one["latency"] for one in alone)
        assert both["flash"] == sum(one["flash"] for one in alone[:streams])


@needs_vela
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_flash_is_what_the_public_encoder_gives_with_scales_and_biases(name: str, bits: int):
    from ethosu.vela import api

    target = load(name)
    assert isinstance(target.formula, ethos_u.EthosUFormula)
    block = target.formula._operation(LAST).block
    cores = 2 if name.endswith("512") else 1
    total = 0
    for core in range(cores):
        own = np.ascontiguousarray(in_flash_order(drawn(LAST, bits), LAST)[core::cores])
        kind = api.NpuAccelerator[name.replace("ethos-u", "Ethos_U").replace("-", "_")]
        first = api.NpuBlockTraversal.PART_KERNEL_FIRST
        order = first if block.is_partkernel else api.NpuBlockTraversal.DEPTH_FIRST
        depth = -(-int(block.ofm_block.depth) // cores)
        total += len(api.npu_encode_weights(kind, own, (1, 1), 8, depth, False, order))
    assert target.cost(LAST, Bits(bits, 8))["flash"] == total + 64 * 10  # 640 is 40 times 16


@needs_vela
@pytest.mark.parametrize("bits", [8, 4])
def test_flash_is_what_the_whole_compiler_writes(tmp_path: Path, bits: int):
    compiled = _compiled(tmp_path, drawn(LAST, bits), 8)
    assert load("ethos-u55-128").cost(LAST, Bits(bits, 8))["flash"] == compiled


@needs_vela
def test_blocks_that_the_whole_compiler_cuts_otherwise_change_little(tmp_path: Path):
    layer = Layer("a", "pointwise", 64, 96, in_size=(16, 16), out_size=(16, 16))
    compiled = _compiled(tmp_path, drawn(layer, 8), 16)
    planned = load("ethos-u55-128").cost(layer, Bits(8, 8))["flash"]
    assert planned == pytest.approx(compiled, rel=0.01)


def _compiled(folder: Path, codes: np.ndarray, size: int) -> float:
    """Return the bytes in flash that the compiler says, of a network of one convolution."""
    from ethosu.vela import vela

    file = folder / "one.tflite"
    file.write_bytes(convolution(codes, size))
    with contextlib.redirect_stdout(io.StringIO()):
        vela.main([
            str(file), "--output-dir", str(folder), "--accelerator-config", "ethos-u55-128",
            "--system-config", "Ethos_U55_High_End_Embedded", "--memory-mode", "Shared_Sram",
            "--config", "Arm/vela.ini",
        ])  # fmt: skip
    summary = next(folder.glob("*summary*.csv")).read_text(encoding="utf-8")
    row = next(csv.DictReader(io.StringIO(summary)))
    return float(row["off_chip_flash_memory_used"]) * 1024


@needs_vela
@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["conv", "pointwise", "depthwise", "grouped", "linear", "transposed"]),
    half_in=st.integers(1, 24), half_out=st.integers(1, 24), size=st.integers(3, 12),
    name=st.sampled_from(NAMES),
)  # fmt: skip
def test_every_kind_of_layer_has_costs_that_do_not_rise_as_bits_fall(
    kind, half_in, half_out, size, name
):
    layer = _layer(kind, 2 * half_in, 2 * half_out, size)
    costs = [load(name).cost(layer, Bits(bits, 8)) for bits in (8, 5, 2)]
    for more, less in pairwise(costs):
        assert 0 < less["flash"] <= more["flash"] and 0 < less["latency"] <= more["latency"]


def _layer(kind: str, c_in: int, c_out: int, size: int) -> Layer:
    sizes = (size, size)
    if kind == "linear":
        return Layer("a", kind, c_in, c_out)
    if kind == "pointwise":
        return Layer("a", kind, c_in, c_out, in_size=sizes, out_size=sizes)
    if kind == "transposed":
        out = (2 * size, 2 * size)
        return Layer("a", kind, c_in, c_out, (4, 4), (2, 2), (1, 1), 1, sizes, out)
    groups = {"depthwise": c_in, "grouped": 2}.get(kind, 1)
    c_out = c_in if kind == "depthwise" else c_out
    return Layer("a", kind, c_in, c_out, (3, 3), (1, 1), (1, 1), groups, sizes, sizes)


@needs_vela
def test_a_network_of_its_own_counts_with_its_own_codes():
    target = load("ethos-u55-128")
    zeros = target.of_network(lambda layer, bits: np.zeros((64, 64, 3, 3), np.int8))
    assert zeros.encodes and not load("mpic").encodes
    assert zeros.cost(LAST, Bits(8, 8))["flash"] < 0.1 * target.cost(LAST, Bits(8, 8))["flash"]
    assert load("mpic").of_network(lambda layer, bits: np.zeros(1, np.int8)).name == "mpic"


@needs_vela
def test_a_batch_takes_as_long_as_its_images_and_no_more_flash():
    one, five = (load("ethos-u65-256", n).cost(LAST, Bits(4, 8)) for n in (1, 5))
    assert five == {"latency": 5 * one["latency"], "flash": one["flash"]}


@needs_vela
@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"kernel": (3, 3, 3)}, "of two dimensions"),
        ({"stride": (4, 4)}, "strides may be 1 to 3"),
        ({"kernel": (65, 1)}, "64 rows"),
        ({"kind": "transposed", "stride": (3, 3)}, "strides of 1 and 2"),
    ],
)
def test_what_the_compiler_leaves_to_another_processor_is_refused(change, sentence):
    layer = Layer(**{**vars(FIRST), **change})
    with pytest.raises(TargetError, match=f"ethos-u55-64 cannot run layer 'first'.*{sentence}"):
        load("ethos-u55-64").cost(layer, Bits(8, 8))


def test_activations_have_8_bits():
    with pytest.raises(TargetError, match="ethos-u55-128 cannot run layer 'first' at w8a4"):
        load("ethos-u55-128").cost(FIRST, Bits(8, 4))


@needs_vela
def test_the_ceilings_are_the_multipliers_and_the_flash():
    top = ceilings(load("ethos-u55-128"), Bits(8, 8))
    assert top is not None and top.macs_per_second == 128 * 500e6
    assert top.bytes_per_second == 500e6


def test_without_the_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    ethos_u.vela.cache_clear()
    monkeypatch.setitem(sys.modules, "ethosu", None)
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    for name in [name for name in sys.modules if name.startswith("ethosu.vela.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(TargetError, match=r'pip install "haq\[ethos-u\]"'):
        load("ethos-u55-128").cost(Layer("fresh", "linear", 4, 4), Bits(8, 8))
    ethos_u.vela.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_can_be_looked_at_without_the_compiler(name: str):
    assert find(name).units == {"latency": "cycles", "flash": "bytes"}
