"""Costs from the table of a profile: rows, and what they say of other bits, batches and shapes."""

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_parts import (
    CONV,
    FC,
    POINTWISE,
    latency,
    profile,
    row,
    target,
)

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import (
    TARGETS,
    build,
    load,
)
from haq.hw_profiles.document import parse, write_json
from haq.hw_profiles.pairs import listed
from haq.hw_profiles.schema import (
    STRENGTH,
    weakest,
)
from haq.network.layers import Layer


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
    assert latency(board, replace(wide, calls=3), 8, 8).value == 30.0
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
