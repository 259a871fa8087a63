"""Costs from a spreadsheet or a script: CSV, JSON or parquet, a row a layer and pair of bits.

The README of this room has the columns. A table knows what stands in it and nothing more: no other
bits, shapes or batches. For rules, make a profile of it.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from haq.errors import HaqError, TargetError, look_up
from haq.hw_profiles.document import explain
from haq.hw_profiles.profile import FORMAT, Profile
from haq.hw_profiles.rows import Row, Table
from haq.hw_profiles.schema import ENERGIES, TIMES, Batch, Quantity, Runtime

_COSTS: Mapping[str, tuple[str, str]] = {
    **{f"latency_{unit.lower()}": ("latency", unit) for unit in (*TIMES, "cycles")},
    **{f"energy_{unit.lower()}": ("energy", unit) for unit in ENERGIES},
    "flash_bytes": ("flash", "bytes"),
}
"""Column to quantity and unit; a column is in lower case."""

MOST = 1e30
"""A cost is no larger, so that sums of costs are numbers too."""

MOST_SHOWN = 40
"""Characters of a cell in a sentence."""

MOST_DIGITS = 16
"""Of a whole number."""

_BITS = {"weight_bits": "weight", "act_bits": "act"}
_SIZES = ("c_in", "c_out", "groups")
_EXTENTS = ("kernel", "stride", "padding", "in_size", "out_size")
COLUMNS = ("layer", "kind", *_SIZES, *_EXTENTS, *_BITS, "batch", "clock_hz", *_COSTS)

NETWORK = "network"
"""Column of parquet: the network that a row is of. FILE#NETWORK asks for one of several."""

NOTES = (
    "calls", "macs", "weights", "lowest_us", "highest_us", "kernel_used", "measured_as", "exact_on",
    "network_us", "repeats", "threads", "cpu", "instructions", "runtime", "measured_on",
)  # fmt: skip
"""Columns of parquet that say where a row comes from, and decide no cost."""


PARQUET = ".parquet"


class _Line(NamedTuple):
    """One row: its number, in CSV as a spreadsheet shows it, and its cells by column."""

    number: int
    cells: Mapping[str, str]


def read(path: str | Path) -> Profile:
    """Return the profile of a CSV, JSON or parquet file; its costs are as good as its author says.

    Args:
        path: Of the file; one of parquet with several networks ends in ``#NETWORK``.

    Raises:
        TargetError: The file cannot be read, or a row of it cannot be used; the sentence names it.
    """
    file, mark, network = str(path).rpartition("#")
    if mark and Path(file).suffix == PARQUET:
        return _of_parquet(Path(file), network)
    path = Path(path)
    if path.suffix == PARQUET:
        return _of_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except OSError as error:
        raise TargetError(f"table {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TargetError(f"table {path}: not UTF-8 text; save it as that ({error})") from error
    try:
        return _profile(
            path.name, _objects(text) if path.suffix.lower() == ".json" else _lines(text)
        )
    except ValidationError as error:
        raise TargetError(f"table {path}: {explain(error)}") from error
    except ValueError as error:
        raise TargetError(f"table {path}: {error}") from error


def _of_parquet(path: Path, network: str = "") -> Profile:
    # pyarrow is needed for these files alone.
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        lines = _of_network(table.column_names, table.to_pylist(), network, path)
        devices = (
            {str(cpu) for cpu in table["cpu"].to_pylist()} if "cpu" in table.schema.names else ()
        )
        profile = _profile(path.name, lines)
    except OSError as error:
        why = error.strerror or str(error).splitlines()[0]
        raise TargetError(f"table {path}: cannot be read ({why})") from error
    except ValidationError as error:
        raise TargetError(f"table {path}: {explain(error)}") from error
    except (ValueError, pyarrow.ArrowException, HaqError) as error:
        raise TargetError(f"table {path}: {str(error).splitlines()[0]}") from error
    return (
        profile.model_copy(update={"device": next(iter(devices))}) if len(devices) == 1 else profile
    )


def _of_network(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]], network: str, path: Path
) -> list[_Line]:
    """Return the rows of one network; of all, where they do not say which they are of."""
    named = sorted({str(row[NETWORK]) for row in rows}) if NETWORK in columns else []
    if network:
        look_up(dict.fromkeys(named), "network", network)
    elif len(named) > 1:
        raise ValueError(
            f"it has several networks ({', '.join(named)}); "
            f"write table:{path}#{named[0]} for one of them"
        )
    kept = [name for name in columns if name not in (NETWORK, *NOTES)]
    _check_columns(kept)
    lines = [
        _Line(number, {name: _cell(name, row[name]) for name in kept})
        for number, row in enumerate(rows, 1)
        if not network or row[NETWORK] == network
    ]
    if not lines:
        raise ValueError("it needs at least one row")
    return lines


def _lines(text: str) -> list[_Line]:
    lines = text.splitlines()
    if lines and re.fullmatch("sep=[,;\t]", lines[0].strip(" \r"), re.IGNORECASE):
        lines[0] = ""  # tells a spreadsheet how to read the file
    header = next(filter(None, lines), "")
    separator = max(",;\t", key=header.count)
    try:
        content = list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"not a CSV file ({error})") from error
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(content, 1)]
    (_, columns), *filled = [(number, row) for number, row in rows if any(row)] or [(1, [])]
    if not filled:
        raise ValueError("it needs a header and, below it, at least one row")
    _check_columns(columns)
    for number, row in filled:
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} cells, the header {len(columns)}")
    return [_Line(number, dict(zip(columns, row, strict=True))) for number, row in filled]


def _objects(text: str) -> list[_Line]:
    """Return the rows of JSON: a list of objects, one a row, with the columns as their names."""
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it needs a list of objects, one for each row, and at least one")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _check_columns(columns)
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line = _Line(number, {name: _cell(name, row.get(name, "")) for name in columns})
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        for name in (*_BITS, *(name for name in columns if name in _COSTS)):
            if name not in row:
                raise ValueError(f"row {number} has no {name!r}")
        lines.append(line)
    return lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"an object has {name!r} {count} times")
    return dict(pairs)


def _cell(column: str, value: Any) -> str:
    if value is None:  # how JSON writes a cell that is empty
        return ""
    if isinstance(value, list) and column in _EXTENTS:
        return "x".join(map(str, value))
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{column} {json.dumps(value)}: give a text or a number")
    return str(value)


def _check_columns(columns: Sequence[str]) -> None:
    for name, count in Counter(columns).items():
        if count > 1:
            raise ValueError(f"{count} columns are called {name!r}")
        try:
            look_up(dict.fromkeys(COLUMNS), "column", name)
        except HaqError as error:
            raise ValueError(str(error)) from None
    for name in _BITS:
        if name not in columns:
            raise ValueError(f"it has no column {name!r}")
    if not {"layer", "kind"} & set(columns):
        raise ValueError("it has no column 'layer', nor the columns of a shape ('kind', 'c_in', …)")
    costs = Counter(_COSTS[name][0] for name in columns if name in _COSTS)
    if not costs:
        raise ValueError(f"it has no cost: give a column such as {', '.join(_COSTS)}")
    for quantity, count in costs.items():
        if count > 1:
            raise ValueError(f"it has {quantity} in {count} units; keep one of these columns")


def _profile(name: str, lines: Sequence[_Line]) -> Profile:
    rows = [_row(line) for line in lines]
    _check_once(lines, rows)
    batches = sorted({row.batch or 1 for row in rows})
    clocks = {_number(line, "clock_hz") for line in lines if line.cells.get("clock_hz")}
    if len(clocks) > 1:
        raise ValueError("clock_hz is not the same in all rows")
    units = [_COSTS[column] for column in lines[0].cells if column in _COSTS]
    return Profile(
        format=FORMAT,
        name=name,
        title="A table of costs",
        device="not named",
        runtime=Runtime(name="not named"),
        quantities={
            quantity: Quantity(unit=unit, provenance="user", source=f"the table {name}")
            for quantity, unit in units
        },
        clock_hz=clocks.pop() if clocks else None,
        batch=Batch(reference=batches[0], rule="table" if len(batches) > 1 else "none"),
        table=Table(rows=tuple(rows)),
    )


def _row(line: _Line) -> Row:
    cells = line.cells
    content: dict[str, Any] = {field: _whole(line, column) for column, field in _BITS.items()}
    content["cost"] = {_COSTS[c][0]: _number(line, c) for c in cells if c in _COSTS}
    if cells.get("layer"):
        content["layer"] = cells["layer"]
    if cells.get("kind"):
        content["shape"] = _shape(line)
    if cells.get("batch"):
        content["batch"] = _whole(line, "batch")
    try:
        return Row.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{_named(line)}: {explain(error)}") from None


def _shape(line: _Line) -> dict[str, Any]:
    shape: dict[str, Any] = {"kind": line.cells["kind"]}
    shape |= {name: _whole(line, name) for name in _SIZES if line.cells.get(name)}
    for name in _EXTENTS:
        if line.cells.get(name):
            sides = line.cells[name].split("x")
            sides = sides * 2 if len(sides) == 1 else sides
            if len(sides) > 3 or not all(side.strip().isdecimal() for side in sides):
                raise ValueError(f"{_named(line)}: {name} {line.cells[name]!r}: write it like 3x3")
            shape[name] = tuple(map(int, sides))
    return shape


def _whole(line: _Line, column: str) -> int:
    text = line.cells[column]
    if not (text.isascii() and text.isdecimal() and len(text) < MOST_DIGITS):
        raise ValueError(f"{_named(line)}: {column} {_short(text)!r} is not a whole number")
    return int(text)


def _number(line: _Line, column: str) -> float:
    text = line.cells[column]
    try:
        number = math.nan if "_" in text else float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST:
        hint = "; write a decimal point, not a comma" if re.fullmatch(r"\d+,\d+", text) else ""
        most = f" and at most {MOST:g}" if number > MOST else ""
        raise ValueError(
            f"{_named(line)}: {column} {_short(text)!r} is not a number of 0 or more{most}{hint}"
        )
    return number


def _named(line: _Line) -> str:
    cells = line.cells
    what = cells.get("layer") or cells.get("kind") or "no layer"
    weight, act = (_short(cells[column]) for column in _BITS)
    return f"row {line.number} ({what} w{weight}a{act})"


def _short(text: str) -> str:
    """Return a cell as it is shown in a sentence."""
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"


def _check_once(lines: Sequence[_Line], rows: Sequence[Row]) -> None:
    seen: dict[object, int] = {}
    for line, row in zip(lines, rows, strict=True):
        first = seen.setdefault((row.key, row.weight, row.act, row.batch or 1), line.number)
        if first != line.number:
            raise ValueError(f"{_named(line)} is for the same layer and bits as row {first}")
