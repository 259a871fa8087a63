"""The tilings against the original simulator's figures and against a slow search by its rules."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import ProfileTarget, bitfusion, cache, load, tiling
from haq.hw_profiles.bitfusion import BitFusionFormula, Depthwise, depthwise, envelope
from haq.hw_profiles.tiling import Array, Conv, Energy, Work, search
from haq.network.layers import Kind, Layer

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "bitfusion.json").read_text()
)
W8A8, W4A4 = Bits(8, 8), Bits(4, 4)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is searched here in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def formula(name: str, batch: int | None = None) -> BitFusionFormula:
    found = load(name, batch).formula
    assert isinstance(found, BitFusionFormula)
    return found


EYERISS, DEFAULT = formula("bitfusion-eyeriss"), formula("bitfusion-default")


def conv(c_in: int, c_out: int, kernel: int, out: int, stride: int = 1, groups: int = 1) -> Layer:
    kind: Kind = "pointwise" if kernel == 1 else "conv"
    if groups > 1:
        kind = "depthwise" if groups == c_in == c_out else "grouped"
    size, sides = (out * stride, out * stride), (kernel, kernel)
    return Layer(
        "layer", kind, c_in, c_out, sides, (stride, stride), groups=groups,
        in_size=size, out_size=(out, out),
    )  # fmt: skip


def linear(c_in: int, c_out: int, positions: int = 1) -> Layer:
    return Layer("fc", "linear", c_in, c_out, in_size=(positions, 1), out_size=(positions, 1))


def mobilenet_v1() -> list[Layer]:
    layers = [replace(conv(3, 32, 3, 112, stride=2), reads_input=True)]
    c_in, size = 32, 112
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    for c_out, stride in [*blocks, (1024, 2), (1024, 1)]:
        size //= stride
        layers.append(conv(c_in, c_in, 3, size, stride, groups=c_in))
        layers.append(conv(c_in, c_out, 1, size))
        c_in = c_out
    return [*layers, linear(1024, 1000)]


# The original simulator.


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: f"{row['layer']}-w{row['weight']}")
def test_cycles_and_energies_are_those_of_the_original_simulator(row: dict[str, Any]) -> None:
    layer = conv(row["c_in"], row["c_out"], row["kernel"], row["out"], row["stride"])
    layer = replace(layer, reads_input=row["unrolled"])
    if row["layer"].endswith(("fc", "fc3", "fc8")):
        layer = linear(row["c_in"], row["c_out"])
    one, times = bitfusion.shape(layer, 16)
    assert isinstance(one, Conv) and times == 1
    bits = Bits(row["weight"], row["act"])
    (work,) = search(EYERISS.array, EYERISS.energy, one, [bits])
    assert work.cycles == row["cycles"]
    assert row.get("stalled", work.stalled) == work.stalled
    # Printed with seven digits or to the nJ.
    energy = float(np.array(work) @ EYERISS.energy.pj) / 1000
    assert row.get("energy_nj", energy) == pytest.approx(energy, rel=3e-7, abs=0.5)


@pytest.mark.parametrize(
    "act, weight, products",
    [(8, 8, 1), (8, 4, 2), (4, 4, 4), (8, 2, 4), (4, 2, 8), (2, 2, 16), (6, 6, 1), (1, 1, 16)],
)
def test_products_of_a_unit_in_one_cycle(act: int, weight: int, products: int) -> None:
    assert EYERISS.array.products(Bits(weight, act)) == products
    assert EYERISS.array.products(Bits(act, weight)) == products


def test_three_bits_compute_like_four_and_five_to_seven_like_eight() -> None:
    widths = [EYERISS.array.products(Bits(8, act)) for act in range(1, 9)]
    assert widths == [4, 4, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "bits, ms", [(W8A8, 19.89), (W4A4, 7.83), (Bits(8, 4), 11.62), (Bits(4, 8), 11.88)]
)
def test_mobilenet_v1_takes_what_was_found_for_the_default_array(bits: Bits, ms: float) -> None:
    layers = mobilenet_v1()
    assert len(layers) == 28
    cycles = sum(DEFAULT.raw(layer, bits)["latency"] for layer in layers)
    assert cycles / 500e3 == pytest.approx(ms, abs=0.005)


def test_a_linear_layer_by_hand() -> None:
    # 1024 inputs are 4 passes of the 16 rows with 16 products each, 10 outputs one of the columns:
    # 64 busy cycles for 16 images. One tile of all weights (10240 bits), activations (16384) and
    # padded sums of one image (32 * 32 bits, for 16 images in turn); all of these fit the buffers.
    work = EYERISS.work(linear(1024, 10), Bits(1, 1))
    assert (work.busy, work.cycles) == (64, 374)
    assert work.dram_read == 10240 + 16384 + 16 * 1024 and work.dram_written == 16 * 1024
    # Filled at 192 bits a cycle, emptied at the end: nothing is left to hide.
    assert work.stalled == ceil(work.dram_read / 192) + ceil(work.dram_written / 192)


# The same search, tile by tile.


def doublings(size: int, start: int = 1) -> list[int]:
    steps = ceil(log2(ceil(size / start))) if size > start else 0
    return [min(start * 2**step, size) for step in range(steps + 1)]


def slow_search(array: Array, energy: Energy, conv: Conv, bits: Bits) -> tuple[int, float] | None:
    """Return the cycles and the energy in pJ of the best tiling, one loop at a time."""
    w, a, width = bits.weight, bits.act, array.dram_bits
    (kh, kw), (sh, sw), (oh, ow) = conv.kernel, conv.stride, conv.out_size
    taps, lanes = kh * kw, array.rows * array.products(bits)
    room = {"w": 4 * array.weight_bytes, "a": 4 * array.act_bytes, "s": 4 * array.sum_bytes}
    loops_of = {"w": "IO", "a": "BXYI", "s": "BXYO"}
    outs = doublings(conv.c_out) if conv.unrolled else doublings(conv.c_out, array.columns)
    best = None
    for b, side, i, o in product(
        doublings(conv.batch), doublings(max(oh, ow)), doublings(conv.c_in), outs
    ):
        y, x = min(side, oh), min(side, ow)
        n = {"B": ceil(conv.batch / b), "X": ceil(ow / x), "Y": ceil(oh / y)}
        n |= {"I": ceil(conv.c_in / i), "O": ceil(conv.c_out / o)}
        tiles = n["B"] * n["X"] * n["Y"] * n["I"] * n["O"]
        seen = x * y * taps if conv.unrolled else (kh + (y - 1) * sh) * (kw + (x - 1) * sw)
        padded, columns = ceil(taps * i / lanes) * lanes, ceil(o / array.columns) * array.columns
        tile = {
            "w": padded * o * w,
            "a": seen * i * b * a,
            "s": x * y * b * columns * array.sum_bits,
        }
        if any(tile[stream] > room[stream] for stream in "was"):
            continue
        passes = ceil(taps * i / lanes) if conv.unrolled else taps * ceil(i / lanes)
        busy = tiles * b * x * y * columns // array.columns * passes

        depth, pixels, macs, sb = (
            passes * lanes,
            b * x * y,
            taps * i * o * b * x * y,
            array.sum_bits,
        )
        ways = [
            (depth * pixels * (a + columns * (w + sb)), macs * w, macs // o * a, macs * sb),
            (columns * pixels * (sb + depth * (a + w)), macs * w, macs * a, o * pixels * sb),
            (depth * columns * (w + pixels * (a + sb)), taps * i * o * w, macs * a, macs * sb),
        ]
        _, weights_read, acts_read, sums_moved = min(ways, key=lambda way: way[0])

        for order in permutations("BXYIO"):
            moved, held, kept = dict(tile), dict(tile), dict.fromkeys("was", True)
            for loop, stream in product(order, "was"):
                if not kept[stream]:
                    moved[stream] *= n[loop]
                elif loop in loops_of[stream]:
                    moved[stream] *= n[loop]
                    kept[stream] = moved[stream] <= room[stream]
                    held[stream] = moved[stream] if kept[stream] else held[stream]
            read, written = sum(moved.values()), moved["s"]
            late = ceil(sum(held.values()) / width) + ceil(held["s"] / width)
            rest = read + written - sum(held.values()) - held["s"]
            cycles = busy + max(0, ceil(rest / width) - busy) + late
            pj = busy * energy.cycle_pj + (read + written) * energy.dram_pj
            pj += tiles * weights_read * energy.weight_read_pj + moved["w"] * energy.weight_write_pj
            pj += tiles * acts_read * energy.act_read_pj + moved["a"] * energy.act_write_pj
            sums = moved["s"] + tiles * sums_moved
            pj += sums * energy.sum_read_pj + sums * energy.sum_write_pj
            best = min(best or (cycles, pj), (cycles, pj))
    return best


arrays = st.builds(
    Array,
    rows=st.integers(1, 5),
    columns=st.integers(1, 6),
    most_bits=st.just(8),
    fewest_bits=st.sampled_from([1, 2, 4]),
    sum_bits=st.sampled_from([16, 32]),
    weight_bytes=st.integers(20, 400),
    act_bytes=st.integers(20, 400),
    sum_bytes=st.integers(20, 400),
    dram_bits=st.integers(1, 200),
)
convs = st.builds(
    Conv,
    batch=st.integers(1, 3),
    c_in=st.integers(1, 9),
    c_out=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    out_size=st.one_of(
        st.integers(1, 5).map(lambda side: (side, side)),
        st.tuples(st.integers(1, 4), st.integers(1, 4)),
    ),
    unrolled=st.booleans(),
)
all_bits = st.builds(Bits, st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=40)
@given(array=arrays, conv=convs, bits=all_bits)
def test_no_tiling_is_better_than_the_one_found(array: Array, conv: Conv, bits: Bits) -> None:
    best = slow_search(array, EYERISS.energy, conv, bits)
    if best is None:
        with pytest.raises(ValueError, match="no tile of .* fits"):
            search(array, EYERISS.energy, conv, [bits])
        return
    (work,) = search(array, EYERISS.energy, conv, [bits])
    assert work.cycles == best[0]
    assert np.array(work) @ EYERISS.energy.pj == pytest.approx(best[1], rel=1e-12)


@settings(max_examples=25)
@given(conv=convs, pairs=st.lists(all_bits, min_size=2, max_size=6, unique=True))
def test_pairs_of_bits_do_not_disturb_each_other(conv: Conv, pairs: list[Bits]) -> None:
    array = Array(2, 4, 8, 2, 32, 200, 200, 200, 24)
    together = search(array, EYERISS.energy, conv, pairs)
    alone = [search(array, EYERISS.energy, conv, [bits])[0] for bits in pairs]
    assert [work.cycles for work in together] == [work.cycles for work in alone]


# Fewer bits.


UNEVEN = [conv(320, 1280, 1, 7), conv(96, 576, 1, 14), conv(160, 960, 1, 7), conv(256, 256, 3, 14)]


def test_half_the_bits_may_take_a_little_more_but_the_cost_does_not() -> None:
    rises = {"latency": 0.0, "energy": 0.0}
    for layer, (weight, act) in product([*UNEVEN, *mobilenet_v1()[::5]], product((4, 8), repeat=2)):
        here, halves = Bits(weight, act), [Bits(weight // 2, act), Bits(weight, act // 2)]
        for half, quantity in product(halves, rises):
            rise = EYERISS.raw(layer, half)[quantity] / EYERISS.raw(layer, here)[quantity] - 1
            rises[quantity] = max(rises[quantity], rise)
            assert EYERISS.cost(layer, half)[quantity] <= EYERISS.cost(layer, here)[quantity]
    assert 0 < rises["latency"] <= 0.03 and rises["energy"] <= 0.12


def test_fewest_cycles_first_may_take_much_more_energy() -> None:
    # At 6 bits a tiling exists that stalls 1021 cycles less in 1.6 million, by moving more.
    raw = [EYERISS.raw(conv(1024, 1024, 1, 7), Bits(bits, bits)) for bits in (8, 6)]
    assert [each["latency"] for each in raw] == [1607297, 1606276]
    assert raw[1]["energy"] / raw[0]["energy"] == pytest.approx(1.337, abs=0.001)


@given(layer=st.sampled_from([*UNEVEN, linear(1280, 1000)]), bits=all_bits)
def test_the_cost_is_that_of_the_cheapest_pair_at_least_as_wide(layer: Layer, bits: Bits) -> None:
    wider = product(range(bits.weight, 9), range(bits.act, 9))
    raw = [EYERISS.raw(layer, Bits(*pair)) for pair in wider]
    for quantity, cost in EYERISS.cost(layer, bits).items():
        assert cost == min(each[quantity] for each in raw)


def test_an_envelope_by_hand() -> None:
    costs = np.array([[1.0, 9.0, 4.0], [7.0, 3.0, 5.0], [2.0, 6.0, 8.0]])
    assert envelope(costs).tolist() == [[1.0, 3.0, 4.0], [2.0, 3.0, 5.0], [2.0, 6.0, 8.0]]


# Layers.


def test_depthwise_by_hand() -> None:
    # 40 channels are two passes of 32 columns; 9 taps are one of 16 rows. 6 x 6 outputs of 2 images
    # see 13 x 13 inputs. Every sum is stored as 32 bits, those of idle columns too.
    work = depthwise(EYERISS.array, Depthwise(2, 40, (3, 3), (2, 2), (6, 6)), Bits(weight=4, act=8))
    sums = 2 * 36 * 64 * 32
    macs = 9 * 40 * 72
    acts, weights = 2 * 40 * 169 * 8, 9 * 40 * 4
    assert work.busy == 2 * 72
    assert work.cycles == ceil((acts + weights + 2 * sums) / 192)
    assert (work.dram_read, work.dram_written) == (acts + weights + sums, sums)
    assert (work.weights_read, work.weights_written) == (macs * 4, weights)
    assert (work.acts_read, work.acts_written) == (macs * 8, acts)
    assert work.sums_read == work.sums_written == sums + 72 * 40 * 32


def test_taps_of_a_depthwise_kernel_fill_the_rows() -> None:
    # 49 taps need four passes of 16 rows at 8 bits, one at 4 bits: there a unit does 4 products.
    wide = Depthwise(1, 32, (7, 7), (1, 1), (4, 4))
    busy = [depthwise(EYERISS.array, wide, bits).busy for bits in (W8A8, W4A4)]
    assert busy == [16 * 4, 16]


def test_only_a_convolution_of_the_input_is_unrolled() -> None:
    first = replace(conv(3, 32, 3, 112, stride=2), reads_input=True)
    assert bitfusion.shape(first, 4) == (Conv(4, 3, 32, (3, 3), (2, 2), (112, 112), True), 1)
    fc = replace(linear(64, 10), reads_input=True)
    assert bitfusion.shape(fc, 4) == (Conv(4, 64, 10, (1, 1), (1, 1), (1, 1), False), 1)


def test_positions_of_a_linear_layer_are_images() -> None:
    tokens = BitFusionFormula(EYERISS.array, EYERISS.energy, batch=2).cost(linear(64, 64, 49), W8A8)
    assert tokens == BitFusionFormula(EYERISS.array, EYERISS.energy, batch=98).cost(
        linear(64, 64), W8A8
    )


def test_groups_are_done_one_after_the_other() -> None:
    grouped, one = conv(64, 96, 3, 8, groups=4), conv(16, 24, 3, 8)
    assert EYERISS.work(grouped, W8A8) == Work(*(4 * n for n in EYERISS.work(one, W8A8)))
    for quantity, cost in EYERISS.cost(one, W4A4).items():
        assert EYERISS.cost(grouped, W4A4)[quantity] == 4 * cost


def test_a_layer_called_twice_costs_twice() -> None:
    for layer in (conv(16, 16, 3, 8), conv(16, 16, 3, 8, groups=16), linear(64, 10)):
        once, twice = DEFAULT.cost(layer, W8A8), DEFAULT.cost(replace(layer, calls=2), W8A8)
        assert twice == {quantity: 2 * cost for quantity, cost in once.items()}


def test_a_kernel_that_does_not_fit_the_buffers_is_refused() -> None:
    with pytest.raises(TargetError, match="layer 'layer': the buffers .* kernel of 99 x 99; take"):
        EYERISS.cost(conv(3, 8, 99, 4), W8A8)


# The profiles.


@pytest.mark.parametrize("name", ["bitfusion-eyeriss", "bitfusion-default", "bitfusion-stripes"])
def test_each_array_offers_every_pair_of_one_to_eight_bits(name: str) -> None:
    target: ProfileTarget = load(name, batch=1)
    layer = linear(64, 10)
    assert len(target.choices(layer)) == 64
    assert target.units == {"latency": "cycles", "energy": "nJ"}
    cost = target.cost(layer, W8A8)
    assert cost["latency"] == int(cost["latency"]) > 0 and cost["energy"] > 0
    with pytest.raises(TargetError, match="cannot run layer 'fc' at w16a16"):
        target.cost(layer, Bits(16, 16))


def test_what_has_no_constants_says_that_its_energy_is_inferred() -> None:
    classes = {
        name: load(name).profile.quantities["energy"].provenance
        for name in ("bitfusion-eyeriss", "bitfusion-default", "bitfusion-stripes")
    }
    assert list(classes.values()) == ["modelled", "inferred", "inferred"]


def test_constants_follow_from_those_of_the_simulator() -> None:
    energy = EYERISS.energy
    assert energy.cycle_pj == pytest.approx(3673500e-9 * 16 * 32 / 16 / 500e6 * 1e12)
    banks = [(energy.weight_read_pj, 0.000683701), (energy.weight_write_pj, 0.000925317)]
    banks += [(energy.act_read_pj, 0.00190318), (energy.act_write_pj, 0.00363853)]
    banks += [(energy.sum_read_pj, 0.00106097), (energy.sum_write_pj, 0.00233869)]
    for bit_pj, access_nj in banks:
        assert bit_pj == pytest.approx(access_nj * 1000 / 32)
    assert energy.dram_pj == 15


# The cache.


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "haq"


def rows() -> list[list[int]]:
    return [[1, 2, 3], [4, 5, 6]]


def never() -> list[list[int]]:
    raise AssertionError("computed again")


def test_what_was_computed_is_read_the_next_time(empty_cache: Path) -> None:
    assert cache.computed_once(["kind", 1], (2, 3), rows) == rows()
    assert cache.computed_once(["kind", 1], (2, 3), never) == rows()
    assert [path.name.startswith("kind-") for path in empty_cache.iterdir()] == [True]


def test_another_key_is_computed_anew(empty_cache: Path) -> None:
    cache.computed_once(["kind", 1], (2, 3), rows)
    with pytest.raises(AssertionError, match="computed again"):
        cache.computed_once(["kind", 2], (2, 3), never)


def _cut(text: str) -> str:
    return text[:-20]


def _other_number(text: str) -> str:
    return text.replace("4,5,6", "4,5,7")


def _other_key(text: str) -> str:
    return text.replace("kind", "mind")


def _not_a_table(text: str) -> str:
    return '{"key": "", "rows": 3, "sha256": ""}'


@pytest.mark.parametrize("damage", [_cut, _other_number, _other_key, _not_a_table, lambda _: ""])
def test_a_damaged_file_is_replaced(empty_cache: Path, damage: Any) -> None:
    cache.computed_once(["kind", 1], (2, 3), rows)
    (path,) = empty_cache.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert cache.computed_once(["kind", 1], (2, 3), rows) == rows()
    assert path.read_text() == whole


def test_where_nothing_can_be_written_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.computed_once(["kind", 1], (2, 3), rows) == rows()


def test_a_cache_folder_that_is_not_absolute_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.folder() == Path("/home/somebody/.cache/haq")


def test_a_search_is_kept_for_the_next_process(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Conv(1, 24, 40, (1, 1), (1, 1), (5, 5), False)
    first = bitfusion.works(DEFAULT.array, DEFAULT.energy, layer)
    bitfusion.works.cache_clear()
    monkeypatch.setattr(tiling, "search", never)
    assert bitfusion.works(DEFAULT.array, DEFAULT.energy, layer) == first
    assert len(list(empty_cache.iterdir())) == 1


def test_another_array_or_another_version_is_searched_anew(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Conv(1, 24, 40, (1, 1), (1, 1), (5, 5), False)
    bitfusion.works(replace(DEFAULT.array, dram_bits=96), DEFAULT.energy, layer)
    bitfusion.works(replace(DEFAULT.array, dram_bits=95), DEFAULT.energy, layer)
    monkeypatch.setattr(tiling, "VERSION", tiling.VERSION + 1)
    bitfusion.works.cache_clear()
    bitfusion.works(replace(DEFAULT.array, dram_bits=95), DEFAULT.energy, layer)
    assert len(list(empty_cache.iterdir())) == 3
