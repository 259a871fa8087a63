"""How tables and cells are written in Markdown."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

TITLES = {"cifar10": "CIFAR-10 (JPEG)", "digits": "digits"}
"""Data sets as they are named beside numbers: these CIFAR-10 images were encoded anew as JPEG."""


def markdown(lead: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a sentence and a table below it; all columns but the first are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([lead, "", "| " + " | ".join(head) + " |", rule, *lines])


def spread(values: Sequence[float], form: str) -> str:
    """Return the mean of values, with the lowest and the highest of several."""
    shown = format(mean(values), form)
    if len(values) == 1:
        return shown
    return f"{shown} ({format(min(values), form)} to {format(max(values), form)})"


def asked(row: dict[str, Any]) -> str:
    """Return the target, the budget and the fixed bits of the activations of a search."""
    activations = "" if row["act_bits"] is None else f"a{row['act_bits']}"
    return " ".join(filter(None, [row["target"], row["budget"], activations]))


def width(record: dict[str, Any]) -> str:
    """Return the width multiplier of a network, where it is not 1."""
    return f" (width {record['width']:g})" if record.get("width", 1) != 1 else ""
