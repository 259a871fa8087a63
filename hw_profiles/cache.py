"""Whole numbers that took long to compute, kept in files for the next process.

A file is found by a hash of all its numbers depend on, so nothing in it is ever out of date; a
damaged one counts as absent. Where the folder cannot be written, nothing is kept.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from haq.files import write_text

Rows = list[list[int]]


def folder() -> Path:
    """Return the folder of the cache: ``haq`` in XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a path that is not absolute.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "haq"


def computed_once(key: list[Any], shape: tuple[int, int], compute: Callable[[], Rows]) -> Rows:
    """Return the rows computed for ``key``, now or by an earlier process.

    Args:
        key: All that the rows depend on, the version of the algorithm too; its ``repr`` counts.
        shape: Number of rows, and of columns.
        compute: Called if they are not there yet.
    """
    name = repr(key)
    path = folder() / f"{key[0]}-{_hash(name)}.json"
    rows = _read(path, name, shape)
    if rows is None:
        rows = compute()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"key": name, "rows": rows, "sha256": _hash(repr([name, rows]))}
            write_text(path, json.dumps(content, separators=(",", ":")))
    return rows


def _read(path: Path, name: str, shape: tuple[int, int]) -> Rows | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows: Rows = content["rows"]
        whole = content["sha256"] == _hash(repr([name, rows])) and content["key"] == name
        return rows if whole and (len(rows), len(rows[0])) == shape else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
