import json
from dataclasses import replace
from pathlib import Path

import pytest

from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import reference, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import BudgetError, HaqError, TargetError
from haq.hw_profiles import find, load
from haq.network.layers import Layer

CONV = Layer(
    "conv1", "conv", c_in=3, c_out=16, kernel=(3, 3), stride=(2, 2), padding=(1, 1),
    in_size=(32, 32), out_size=(16, 16), weights=432, reads_input=True,
)  # fmt: skip
FC = Layer("fc", "linear", c_in=16, c_out=10, weights=160)

BOARD = """\
layer,weight_bits,act_bits,latency_us,energy_uj
conv1,8,8,100,40
conv1,4,8,70,30
conv1,32,32,300,200
fc,8,8,10,4
fc,4,4,6,2
fc,32,32,25,20
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.csv"
    path.write_text(text, encoding="utf-8")
    return f"table:{path}"


def test_a_spreadsheet_is_a_target(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    assert board.name == "board.csv" and board.batch == 1
    assert board.units == {"latency": "us", "energy": "uJ"}
    assert board.si == {"latency": 1e-6, "energy": 1e-6}
    assert board.choices(CONV) == ((4, 8), (8, 8), (32, 32))
    assert board.cost(FC, Bits(4, 4)) == {"latency": 6, "energy": 2}
    assert board.how(FC, Bits(4, 4))["latency"] == (6, "exact", "user")


@pytest.mark.parametrize(
    "text, limit",
    [
        ("energy=40%w8a8", 0.4 * 44),
        ("latency=5ms", 5000),
        ("latency=70%fp32", 0.7 * 325),
        ("energy=3nJ", 0.003),
        ("latency=80", 80),
    ],
)
def test_budgets_are_counted_on_a_table(tmp_path: Path, text: str, limit: float) -> None:
    board = load(written(tmp_path, BOARD))
    assert parse_budget(text, [CONV, FC], board).limit == pytest.approx(limit)


def test_a_search_over_a_table_costs_what_its_rows_say(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    choices = permitted([CONV, FC], board)
    assert choices["fc"] == ((4, 4), (8, 8), (32, 32))
    table = tabulate([CONV, FC], choices, board)
    assert total(table, {"conv1": Bits(4, 8), "fc": Bits(4, 4)}, "latency") == 76
    assert reference([CONV, FC], board, "latency", Bits(32, 32)) == 325


def test_a_reference_without_rows_is_refused(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    with pytest.raises(BudgetError, match="board.csv cannot run w4a4 in conv1; take a reference"):
        parse_budget("latency=50%w4a4", [CONV, FC], board)


def test_rows_may_be_for_a_shape(tmp_path: Path) -> None:
    text = (
        "kind;c_in;c_out;kernel;stride;padding;in_size;out_size;weight_bits;act_bits;latency_ms\n"
        "conv;3;16;3x3;2;1;32;16;8;8;0.5\n"
        "linear;16;10;;;;;;8;8;0.25\n"
    )
    board = load(written(tmp_path, text))
    assert board.cost(CONV, Bits(8, 8)) == {"latency": 0.5}
    assert board.cost(FC, Bits(8, 8)) == {"latency": 0.25}


def test_a_mark_at_the_start_tabs_and_empty_lines_are_a_spreadsheets_business(
    tmp_path: Path,
) -> None:
    text = "\ufefflayer\tweight_bits\tact_bits\tenergy_mj\n\t\t\t\nfc\t8\t8\t 2.5 \n\n"
    assert load(written(tmp_path, text)).cost(FC, Bits(8, 8)) == {"energy": 2.5}
    text = "sep=;\r\nlayer;weight_bits;act_bits;energy_mj\r\nfc;8;8;2.5\r\n"
    assert load(written(tmp_path, text)).cost(FC, Bits(8, 8)) == {"energy": 2.5}


def test_cycles_are_seconds_only_with_a_clock(tmp_path: Path) -> None:
    header, row = "layer,weight_bits,act_bits,latency_cycles", "fc,8,8,4000"
    bare = load(written(tmp_path, f"{header}\n{row}\n"))
    assert bare.units == {"latency": "cycles"} and bare.si == {}
    with pytest.raises(BudgetError, match="unknown unit 'ms'; give a bare number or one of cycles"):
        parse_budget("latency=5ms", [FC], bare)
    clocked = load(written(tmp_path, f"{header},clock_hz\n{row},2e8\n"))
    assert clocked.si == {"latency": 5e-9}
    assert parse_budget("latency=10us", [FC], clocked).limit == pytest.approx(2000)


def test_several_batches_are_several_tables(tmp_path: Path) -> None:
    text = "layer,weight_bits,act_bits,batch,latency_us\nfc,8,8,1,10\nfc,8,8,16,40\n"
    name = written(tmp_path, text)
    assert load(name).cost(FC, Bits(8, 8)) == {"latency": 10}
    assert load(name, batch=16).cost(FC, Bits(8, 8)) == {"latency": 40}
    with pytest.raises(TargetError, match="has no rows for a batch of 2, only for 1, 16"):
        load(name, batch=2)


def test_a_layer_without_rows_is_named(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    message = r"board.csv has no row for layer 'conv2' \(.*\); did you mean 'conv1' there"
    with pytest.raises(TargetError, match=message):
        permitted([Layer("conv2", "conv", 3, 16)], board)


def test_all_layers_without_rows_are_named_at_once(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    others = [Layer(name, "conv", 3, 16) for name in ("conv2", "a", "b")]
    with pytest.raises(TargetError, match=r"layer 'conv2' .*; nor for 2 other layers: a, b$"):
        permitted([CONV, *others, FC], board)
    with pytest.raises(TargetError, match=r"; nor for one other layer: a$"):
        permitted([CONV, *others[:2], FC], board)


def test_all_layers_without_a_reference_are_named_at_once(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    layers = [CONV, replace(CONV, name="conv9"), FC]
    more = BOARD + "conv9,8,8,1,1\n"
    board = load(written(tmp_path, more))
    with pytest.raises(TargetError, match=r"board.csv cannot run w4a4 in conv1, conv9$"):
        reference(layers, board, "latency", Bits(4, 4))


def test_bits_without_a_row_are_named(tmp_path: Path) -> None:
    board = load(written(tmp_path, BOARD))
    message = "board.csv cannot run layer 'conv1' at w4a4; it can at w4a8, w8a8, fp32"
    with pytest.raises(TargetError, match=message):
        board.cost(CONV, Bits(4, 4))


def test_a_row_more_is_another_version(tmp_path: Path) -> None:
    one = find(written(tmp_path, BOARD)).version
    assert find(written(tmp_path, BOARD.replace(",", ";"))).version == one
    assert find(written(tmp_path, BOARD + "fc,2,2,5,1\n")).version != one


HEAD = "layer,weight_bits,act_bits,latency_us"
SHAPES = "kind,c_in,c_out,kernel,weight_bits,act_bits,latency_us"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "it needs a header and, below it, at least one row"),
        ("\n\n", "it needs a header"),
        (f"{HEAD}\n", "it needs a header and, below it, at least one row"),
        ("layer,weight_bits,latency_us\nfc,8,1\n", "it has no column 'act_bits'"),
        ("weight_bits,act_bits,latency_us\n8,8,1\n", "it has no column 'layer', nor the columns"),
        ("layer,weight_bits,act_bits\nfc,8,8\n", "it has no cost: give a column such as latency_s"),
        (f"{HEAD},x\nfc,8,8,1,1\n", r"unknown column 'x' \(known:"),
        (
            "layer,weight_bits,act_bits,latency_usec\nfc,8,8,1\n",
            "unknown column 'latency_usec'; did you mean 'latency_us'",
        ),
        (f"{HEAD},latency_us\nfc,8,8,1,1\n", "2 columns are called 'latency_us'"),
        (f"{HEAD},latency_ms\nfc,8,8,1,1\n", "it has latency in 2 units; keep one of these"),
        (f"{HEAD}\nfc,8,8,1\nfc,4,8\n", "row 3 has 3 cells, the header 4"),
        (f"{HEAD}\nfc,8,8,1\nfc,4,8,-1\n", r"row 3 \(fc w4a8\): latency_us '-1' is not a number"),
        (f"{HEAD}\nfc,8,8,nan\n", r"row 2 \(fc w8a8\): latency_us 'nan' is not a number of 0 or"),
        (f"{HEAD}\nfc,8,8,1e999\n", r"row 2 \(fc w8a8\): latency_us '1e999' is not a number"),
        (f"{HEAD}\nfc,8,8,\n", r"row 2 \(fc w8a8\): latency_us '' is not a number of 0 or more"),
        (f"{HEAD}\n\nfc,eight,8,1\n", r"row 3 \(fc weighta8\): weight_bits 'eight' is not a whole"),
        (f"{HEAD}\nfc,0,8,1\n", r"row 2 \(fc w0a8\): weight: .*, not 0"),
        (f"{HEAD}\n,8,8,1\n", r"row 2 \(no layer w8a8\): it needs a layer, a shape or both"),
        (
            f"{HEAD}\nfc,8,8,1\n\nfc,8,8,2\n",
            r"row 4 \(fc w8a8\) is for the same layer and bits as row 2",
        ),
        (f"{HEAD},clock_hz\nfc,8,8,1,2e8\nfc,4,8,1,1e8\n", "clock_hz is not the same in all rows"),
        (f"{HEAD},clock_hz\nfc,8,8,1,0\n", "clock_hz: Input should be greater than 0, not 0"),
        (f'{HEAD}\n"fc,8,8,1\n', "not a CSV file"),
        (
            "layer;weight_bits;act_bits;latency_us\nfc;8;8;1,5\n",
            r"row 2 \(fc w8a8\): latency_us '1,5' is not .*; write a decimal point, not a comma",
        ),
        (f"{HEAD}\nfc,8,8,1_000\n", r"row 2 .*'1_000' is not a number"),
        (f"{HEAD}\nfc,8,8,1e300\n", r"row 2 .*'1e300' is not .* and at most 1e\+30"),
        (f"{HEAD}\nfc,8,8,1 us\n", r"row 2 .*'1 us' is not a number"),
        (f"{HEAD}\nfc,٨,8,1\n", r"row 2 .*weight_bits '٨' is not a whole number"),
        (f"{HEAD}\nfc,{'8' * 5000},8,1\n", "row 2 .*8…' is not a whole number$"),
        (f"{HEAD}\nfc,33,8,1\n", r"row 2 \(fc w33a8\): weight: .*, not 33"),
        ("layer,weight_bits,act_bits,latency\nfc,8,8,1\n", "unknown column 'latency'"),
        (
            f"{SHAPES}\nconv,3,16,3*3,8,8,1\n",
            r"row 2 \(conv w8a8\): kernel '3\*3': write it like 3x3",
        ),
        (f"{SHAPES}\ndense,3,16,3,8,8,1\n", r"row 2 \(dense w8a8\): shape.kind: Input should be"),
        (f"{SHAPES}\nconv,,16,3,8,8,1\n", r"row 2 \(conv w8a8\): shape.c_in: Field required"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_row(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(TargetError, match=f"^table .*board.csv: {message}"):
        load(written(tmp_path, text))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes("layer,größe\n".encode("latin-1"))
    for path, message in (
        (tmp_path / "none.csv", "cannot be read"), (tmp_path, "cannot be read"),
        (latin, "not UTF-8 text"),
    ):  # fmt: skip
        with pytest.raises(HaqError, match=f"^table {path}: {message}"):
            find(f"table:{path}")


def test_a_list_of_objects_is_the_same_table(tmp_path: Path) -> None:
    header, *lines = (line.split(",") for line in BOARD.strip().splitlines())
    rows = [dict(zip(header, [line[0], *map(int, line[1:])], strict=True)) for line in lines]
    path = tmp_path / "board.json"
    path.write_text(json.dumps(rows))
    spreadsheet, script = load(written(tmp_path, BOARD)), load(f"table:{path}")
    assert script.profile.table == spreadsheet.profile.table
    assert script.units == spreadsheet.units


def test_two_sides_of_a_shape_may_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    row = {"kind": "conv", "c_in": 3, "c_out": 8, "kernel": [3, 3], "in_size": [8, 8],
           "out_size": [8, 8], "weight_bits": 4, "act_bits": 8, "latency_us": 2.5,
           "flash_bytes": 108}  # fmt: skip
    path.write_text(json.dumps([row | {"layer": None, "batch": None}]))  # null: no such cell
    layer = Layer("a", "conv", 3, 8, (3, 3), in_size=(8, 8), out_size=(8, 8))
    assert load(f"table:{path}").cost(layer, Bits(4, 8)) == {"latency": 2.5, "flash": 108.0}


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "not JSON"), ("{}", "it needs a list of objects"), ("[]", "at least one"),
        ("[3]", "a list of objects"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8, "time": 3}]', "column 'time'"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8}]', "it has no cost"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8, "latency_us": 1},'
         '{"layer": "b", "weight_bits": 8, "latency_us": 1}]', "row 2 has no 'act_bits'"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8, "latency_us": -1}]', "row 1 .*-1"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8, "latency_us": null}]', "row 1 .*''"),
        ("[" * 100_000, "not JSON"),
        ('[{"layer": "a", "layer": "b", "weight_bits": 8}]', "an object has 'layer' 2 times"),
        ('[{"layer": ["a", "b"], "weight_bits": 8, "act_bits": 8, "latency_us": 1}]',
         r'row 1: layer \["a", "b"\]: give a text or a number'),
        ('[{"layer": "a", "weight_bits": true, "act_bits": 8, "latency_us": 1}]',
         "row 1: weight_bits true: give a text or a number"),
        ('[{"layer": "a", "weight_bits": 8, "act_bits": 8, "latency_us": NaN}]', "'nan' is not"),
        ('[{"layer": "a", "weight_bits": 8.5, "act_bits": 8, "latency_us": 1}]', "whole number"),
    ],
)  # fmt: skip
def test_json_that_is_no_table_is_refused_with_its_row(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "board.json"
    path.write_text(text)
    with pytest.raises(TargetError, match=sentence):
        load(f"table:{path}")
