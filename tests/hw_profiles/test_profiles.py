import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from scipy.stats import spearmanr

from haq.allocation.policy import Bits
from haq.errors import HaqError, TargetError
from haq.hw_profiles import (
    TARGETS,
    CostAnswer,
    Explained,
    ProfileTarget,
    build,
    document,
    find,
    load,
    table,
)
from haq.hw_profiles.answers import METHODS
from haq.hw_profiles.document import parse, read, write_json
from haq.hw_profiles.pairs import listed
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cost, Row, Shape, shape_of
from haq.hw_profiles.schema import (
    AMOUNTS,
    ENERGIES,
    STRENGTH,
    TIMES,
    Batch,
    BitRule,
    Quantity,
    weakest,
)
from haq.network.layers import Layer

CONV = Layer(
    "conv1", "conv", c_in=3, c_out=16, kernel=(3, 3), padding=(1, 1), in_size=(8, 8),
    out_size=(8, 8), weights=432, macs=27648, reads_input=True,
)  # fmt: skip
DEPTHWISE = Layer(
    "dw", "depthwise", c_in=16, c_out=16, kernel=(3, 3), stride=(2, 2), padding=(1, 1), groups=16,
    in_size=(8, 8), out_size=(4, 4), weights=144, macs=2304,
)  # fmt: skip
POINTWISE = Layer(
    "pw", "pointwise", c_in=16, c_out=24, in_size=(4, 4), out_size=(4, 4), weights=384, macs=6144
)
FC = Layer("fc", "linear", c_in=24, c_out=10, weights=240, macs=240)
LAYERS = (CONV, DEPTHWISE, POINTWISE, FC)

every_target = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# What every target that comes with the package must do.


@every_target
def test_a_profile_is_called_like_its_target_and_says_where_its_numbers_are_from(name: str) -> None:
    profile = find(name)
    assert profile.name == name == load(name).name
    assert profile.zero_cost and "latency" in profile.quantities
    for quantity in profile.quantities.values():
        assert len(quantity.source) > 40 and quantity.provenance != "user"


@every_target
def test_units_are_known_and_turned_into_seconds_and_joules(name: str) -> None:
    target = load(name)
    for quantity, unit in target.units.items():
        assert unit in {*TIMES, *ENERGIES, *AMOUNTS, "cycles"}
        assert (quantity in target.si) == (quantity in ("latency", "energy"))
    assert all(0 < factor <= 1 for factor in target.si.values())


@every_target
def test_the_version_is_of_the_content_only(name: str) -> None:
    text = TARGETS[name].read_text(encoding="utf-8")
    content = json.loads(text)
    version = find(name).version
    shuffled = dict(reversed(content.items()))
    assert parse(json.dumps(shuffled, indent=7), "it").version == version
    assert parse(write_json(find(name)), "it").version == version
    assert parse(json.dumps({**content, "title": "another"}), "it").version != version


@every_target
def test_costs_are_positive_and_finite_and_known_as_declared(name: str) -> None:
    target = load(name)
    for layer in LAYERS:
        for bits in target.choices(layer):
            how = target.how(layer, bits)
            assert how.keys() == target.units.keys()
            for quantity, answer in how.items():
                assert 0 < answer.value < math.inf
                assert answer.method == "model"
                assert answer.provenance == target.profile.quantities[quantity].provenance


@every_target
def test_more_bits_never_cost_less_where_that_is_declared(name: str) -> None:
    target = load(name)
    declared = [q for q, about in target.profile.quantities.items() if about.monotone]
    for layer in LAYERS:
        costs = {bits: target.cost(layer, bits) for bits in target.choices(layer)}
        for less, more in product(costs, costs):
            if less.weight <= more.weight and less.act <= more.act:
                assert all(costs[less][q] <= costs[more][q] for q in declared)


@every_target
def test_a_layer_called_twice_costs_twice(name: str) -> None:
    target = load(name)
    twice = Layer(**{**vars(POINTWISE), "calls": 2})
    for bits in (Bits(8, 8), target.pairs[0]):
        once = target.cost(POINTWISE, bits)
        assert target.cost(twice, bits) == pytest.approx({q: 2 * c for q, c in once.items()})


@every_target
def test_unknown_bits_and_empty_batches_are_refused(name: str) -> None:
    target = load(name)
    for bits in (Bits(0, 8), Bits(8, 0), Bits(9, 9), Bits(8, 33)):
        with pytest.raises(TargetError, match=f"{name} cannot run layer 'fc' at {bits}; it can at"):
            target.cost(FC, bits)
    with pytest.raises(TargetError, match=f"{name} needs a batch of at least 1 image, not 0"):
        load(name, batch=0)


@every_target
def test_the_batch_is_the_profiles_unless_given(name: str) -> None:
    assert load(name).batch == find(name).batch.reference
    assert load(name, batch=3).batch == 3


@every_target
def test_every_target_can_say_how_it_knows(name: str) -> None:
    assert isinstance(load(name), Explained)


# Profiles of our own.

Content = dict[str, Any]


def row(layer: Layer | str, weight: int, act: int, latency: float, **more: Any) -> Content:
    about: Content
    if isinstance(layer, str):
        about = {"layer": layer}
    else:
        about = {"shape": shape_of(layer).model_dump(mode="json", exclude_defaults=True)}
    return {**about, "weight": weight, "act": act, "cost": {"latency": latency}, **more}


def content(*rows: Content, **more: Any) -> Content:
    source = "three runs on the bench"
    return {
        "format": "haq-profile/1",
        "name": "board",
        "title": "A board",
        "device": "board",
        "runtime": {"name": "bare metal"},
        "quantities": {"latency": {"unit": "us", "provenance": "measured", "source": source}},
        "batch": {"reference": 1, "rule": "none"},
        **({"table": {"rows": list(rows)}} if rows else {}),
        **more,
    }


def profile(*rows: Content, **more: Any) -> Profile:
    return parse(json.dumps(content(*rows, **more)), "profile board.json")


def target(*rows: Content, images: int | None = None, **more: Any) -> ProfileTarget:
    return build(profile(*rows, **more), images)


def latency(target: ProfileTarget, layer: Layer, weight: int, act: int) -> CostAnswer:
    return target.how(layer, Bits(weight, act))["latency"]


def test_a_row_answers_for_the_layer_of_its_name() -> None:
    board = target(row("fc", 8, 8, 5.5), row("fc", 4, 8, 3.0))
    assert board.choices(FC) == (Bits(4, 8), Bits(8, 8))
    assert latency(board, FC, 8, 8) == (5.5, "exact", "measured")
    assert board.cost(FC, Bits(4, 8)) == {"latency": 3.0}
    assert board.units == {"latency": "us"} and board.si == {"latency": 1e-6}


def test_a_row_by_shape_is_for_one_call_and_a_row_by_name_for_all() -> None:
    thrice = Layer(**{**vars(FC), "calls": 3})
    assert latency(target(row(FC, 8, 8, 5.0)), thrice, 8, 8).value == 15
    assert latency(target(row("fc", 8, 8, 5.0)), thrice, 8, 8).value == 5


def test_a_row_with_both_is_for_the_layer_as_long_as_it_has_that_shape() -> None:
    both = {**row(FC, 8, 8, 5.0), "layer": "fc"}
    assert latency(target(both), FC, 8, 8).value == 5
    wider = Layer("fc", "linear", c_in=25, c_out=10)
    message = "board has no row for layer 'fc' as it is here: its rows of that name are for another"
    with pytest.raises(TargetError, match=message):
        target(both).choices(wider)


def test_a_declared_overhead_is_added_to_every_call() -> None:
    thrice = Layer(**{**vars(FC), "calls": 3})
    quantity = {"unit": "us", "provenance": "measured", "source": "bench", "per_call": 0.5}
    board = target(row("fc", 8, 8, 5.0), quantities={"latency": quantity})
    assert latency(board, thrice, 8, 8).value == 6.5


def test_the_runs_behind_a_cost_are_kept() -> None:
    cost = {"value": 5.0, "n": 40, "p10": 5.0, "p50": 5.5, "p90": 9.0}
    kept = profile({**row("fc", 8, 8, 0.0), "cost": {"latency": cost}})
    assert json.loads(write_json(kept))["table"]["rows"][0]["cost"]["latency"] == cost


# Other bits.

SQUARE = (row("fc", 2, 2, 1.0), row("fc", 2, 8, 4.0), row("fc", 8, 2, 7.0), row("fc", 8, 8, 16.0))
BETWEEN = {"bits": {"between": "interpolate"}}
UP = {"bits": {"between": "round-up"}}


def test_between_four_rows_by_hand() -> None:
    # A third of the way up in weights, halfway in activations: rows 2.5 and 11.5, a third between.
    assert latency(target(*SQUARE, **BETWEEN), FC, 4, 5) == (5.5, "interpolated", "modelled")
    assert latency(target(*SQUARE, **BETWEEN), FC, 8, 8) == (16.0, "exact", "measured")


@given(st.integers(2, 8), st.integers(2, 8), st.lists(st.floats(0, 1e9), min_size=4, max_size=4))
def test_interpolation_stays_within_the_rows_around_it(
    weight: int, act: int, costs: list[float]
) -> None:
    corners = product((2, 8), (2, 8))
    rows = [row("fc", w, a, cost) for (w, a), cost in zip(corners, costs, strict=True)]
    value = latency(target(*rows, **BETWEEN), FC, weight, act).value
    assert min(costs) * (1 - 1e-12) <= value <= max(costs) * (1 + 1e-12)


def test_nothing_is_read_off_outside_the_rows() -> None:
    board = target(*SQUARE, row("fc", 32, 32, 50.0), **BETWEEN)
    assert listed(board.choices(FC)) == "w2..8 a2..8, fp32"
    for bits in (Bits(1, 4), Bits(4, 9), Bits(16, 16)):
        with pytest.raises(TargetError, match="it can at w2..8 a2..8, fp32"):
            board.cost(FC, bits)


def test_a_corner_that_is_missing_leaves_its_square_out() -> None:
    board = target(*SQUARE[:3], **BETWEEN)
    assert set(board.choices(FC)) == {(2, a) for a in range(2, 9)} | {(w, 2) for w in range(2, 9)}


def test_narrow_numbers_go_into_the_cheapest_wider_ones_that_there_are() -> None:
    rows = (row("fc", 4, 8, 6.0), row("fc", 8, 8, 5.0), row("fc", 4, 4, 4.0))
    board = target(*rows, **UP)
    assert latency(board, FC, 3, 4) == (4.0, "rounded up", "measured")
    assert latency(board, FC, 3, 5) == (5.0, "rounded up", "measured")
    assert latency(board, FC, 4, 8) == (6.0, "exact", "measured")


def test_float_is_not_a_wider_integer() -> None:
    board = target(row("fc", 32, 32, 1.0), row("fc", 8, 8, 5.0), row("fc", 4, 32, 2.0), **UP)
    assert latency(board, FC, 4, 4).value == 5
    assert latency(board, FC, 3, 32).value == 2
    with pytest.raises(TargetError, match="cannot run layer 'fc' at w8a32"):
        board.cost(FC, Bits(8, 32))


def test_declared_pairs_need_an_answer_for_every_layer() -> None:
    eight = {"weight": [4, 8], "act": [8]}
    message = (
        'layer fc has no row for w4a8 at batch 1, nor .*; give one, or take w4a8 out of "bits"'
    )
    with pytest.raises(TargetError, match=message):
        target(row("fc", 8, 8, 5.0), bits=eight)
    up = target(row("fc", 8, 8, 5.0), bits={**eight, "between": "round-up"})
    assert up.choices(FC) == ((4, 8), (8, 8))


def test_a_kind_may_have_pairs_of_its_own() -> None:
    bits = {"weight": [8], "act": [8], "kinds": {"linear": {"pairs": [[8, 8], [4, 32]]}}}
    rows = (row(FC, 8, 8, 5.0), row(FC, 4, 32, 6.0), row(POINTWISE, 8, 8, 1.0))
    board = target(*rows, bits=bits)
    assert board.choices(FC) == ((4, 32), (8, 8)) and board.choices(POINTWISE) == ((8, 8),)


# Other batches.


def test_a_batch_without_a_rule_is_refused() -> None:
    with pytest.raises(TargetError, match="board is for a batch of 1; it knows nothing of 4"):
        target(row("fc", 8, 8, 5.0), images=4)


def test_a_linear_batch_scales_the_reference() -> None:
    linear = {"batch": {"reference": 2, "rule": "linear"}}
    board = target(row("fc", 8, 8, 5.0), images=6, **linear)
    assert latency(board, FC, 8, 8) == (15.0, "batch", "modelled")
    exact = target(row("fc", 8, 8, 5.0), row("fc", 8, 8, 9.0, batch=6), images=6, **linear)
    assert latency(exact, FC, 8, 8) == (9.0, "exact", "measured")


def test_a_table_of_batches_knows_those_and_no_other() -> None:
    rows = (row("fc", 8, 8, 5.0), row("fc", 8, 8, 7.0, batch=4))
    rule = {"batch": {"reference": 1, "rule": "table"}}
    assert latency(target(*rows, images=4, **rule), FC, 8, 8).value == 7
    with pytest.raises(TargetError, match="no rows for a batch of 2, only for 1, 4"):
        target(*rows, images=2, **rule)


def test_columns_are_for_the_model_to_count() -> None:
    rule = {"batch": {"reference": 1, "rule": "linear", "kinds": {"linear": "columns"}}}
    board = target(row("fc", 8, 8, 5.0), row("pw", 8, 8, 5.0), images=2, **rule)
    assert latency(board, POINTWISE, 8, 8).value == 10
    with pytest.raises(TargetError, match="no row for layer 'fc' at a batch of 2, nor a rule"):
        board.choices(FC)


# Other shapes, and the model.


def test_a_cost_is_carried_to_another_shape_by_hand() -> None:
    # Tiles of one: the roofline is weight bits x act bits x macs, so twice the inputs cost twice.
    rows = [row(FC, 8, 8, 5.0)]
    wide = Layer("wide", "linear", c_in=48, c_out=10)
    board = target(table={"rows": rows, "nearest": {}})
    assert latency(board, wide, 8, 8) == (10.0, "shape", "inferred")
    with pytest.raises(TargetError, match=r"no row for layer 'pw' \(pointwise, 16 to 24\)"):
        board.choices(POINTWISE)


def test_the_nearest_shape_that_can_answer_is_taken() -> None:
    near, far = (Layer("", "linear", c_in=c_in, c_out=10) for c_in in (32, 512))
    rows = [row(near, 8, 8, 4.0), row(far, 8, 8, 1.0), row(far, 4, 8, 100.0)]
    board = target(table={"rows": rows, "nearest": {}})
    assert latency(board, FC, 8, 8).value == pytest.approx(3.0)
    assert latency(board, FC, 4, 8).value == pytest.approx(100 * 24 / 512)


def test_a_model_answers_where_no_row_does() -> None:
    cloud = json.loads(TARGETS["bismo-cloud"].read_text())
    del cloud["quantities"]["energy"]
    cloud["quantities"]["latency"]["provenance"] = "measured"
    cloud["table"] = {"rows": [row("fc", 8, 8, 77.0)]}
    board, model = build(parse(json.dumps(cloud), "it")), load("bismo-cloud")
    assert latency(board, FC, 8, 8) == (77.0, "exact", "measured")
    assert latency(board, FC, 8, 4) == (*model.how(FC, Bits(8, 4))["latency"][:2], "modelled")
    assert latency(board, CONV, 8, 8).method == "model"


def test_a_layer_that_nothing_is_known_of_is_named() -> None:
    with pytest.raises(TargetError, match=r"no row for layer 'fc' .*; did you mean 'fc1' there"):
        target(row("fc1", 8, 8, 5.0)).cost(FC, Bits(8, 8))


def test_a_sum_is_as_weak_as_its_weakest_term() -> None:
    assert [weakest(STRENGTH[:end]) for end in range(1, 8)] == list(STRENGTH)
    assert weakest(["inferred", "measured"]) == "inferred"


# The rules against a published table: all 53 x 8 x 8 costs of MobileNetV2 on bismo-cloud, which the
# formula equals (tests/test_bitserial.py).


def mobilenet_v2() -> list[Layer]:
    def conv(c_in: int, c_out: int, size: int, k: int = 1, stride: int = 1) -> Layer:
        kind = "pointwise" if k == 1 else "depthwise" if c_in == c_out else "conv"
        after = size // stride
        return Layer(
            "", kind, c_in, c_out, (k, k), (stride, stride), (k // 2, k // 2),
            c_in if kind == "depthwise" else 1, (size, size), (after, after),
        )  # fmt: skip

    layers, c_in, size = [conv(3, 32, 224, 3, 2)], 32, 112
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, c_out, blocks, first in [*stages, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for stride in [first, *[1] * (blocks - 1)]:
            wide = c_in * expansion
            layers += [conv(c_in, wide, size)] if expansion > 1 else []
            layers.append(conv(wide, wide, size, 3, stride))
            size //= stride
            layers.append(conv(wide, c_out, size))
            c_in = c_out
    return [*layers, conv(320, 1280, 7), Layer("", "linear", 1280, 1000)]


NETWORK = mobilenet_v2()
SHAPES = list(dict.fromkeys(NETWORK))
CLOUD = load("bismo-cloud")


def published(layers: Sequence[Layer], widths: Sequence[int], **more: Any) -> Content:
    rows = [
        row(layer, weight, act, CLOUD.cost(layer, Bits(weight, act))["latency"])
        for layer in layers
        for weight, act in product(widths, widths)
    ]
    about = {"unit": "cycles", "provenance": "published", "source": "the table of MobileNetV2"}
    return content(
        table={"rows": rows, **more},
        quantities={"latency": about},
        batch={"reference": 16, "rule": "linear"},
    )


def test_three_widths_tell_the_others_within_one_percent() -> None:
    three = published(SHAPES, (2, 4, 8)) | {"bits": {"between": "interpolate"}}
    board = build(parse(json.dumps(three), "it"))
    pairs = [Bits(weight, act) for weight, act in product(range(2, 9), range(2, 9))]
    assert len(NETWORK) == 53 and len(SHAPES) == 31
    for layer in SHAPES:
        assert board.choices(layer) == tuple(pairs)
    told = [[board.cost(layer, bits)["latency"] for bits in pairs] for layer in NETWORK]
    true = [[CLOUD.cost(layer, bits)["latency"] for bits in pairs] for layer in NETWORK]
    error = np.abs(np.array(told) / np.array(true) - 1)
    assert error.mean() == pytest.approx(0.0059, abs=5e-5) and error.max() < 0.132
    for costs in told:
        cost = dict(zip(pairs, costs, strict=True))
        for bits in pairs:
            below = Bits(*(max(w for w in (2, 4, 8) if w <= width) for width in bits))
            assert cost[bits] >= cost[below]


def test_other_shapes_tell_one_within_three_percent() -> None:
    sizes = {"rows": 16, "columns": 16, "word_bits": 256, "port_bits": 256}
    tiles = {**sizes, "depthwise_channels": 16}
    whole = parse(json.dumps(published(SHAPES, range(1, 9), nearest=tiles)), "it")
    assert whole.table is not None
    told, true = [], []
    for layer in SHAPES[1:-1]:  # the first and the last are the only ones of their kind
        others = tuple(r for r in whole.table.rows if r.shape != shape_of(layer))
        board = build(
            whole.model_copy(update={"table": whole.table.model_copy(update={"rows": others})})
        )
        for bits in CLOUD.choices(layer)[::3]:
            answer = board.how(layer, bits)["latency"]
            assert answer.method == "shape" and answer.provenance == "inferred"
            told.append(answer.value)
            true.append(CLOUD.cost(layer, bits)["latency"])
    error = np.abs(np.array(told) / np.array(true) - 1)
    assert error.mean() < 0.03 and error.max() < 0.5
    assert spearmanr(told, true).statistic > 0.999


# What is written about them.

README = (Path(document.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "part", [Profile, Quantity, Batch, BitRule, Row, Shape, Cost], ids=lambda part: part.__name__
)
def test_the_readme_names_every_field(part: type[BaseModel]) -> None:
    assert [field for field in part.model_fields if f"`{field}`" not in README] == []


def test_the_readme_names_every_target_class_method_and_column() -> None:
    words = [*TARGETS, *STRENGTH, *METHODS, *table.COLUMNS]
    assert [word for word in words if f"`{word}`" not in README] == []


# What is refused.

LATENCY = {"unit": "us", "provenance": "measured", "source": "bench"}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"format": "hwprofile/1"}, 'not a profile; it must say "format": "haq-profile/1"'),
        ({"watts": 3}, "watts: Extra inputs are not permitted"),
        ({"device": ""}, "device: String should match"),
        ({"quantities": {}}, "quantities: .*at least 1"),
        (
            {"quantities": {"latency": {**LATENCY, "unit": "usec"}}},
            r"unknown unit of latency 'usec'; did you mean 'us'\? \(known: cycles, ms, ns, s, us\)",
        ),
        (
            {"quantities": {"energy": {**LATENCY, "unit": "cycles"}}},
            "unknown unit of energy 'cycles'",
        ),
        (
            {"quantities": {"size": {**LATENCY, "unit": "bytes"}}},
            "'size' cannot be the name of a quantity of a target",
        ),
        (
            {"quantities": {"latency": {**LATENCY, "source": " "}}},
            "quantities.latency.source: String should match",
        ),
        (
            {"quantities": {"latency": {**LATENCY, "provenance": "guessed"}}},
            "quantities.latency.provenance: Input should be 'measured'.*, not \"guessed\"",
        ),
        ({"batch": {"reference": 0, "rule": "none"}}, "batch.reference: .*, not 0"),
        ({"table": None}, "it needs a model, a table or both"),
        ({"table": {"rows": []}}, "table.rows: .*at least 1 item"),
        ({"model": {"type": "magic"}}, "model: Input tag 'magic'"),
    ],
)
def test_a_document_that_is_not_a_profile_is_refused(changed: Content, message: str) -> None:
    with pytest.raises(TargetError, match=f"^profile board.json: {message}"):
        profile(row("fc", 8, 8, 5.0), **changed)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (row("fc", 4, 8, -1.0), r"\(fc w4a8\): cost.latency.value: .* equal to 0, not -1.0"),
        (row("fc", 4, 8, math.nan), r"\(fc w4a8\): cost.latency.value: .*finite number, not NaN"),
        (row("fc", 4, 8, math.inf), r"\(fc w4a8\): cost.latency.value: .*finite number"),
        (row("fc", 0, 8, 1.0), r"\(fc w0a8\): weight: .*, not 0"),
        (row("fc", 8, 8, 1.0), r"\(fc w8a8\) is for the same layer, bits and batch as row 1"),
        ({**row("fc", 4, 8, 1.0), "cost": {}}, r"\(fc w4a8\) has no latency"),
        (
            {**row("fc", 4, 8, 1.0), "cost": {"latency": 1.0, "latncy": 1.0}},
            r"\(fc w4a8\): unknown quantity 'latncy'; did you mean 'latency'",
        ),
        ({**row("fc", 4, 8, 1.0), "bits": 4}, r"\(fc w4a8\): bits: Extra inputs"),
        ({"weight": 4, "act": 8, "cost": {"latency": 1.0}}, r".*: it needs a layer, a shape or"),
        ({"layer": "fc"}, ": weight: Field required"),
        (
            {**row("fc", 4, 8, 1.0), "shape": {"kind": "dense", "c_in": 3, "c_out": 3}},
            r"\(fc w4a8\): shape.kind: Input should be 'conv'.*, not \"dense\"",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(wrong: Content, message: str) -> None:
    with pytest.raises(TargetError, match=f"^profile board.json: row 2 of the table ?{message}"):
        profile(row("fc", 8, 8, 5.0), wrong)


def test_a_batch_cannot_go_by_a_table_that_is_not_there() -> None:
    cloud = json.loads(TARGETS["bismo-cloud"].read_text())
    cloud["batch"] = {"reference": 16, "rule": "table"}
    with pytest.raises(TargetError, match="^it: batch goes by the table, but there is none"):
        parse(json.dumps(cloud), "it")


def test_rows_that_contradict_what_is_declared_are_named() -> None:
    monotone = {"latency": {**LATENCY, "monotone": True}}
    message = "fc w4a8 has more latency than fc w8a8, but latency is declared monotone"
    with pytest.raises(TargetError, match=message):
        profile(row("fc", 4, 8, 6.0), row("fc", 8, 8, 5.0), quantities=monotone)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    names = ("missing", "binary", "broken", "deep")
    missing, binary, broken, deep = (tmp_path / f"{name}.json" for name in names)
    binary.write_bytes(b"\xff\xfe{")
    broken.write_text("{")
    deep.write_text("[" * 100_000)
    for path, message in (
        (missing, "cannot be read"), (tmp_path, "cannot be read"), (binary, "not UTF-8 text"),
        (broken, "not JSON"), (deep, "not JSON"),
    ):  # fmt: skip
        with pytest.raises(TargetError, match=f"^profile {path}: {message}"):
            read(path)


def test_names_are_found_or_something_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content(row("fc", 8, 8, 5.0))))
    assert load(str(path)).cost(FC, Bits(8, 8)) == {"latency": 5.0}
    with pytest.raises(HaqError, match="unknown target 'bismo_edge'; did you mean 'bismo-edge'"):
        find("bismo_edge")
    with pytest.raises(TargetError, match="target 'b.csv': write table:b.csv"):
        find("b.csv")
