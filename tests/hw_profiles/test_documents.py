"""Profiles as documents: their fields in the README, what is refused, and names."""

import json
import math
from pathlib import Path

import pytest
from profile_parts import (
    FC,
    Content,
    content,
    profile,
    row,
)
from pydantic import BaseModel

from haq.allocation.policy import Bits
from haq.errors import HaqError, TargetError
from haq.hw_profiles import (
    TARGETS,
    document,
    find,
    load,
    table,
)
from haq.hw_profiles.answers import METHODS
from haq.hw_profiles.document import parse, read
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cost, Row, Shape
from haq.hw_profiles.schema import (
    STRENGTH,
    Batch,
    BitRule,
    Quantity,
)

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
