import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from haq.allocation.budgets import Budget, fit
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import BudgetError, HaqError, TargetError
from haq.hw_profiles import ProfileTarget, bitserial, load
from haq.hw_profiles.bitserial import matmul, ways
from haq.network.layers import Kind, Layer

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE: dict[str, Any] = json.loads((GOLDEN / "bismo_cloud_mobilenet_v2.json").read_text())
UNIFORM: dict[str, Any] = json.loads((GOLDEN / "bismo_uniform_bits.json").read_text())

CLOUD = load("bismo-cloud")
EDGE = load("bismo-edge")
W8A8 = Bits(8, 8)

every_target = pytest.mark.parametrize("target", [CLOUD, EDGE], ids=lambda target: target.name)


# The networks, by their published architectures.


def conv(c_in: int, c_out: int, kernel: int, size: int, stride: int = 1, groups: int = 1) -> Layer:
    if groups == 1:
        kind: Kind = "pointwise" if kernel == 1 else "conv"
    else:
        kind = "depthwise" if groups == c_in == c_out else "grouped"
    after = -(-size // stride)
    return Layer(
        name=f"{kind}-{c_in}-{c_out}-{size}",
        kind=kind,
        c_in=c_in,
        c_out=c_out,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
        groups=groups,
        in_size=(size, size),
        out_size=(after, after),
    )


def linear(c_in: int, c_out: int, positions: int = 1) -> Layer:
    return Layer("fc", "linear", c_in, c_out, in_size=(positions, 1), out_size=(positions, 1))


def mobilenet_v1() -> list[Layer]:
    layers = [conv(3, 32, 3, 224, stride=2)]
    c_in, size = 32, 112
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    for c_out, stride in [*blocks, (1024, 2), (1024, 1)]:
        layers.append(conv(c_in, c_in, 3, size, stride, groups=c_in))
        size //= stride
        layers.append(conv(c_in, c_out, 1, size))
        c_in = c_out
    return [*layers, linear(1024, 1000)]


def mobilenet_v2() -> list[Layer]:
    layers = [conv(3, 32, 3, 224, stride=2)]
    c_in, size = 32, 112
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, c_out, blocks, first_stride in [*stages, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for stride in [first_stride, *[1] * (blocks - 1)]:
            wide = c_in * expansion
            if expansion > 1:
                layers.append(conv(c_in, wide, 1, size))
            layers.append(conv(wide, wide, 3, size, stride, groups=wide))
            size //= stride
            layers.append(conv(wide, c_out, 1, size))
            c_in = c_out
    return [*layers, conv(320, 1280, 1, 7), linear(1280, 1000)]


def resnet(blocks: Sequence[int], bottleneck: bool) -> list[Layer]:
    layers = [conv(3, 64, 7, 224, stride=2)]
    c_in, size = 64, 56  # after the max pooling
    for stage, count in enumerate(blocks):
        mid = 64 * 2**stage
        c_out = 4 * mid if bottleneck else mid
        for block in range(count):
            stride = 2 if stage and not block else 1
            after = size // stride
            if bottleneck:
                layers += [conv(c_in, mid, 1, size), conv(mid, mid, 3, size, stride)]
                layers += [conv(mid, c_out, 1, after)]
            else:
                layers += [conv(c_in, mid, 3, size, stride), conv(mid, c_out, 3, after)]
            if stride > 1 or c_in != c_out:
                layers.append(conv(c_in, c_out, 1, size, stride))
            c_in, size = c_out, after
    return [*layers, linear(c_in, 1000)]


NETWORKS: dict[str, Callable[[], list[Layer]]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": lambda: resnet([2, 2, 2, 2], bottleneck=False),
    "resnet50": lambda: resnet([3, 4, 6, 3], bottleneck=True),
}


def cycles(target: ProfileTarget, layers: Sequence[Layer], bits: Bits) -> int:
    return sum(int(target.cost(layer, bits)["latency"]) for layer in layers)


def pair(key: str) -> Bits:
    weight, act = key.split(",")
    return Bits(int(weight), int(act))


# One matrix product.


@pytest.mark.parametrize(
    "rows, depth, columns, bits, acts_held, weights_held, edge",
    [
        (96, 16, 12544, (1, 1), 12549, 16464, 18984),
        (96, 16, 12544, (8, 1), 38352, 43911, 150542),
        (96, 16, 12544, (8, 8), 303793, 351281, 1204315),
        (16, 32, 12544, (8, 8), 100744, 100401, 200795),
        (192, 32, 784, (8, 1), 6144, 5103, 18823),
        (64, 384, 196, (2, 1), 448, 549, 2381),
        (64, 384, 196, (8, 8), 7175, 8199, 30727),
        (1280, 320, 49, (1, 1), 3040, 2566, 12812),
        (1280, 320, 49, (8, 8), 51214, 41742, 152597),
        (1000, 1280, 16, (8, 8), 40021, 40168, 321880),
        (16, 144, 49, (8, 1), 152, 152, None),
    ],
)
def test_worked_products_take_their_cycles(
    rows: int,
    depth: int,
    columns: int,
    bits: tuple[int, int],
    acts_held: int,
    weights_held: int,
    edge: int | None,
) -> None:
    shape = (rows, depth, columns, Bits(*bits))
    assert [way.cycles for way in ways(CLOUD.formula.overlay, *shape)] == [acts_held, weights_held]
    assert matmul(CLOUD.formula.overlay, *shape).cycles == min(acts_held, weights_held)
    if edge is not None:
        assert matmul(EDGE.formula.overlay, *shape).cycles == edge


def test_a_product_by_hand() -> None:
    # Activations held: 784 tiles of 16 columns, one word and one beat each, one bit: 12544 beats
    # to fill one buffer. Weights: 6 tiles, 8 bits, 768 beats, of which 8 * (5 + 1) are hidden
    # behind the tile being worked on. Busy: 784 * 6 * 8 = 37632; in all 37632 + 768 - 48.
    work, _ = ways(CLOUD.formula.overlay, 96, 16, 12544, Bits(8, 1))
    assert work == (38352, 37632, 256 * (12544 + 768))


sizes = st.one_of(st.integers(1, 70), st.integers(1, 3000))
widths = st.integers(1, 7)


@every_target
@given(rows=sizes, depth=sizes, columns=sizes, weight=widths, act=widths)
def test_more_bits_never_cost_less(
    target: ProfileTarget, rows: int, depth: int, columns: int, weight: int, act: int
) -> None:
    layer = replace(linear(depth, rows), in_size=(columns, 1))
    image = load(target.name, batch=1)
    fewer = image.cost(layer, Bits(weight, act))
    for more in (Bits(weight + 1, act), Bits(weight, act + 1)):
        cost = image.cost(layer, more)
        assert cost["latency"] >= fewer["latency"] and cost["energy"] >= fewer["energy"]


@every_target
@given(rows=sizes, depth=sizes, columns=sizes, weight=st.integers(1, 8), act=st.integers(1, 8))
def test_a_transposed_product_takes_the_same(
    target: ProfileTarget, rows: int, depth: int, columns: int, weight: int, act: int
) -> None:
    straight = matmul(target.formula.overlay, rows, depth, columns, Bits(weight, act))
    assert straight == matmul(target.formula.overlay, columns, depth, rows, Bits(act, weight))


@every_target
@given(rows=sizes, depth=sizes, columns=sizes, weight=st.integers(1, 8), act=st.integers(1, 8))
def test_no_product_beats_its_array_or_the_memory(
    target: ProfileTarget, rows: int, depth: int, columns: int, weight: int, act: int
) -> None:
    array = target.formula.overlay
    work = matmul(array, rows, depth, columns, Bits(weight, act))
    binary_macs = rows * depth * columns * weight * act
    assert work.cycles >= work.busy
    assert work.busy * array.rows * array.columns * array.word_bits >= binary_macs
    assert work.cycles * array.port_bits >= depth * min(rows * weight, columns * act)


# The published table of MobileNetV2 on the cloud overlay.


def whole_table() -> NDArray[np.int64]:
    layers = mobilenet_v2()
    costs = [
        [CLOUD.cost(layer, bits)["latency"] for bits in CLOUD.choices(layer)] for layer in layers
    ]
    return np.array(costs, dtype=np.int64).reshape(53, 8, 8)  # (layer, weight - 1, activation - 1)


def total_of(table: NDArray[np.int64], key: str) -> int:
    bits = pair(key)
    return int(table[:, bits.weight - 1, bits.act - 1].sum())


def test_the_layers_are_those_of_the_published_table() -> None:
    layers = mobilenet_v2()
    assert sorted(index for row in TABLE["layers"] for index in row["layers"]) == list(range(53))
    for row in TABLE["layers"]:
        for index in row["layers"]:
            layer = layers[index]
            assert [layer.kind, layer.c_in, layer.c_out] == [row["kind"], row["c_in"], row["c_out"]]
            assert [layer.kernel[0], layer.stride[0]] == [row["kernel"], row["stride"]]
            assert layer.out_size == (row["out_size"], row["out_size"])


@pytest.mark.parametrize("row", TABLE["layers"], ids=lambda row: str(row["layers"][0]))
def test_each_layer_costs_what_the_published_table_says(row: dict[str, Any]) -> None:
    layer = mobilenet_v2()[row["layers"][0]]
    costs = [CLOUD.cost(layer, pair(key))["latency"] for key in TABLE["pairs"]]
    assert costs == row["cycles"]


@pytest.mark.parametrize("key, published", TABLE["totals"].items())
def test_the_whole_network_costs_what_the_published_table_says(key: str, published: int) -> None:
    assert cycles(CLOUD, mobilenet_v2(), pair(key)) == published


def test_the_whole_table_is_the_one_recorded() -> None:
    table = whole_table()
    assert (table.min(), table.max()) == (TABLE["smallest"], TABLE["largest"])
    assert table[40, 7, 0] == 87552 and table[52, 0, 0] == 5000 and table[0, 7, 6] == 1419328
    assert (np.diff(table, axis=1) > 0).all() and (np.diff(table, axis=2) > 0).all()
    assert hashlib.sha256(table.astype("<i8").tobytes()).hexdigest() == TABLE["sha256"]


def test_a_transposed_table_is_noticed() -> None:
    table, swapped = whole_table(), whole_table().transpose(0, 2, 1)
    assert total_of(table, "8,4") == total_of(swapped, "4,8") == 20044617
    assert total_of(table, "4,8") == total_of(swapped, "8,4") == 31232558


def test_the_cheapest_policy_with_eight_bits_outside_costs_a_fifth() -> None:
    first, *inner, last = mobilenet_v2()
    cheapest = cycles(CLOUD, inner, Bits(2, 2)) + cycles(CLOUD, [first, last], W8A8)
    assert cheapest == 8312597
    assert cheapest / TABLE["totals"]["8,8"] == pytest.approx(0.20978, abs=5e-6)


def test_cycles_are_of_the_batch_and_milliseconds_follow_the_clock() -> None:
    ms = cycles(CLOUD, mobilenet_v2(), W8A8) * CLOUD.si["latency"] * 1e3
    assert ms == pytest.approx(198.124665)
    assert ms / CLOUD.batch == pytest.approx(12.3828, abs=5e-5)


def test_the_policy_of_the_papers_authors_costs_sixty_percent() -> None:
    published = json.loads((GOLDEN / "haq_mobilenet_v2_policy.json").read_text())["bits"]
    policy = [Bits(*bits) for bits in published]
    layers = mobilenet_v2()
    costs = [int(CLOUD.cost(*each)["latency"]) for each in zip(layers, policy, strict=True)]
    whole = TABLE["totals"]["8,8"]
    assert sum(costs) / whole == pytest.approx(0.59646, abs=5e-6)
    # They charge the activations of the first layer at 7 bits: an index of -1 in their table.
    theirs = sum(costs) - costs[0] + int(CLOUD.cost(layers[0], Bits(8, 7))["latency"])
    assert theirs == 23433397 and theirs / whole == pytest.approx(0.59138, abs=5e-6)
    inner = cycles(CLOUD, layers[1:-1], W8A8)
    assert sum(costs[1:-1]) / inner == pytest.approx(0.57881, abs=5e-6)


@functools.cache
def searchable() -> CostTable:
    layers = [replace(layer, name=f"{n}") for n, layer in enumerate(mobilenet_v2())]
    choices = permitted(layers, CLOUD, pins={"0": 8, "52": 8})
    return tabulate(layers, choices, CLOUD)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.2098])
def test_a_budget_is_kept_with_eight_bits_outside(share: float) -> None:
    table, limit = searchable(), share * TABLE["totals"]["8,8"]
    policy = fit(dict.fromkeys(table.choices, W8A8), table, [Budget("latency", limit)])
    assert total(table, policy, "latency") <= limit
    assert policy["0"] == policy["52"] == W8A8


def test_less_than_the_cheapest_policy_is_refused() -> None:
    budget = Budget("latency", 0.2097 * TABLE["totals"]["8,8"])
    with pytest.raises(BudgetError, match="the cheapest one needs 8312597;"):
        fit(dict.fromkeys(searchable().choices, W8A8), searchable(), [budget])


# Whole networks.


@every_target
@pytest.mark.parametrize("network", NETWORKS)
def test_whole_networks_at_eight_bits(target: ProfileTarget, network: str) -> None:
    assert cycles(target, NETWORKS[network](), W8A8) == UNIFORM[target.name][network]["all_cycles"]


@every_target
@pytest.mark.parametrize("network, layers", [("mobilenet_v1", 28), ("mobilenet_v2", 53)])
def test_uniform_bits_come_near_the_reported_latency(
    target: ProfileTarget, network: str, layers: int
) -> None:
    _, *inner, _ = NETWORKS[network]()
    assert len(inner) == layers - 2
    row = UNIFORM[target.name][network]
    for bits, ms, expected in zip(UNIFORM["bits"], row["ms"], row["mid_cycles"], strict=True):
        counted = cycles(target, inner, Bits(bits, bits))
        assert counted == expected
        error_ms = abs(counted * target.si["latency"] * 1e3 - ms)
        assert error_ms < (0.006 if target is CLOUD else 0.03 * ms)


# Layers as products.


@every_target
def test_a_convolution_is_linear_in_the_batch(target: ProfileTarget) -> None:
    one, many = load(target.name, batch=1), load(target.name, batch=5)
    for layer in (conv(3, 32, 3, 32), conv(32, 32, 3, 32, groups=32), conv(32, 48, 1, 32)):
        assert many.cost(layer, W8A8)["latency"] == 5 * one.cost(layer, W8A8)["latency"]
        assert many.cost(layer, W8A8)["energy"] == pytest.approx(
            5 * one.cost(layer, W8A8)["energy"], rel=1e-12
        )


def test_a_linear_layer_takes_the_batch_as_columns() -> None:
    # 16 columns fill the array: up to there a batch is nearly free, one more starts a new tile.
    products = [bitserial.product(CLOUD.formula.overlay, linear(256, 16), n) for n in (1, 16, 17)]
    assert products == [(16, 256, 1, 1), (16, 256, 16, 1), (16, 256, 17, 1)]
    busy = [matmul(CLOUD.formula.overlay, p.rows, p.depth, p.columns, W8A8).busy for p in products]
    assert busy == [64, 64, 128]


def test_positions_of_a_linear_layer_are_columns_like_images() -> None:
    tokens = load("bismo-cloud", batch=2).cost(linear(64, 64, positions=49), W8A8)
    assert tokens == load("bismo-cloud", batch=98).cost(linear(64, 64), W8A8)


def test_a_layer_called_twice_costs_twice() -> None:
    for layer in (conv(16, 16, 3, 8), conv(16, 16, 3, 8, groups=16), linear(64, 10)):
        once, twice = EDGE.cost(layer, W8A8), EDGE.cost(replace(layer, calls=2), W8A8)
        assert twice == {quantity: 2 * cost for quantity, cost in once.items()}


def test_depthwise_channels_are_packed_and_the_last_block_is_filled_up() -> None:
    layer = conv(17, 17, 3, 8, groups=17)
    assert bitserial.product(CLOUD.formula.overlay, layer, batch=3) == (16, 144, 64, 6)
    assert bitserial.product(EDGE.formula.overlay, layer, batch=3) == (1, 9, 64, 51)


def test_grouped_convolutions_run_group_by_group() -> None:
    array = CLOUD.formula.overlay
    assert bitserial.product(array, conv(32, 64, 3, 8, groups=4), 2) == (16, 72, 64, 8)
    several_a_channel = conv(8, 24, 3, 8, groups=8)
    assert bitserial.product(array, several_a_channel, 1) == (3, 9, 64, 8)


def test_a_kernel_need_not_be_square() -> None:
    layer = replace(conv(8, 8, 3, 8), kernel=(1, 7), out_size=(8, 4))
    assert bitserial.product(EDGE.formula.overlay, layer, 1) == (8, 56, 32, 1)


# Energy.


def test_energy_by_hand() -> None:
    # 1204224 busy cycles of 2 * 8 * 256 * 8 operations at 0.32 pJ: 12.63 mJ. Weights held: 12 tiles
    # of 8 bits are one buffer, so each operand is fetched once: (96 + 12544) * 8 bits * 32.
    layer = conv(16, 96, 1, 112)
    work = matmul(EDGE.formula.overlay, 96, 16, 12544, W8A8)
    assert work == (1204315, 1204224, 32 * 8 * (96 + 12544))
    seconds = 1204315 / 200e6
    binops_mj = 1204224 * 32768 * 0.32e-9
    assert binops_mj == pytest.approx(12.63, abs=0.005)
    assert binops_mj / seconds / 1e3 == pytest.approx(2.10, abs=0.005)
    expected_mj = 2.5e3 * seconds + binops_mj + 25e-9 * work.fetched
    assert EDGE.cost(layer, W8A8)["energy"] * 1e-6 == pytest.approx(expected_mj, rel=1e-12)


def test_the_edge_array_at_full_use_draws_the_power_it_was_fitted_to() -> None:
    array, power = EDGE.formula.overlay, EDGE.formula.power
    binops_per_second = 2 * array.rows * array.columns * array.word_bits * EDGE.formula.clock_hz
    assert binops_per_second == pytest.approx(6.5536e12)
    watts = power.static_w + power.pj_per_binop * 1e-12 * binops_per_second
    assert watts == pytest.approx(4.60, abs=0.005)


# The targets.


@every_target
def test_every_pair_of_one_to_eight_bits_is_offered(target: ProfileTarget) -> None:
    pairs = target.choices(linear(4, 4))
    assert len(set(pairs)) == 64 and pairs[0] == (1, 1) and pairs[7] == (1, 8)
    assert target.units == {"latency": "cycles", "energy": "nJ"}
    assert target.si == {"latency": 5e-9, "energy": 1e-9}


def test_the_batch_is_the_profiles_unless_given() -> None:
    assert [load("bismo-cloud").batch, load("bismo-edge").batch] == [16, 1]
    assert load("bismo-edge", batch=4).batch == 4


@pytest.mark.parametrize("bits", [Bits(32, 32), Bits(8, 0), Bits(9, 8)])
def test_bits_that_the_overlay_cannot_run_are_refused(bits: Bits) -> None:
    message = f"bismo-cloud cannot run layer 'fc' at {bits}; it can at w1..8 a1..8"
    with pytest.raises(TargetError, match=message):
        CLOUD.cost(linear(4, 4), bits)


def test_an_unknown_target_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(HaqError, match="unknown target 'bismo_edge'; did you mean 'bismo-edge'"):
        load("bismo_edge")
    with pytest.raises(TargetError, match="bismo-edge needs a batch of at least 1 image, not 0"):
        load("bismo-edge", batch=0)
