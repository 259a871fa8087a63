"""Layers that are called at several sizes, such as a detector's head: each call has its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hw_targets import EVERY_TARGET, STORED
from torch import Tensor, nn

from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import bitfusion, load
from haq.hw_profiles.document import parse
from haq.hw_profiles.rows import shape_of
from haq.hw_profiles.target import ProfileTarget
from haq.network.graph import inventory
from haq.network.layers import CallShape, Layer

W8A8 = Bits(8, 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def conv(side: int, calls: int = 1) -> Layer:
    size = (side, side)
    macs = 16 * 16 * 9 * side * side * calls
    return Layer(
        "head", "conv", 16, 16, (3, 3), (1, 1), (1, 1), 1, size, size, weights=2304, macs=macs,
        calls=calls,
    )  # fmt: skip


def call(side: int, calls: int = 1) -> CallShape:
    return CallShape((side, side), (side, side), 16 * 16 * 9 * side * side, calls)


HEAD = replace(conv(32), shapes=(call(32), call(4)), calls=2, macs=2304 * (1024 + 16))
TWICE = replace(HEAD, shapes=(call(32), call(4, 2)), calls=3)


def test_a_head_shared_by_two_sizes_by_hand():
    cloud = load("bismo-cloud", batch=1)
    assert cloud.cost(conv(32), W8A8)["latency"] == 8199
    assert cloud.cost(conv(4), W8A8)["latency"] == 184
    assert cloud.cost(HEAD, W8A8)["latency"] == 8383
    assert cloud.cost(TWICE, W8A8)["latency"] == 8199 + 2 * 184


@pytest.mark.parametrize("name", EVERY_TARGET)
def test_every_target_adds_up_the_calls_of_a_layer(name: str):
    target = load(name)
    for bits in (W8A8, target.pairs[0]):
        large, small = target.cost(conv(32), bits), target.cost(conv(4), bits)
        for quantity, cost in target.cost(TWICE, bits).items():
            if quantity in STORED:
                assert cost >= large[quantity]
                continue
            assert cost == pytest.approx(large[quantity] + 2 * small[quantity])
            assert target.how(TWICE, bits)[quantity].method == "model"
        assert target.formula is not None
        assert target.formula.cost(TWICE, bits) == pytest.approx(target.cost(TWICE, bits))


def test_traffic_and_what_is_simulated_add_up_too():
    formula = load("bitfusion-default").formula
    assert isinstance(formula, bitfusion.BitFusionFormula)
    large, small = formula.work(conv(32), W8A8), formula.work(conv(4), W8A8)
    assert formula.work(TWICE, W8A8) == tuple(a + 2 * b for a, b in zip(large, small, strict=True))
    raw = formula.raw(conv(32), W8A8)["latency"] + 2 * formula.raw(conv(4), W8A8)["latency"]
    assert formula.raw(TWICE, W8A8)["latency"] == raw


# --- tables ------------------------------------------------------------------------------------


def board(*rows: dict[str, object], **fields: object) -> ProfileTarget:
    from haq.hw_profiles import build

    content = {
        "format": "haq-profile/1", "name": "board", "title": "t", "device": "d",
        "runtime": {"name": "r"}, "batch": {"reference": 1, "rule": "none"},
        "quantities": {
            "latency": {"unit": "us", "provenance": "measured", "source": "s", "per_call": 0.5}
        },
        "table": {"rows": list(rows), **fields},
    }  # fmt: skip
    return build(parse(json.dumps(content), "profile"))


def row(latency: float, side: int | None = None, layer: str | None = None, bits: int = 8):
    key = {"layer": layer} if layer else {}
    if side:
        key["shape"] = shape_of(conv(side)).model_dump(mode="json")
    return {**key, "weight": bits, "act": bits, "cost": {"latency": latency}}


def test_rows_by_shape_are_for_the_calls_of_that_shape():
    target = board(row(10, 32), row(1, 4))
    assert target.cost(TWICE, W8A8) == {"latency": 10 + 2 * 1 + 3 * 0.5}
    assert target.how(TWICE, W8A8)["latency"].method == "exact"


def test_a_row_by_name_is_for_all_calls():
    target = board(row(10, layer="head"), row(1, 4))
    assert target.cost(TWICE, W8A8) == {"latency": 10 + 3 * 0.5}


def test_a_size_without_a_row_is_named():
    with pytest.raises(TargetError, match="board has no row for layer 'head'"):
        board(row(10, 32)).cost(HEAD, W8A8)


def test_an_answer_is_as_weak_as_that_of_its_weakest_size():
    target = board(row(10, 32), nearest={})
    answer = target.how(HEAD, W8A8)["latency"]
    assert (answer.method, answer.provenance) == ("shape", "inferred")
    assert answer.value == pytest.approx(10 + 10 * 16 / 1024 + 2 * 0.5)


def test_a_pair_is_offered_where_every_size_has_it():
    target = board(row(10, 32), row(7, 32, bits=4), row(1, 4))
    assert target.choices(conv(32)) == (Bits(4, 4), W8A8)
    assert target.choices(HEAD) == (W8A8,)


# --- networks ----------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """One head over a map and over a map of an eighth of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        small = nn.functional.avg_pool2d(x, 8)
        return self.head(x).mean((2, 3)) + self.head(small).mean((2, 3))


def test_the_costs_of_a_network_count_every_call():
    layers = inventory(Pyramid(), torch.zeros(1, 3, 32, 32))
    cloud = load("bismo-cloud", batch=1)
    table = tabulate(layers, permitted(layers, cloud), cloud)
    policy = {"stem": W8A8, "head": W8A8}
    stem = cloud.cost(layers[0], W8A8)["latency"]
    assert total(table, policy, "latency") == stem + 8383
