"""The published table of latencies is as its README says, and a target of a search."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import load
from haq.models import build
from haq.network.graph import inventory

FOLDER = Path(__file__).parents[2] / "results" / "latency"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
FILES = sorted(FOLDER.glob("*.parquet"))
PAIRS = {(32, 32), *((w, a) for w in range(2, 9) for a in (8, 4))}


def rows_of_readme(header):
    """Return the cells of one table of the README, without ticks."""
    body = README[README.index(header) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in body]


NETWORKS = {row[0]: (row[1], int(row[2]), int(row[3])) for row in rows_of_readme("| network |")}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def table(request):
    return parquet.read_table(request.param)


def test_every_file_is_named():
    assert FILES and {path.name for path in FILES} == {row[0] for row in rows_of_readme("| file |")}


def test_the_columns_are_those_of_the_readme(table):
    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "double": pa.float64(),
    }
    assert [(row[0], types[row[1]]) for row in rows_of_readme("| column |")] == [
        (field.name, field.type) for field in table.schema
    ]
    assert table.schema.metadata[b"license"] == b"CC0-1.0" and "CC0-1.0" in README
    assert all(column.null_count == 0 for column in table.columns)


def test_every_layer_is_there_at_every_width_once(table):
    layers = {}
    for row in table.to_pylist():
        pairs = layers.setdefault((row["network"], row["layer"]), [])
        pairs.append((row["weight_bits"], row["act_bits"]))
    assert all(len(pairs) == 15 and set(pairs) == PAIRS for pairs in layers.values())
    counts = {name: sum(network == name for network, _ in layers) for name in NETWORKS}
    assert counts == {name: count for name, (_, count, _) in NETWORKS.items()}
    assert all(rows == 15 * count for _, count, rows in NETWORKS.values())


def test_latencies_are_in_microseconds_and_sum_up_to_networks(table):
    sums = {}
    for row in table.to_pylist():
        assert 0 <= row["lowest_us"] <= row["latency_us"] <= row["highest_us"] < 1e6
        size = NETWORKS[row["network"]][0].replace(" ", "")
        assert row["macs"] > 0 and re.fullmatch(r"\d+x\d+", row["in_size"]) and "x" in size
        if row["weight_bits"] == 32:
            assert (row["kernel_used"], row["measured_as"]) == ("float32", "fp32")
            sums.setdefault(row["network"], [0.0, row["network_us"]])[0] += row["latency_us"]
    for summed, whole in sums.values():
        assert summed == pytest.approx(whole, rel=0.1)  # medians of parts and of the whole


def test_rows_of_one_kernel_share_a_measurement(table):
    shared = {}
    for row in table.to_pylist():
        key = row["network"], row["layer"], row["measured_as"]
        shared.setdefault(key, set()).add((row["latency_us"], row["kernel_used"]))
    assert all(len(values) == 1 for values in shared.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_target(path):
    target = load(f"table:{path}#resnet20")
    layers = inventory(build("resnet20"), torch.zeros(1, 3, 32, 32))
    rows = {
        (row["layer"], row["weight_bits"], row["act_bits"]): row["latency_us"]
        for row in parquet.read_table(path).to_pylist() if row["network"] == "resnet20"
    }  # fmt: skip
    assert target.units == {"latency": "us"} and target.profile.device != "not named"
    for layer in layers:
        assert PAIRS <= set(target.choices(layer))
        for weight, act in PAIRS:
            cost = target.cost(layer, Bits(weight, act))
            assert cost == {"latency": rows[layer.name, weight, act]}


def test_one_of_several_networks_must_be_named():
    with pytest.raises(TargetError, match=r"several networks \(.*resnet20.*\); write table:.*#"):
        load(f"table:{FILES[0]}")
    with pytest.raises(TargetError, match="unknown network 'resnet21'; did you mean 'resnet20'"):
        load(f"table:{FILES[0]}#resnet21")
    with pytest.raises(TargetError, match="write table:"):
        load(str(FILES[0]))


def of_one_layer(tmp_path, **columns):
    rows = {"layer": "fc", "weight_bits": 8, "act_bits": 8, "latency_us": 2.5} | columns
    path = tmp_path / "board.parquet"
    parquet.write_table(pa.Table.from_pylist([rows]), path)
    return f"table:{path}"


def test_parquet_of_others_is_read_as_csv_is(tmp_path):
    assert [
        row.cost["latency"].value for row in load(of_one_layer(tmp_path)).profile.table.rows
    ] == [2.5]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"latency_us": None}, "latency_us '' is not a number"),
        ({"latency_us": -1.0}, "is not a number of 0 or more"),
        ({"latency_us": float("nan")}, "is not a number of 0 or more"),
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"weight_bits": 7.5}, "weight_bits '7.5' is not a whole number"),
    ],
)
def test_parquet_that_cannot_be_used_is_refused(tmp_path, columns, why):
    with pytest.raises(TargetError, match=why):
        load(of_one_layer(tmp_path, **columns))


def test_what_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "board.parquet"
    path.write_text("layer,weight_bits\n")
    with pytest.raises(TargetError, match=r"board\.parquet: .*[Pp]arquet"):
        load(f"table:{path}")
    with pytest.raises(TargetError, match="cannot be read"):
        load(f"table:{tmp_path / 'none.parquet'}")
