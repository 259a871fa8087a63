"""Markdown of what packets between networks take: the tables of docs/updates.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from haq.reports.reference.markdown import markdown

Row = Mapping[str, Any]

Cell = Callable[[Row], str]


Writer = Callable[[Sequence[Row]], str]
"""From the rows of a section to its table."""


def _table(lead: str, columns: Sequence[tuple[str, Cell]]) -> Writer:
    """Return what writes a table with a line for each row of a section.

    Args:
        lead: What stands before it.
        columns: Head and cell of each.
    """

    def write(rows: Sequence[Row]) -> str:
        head = [name for name, _ in columns]
        return markdown(lead, head, [[cell(row) for _, cell in columns] for row in rows])

    return write


def updates_tables(record: Mapping[str, Any]) -> str:
    """Return the tables of results/reference/updates.json."""
    sections = {name: section["rows"] for name, section in record["sections"].items()}
    parts = [write(sections[name]) for name, write in _WRITERS.items() if name in sections]
    return "\n\n".join(parts)


def _text(key: str) -> Cell:
    return lambda row: str(row[key])


def _bytes(key: str) -> Cell:
    return lambda row: f"{row[key]:,}"


def _percent(key: str, digits: int = 2) -> Cell:
    return lambda row: f"{row[key]:.{digits}%}"


def _ratio(key: str, digits: int = 3) -> Cell:
    return lambda row: f"{row[key]:.{digits}f}"


def _said(key: str) -> Cell:
    return lambda row: "yes" if row[key] else "no"


def _update(row: Row) -> str:
    return f"{row['update']} at {row['bits']} bits"


def _pruned(row: Row) -> str:
    return f"{row['pruned']:.0%}, {row['bits']} bits"


def _difference(row: Row) -> int:
    return int(row.get("from the base", row.get("from the float base")))


def _saved(row: Row) -> str:
    return f"{1 - _difference(row) / row['order-0 entropy']:.1%}"


_SINGLE = _table(
    "ResNet-20 (268,336 weights), bytes. The order-0 entropy is that of the codes, layer by layer; "
    "beside them the packet holds scales, biases, header and tables:",
    [
        ("codes", _text("network")), ("file", _bytes("file")), ("packet", _bytes("packet")),
        ("entropy", _bytes("order-0 entropy of codes")),
        ("packet without other tensors",
         lambda row: f"{row['packet without other tensors, of the entropy']:.1%} of it"),
        ("bits a weight", _ratio("bits a weight", 2)),
    ],
)  # fmt: skip

_SEQUENTIAL = _table(
    "The same network after 20 epochs of fine-tuning, exactly, from the one before: bytes of "
    "packets, and what the difference saves of the packet without a base and of the order-0 "
    "entropy of its codes:",
    [
        ("codes", _text("codes")), ("without a base", _bytes("direct")),
        ("difference", lambda row: f"{_difference(row):,}"),
        ("saved", _percent("saved of direct", 1)),
        ("saved of the entropy", _saved),
    ],
)  # fmt: skip

_ROUNDED = _table(
    "The float network with `--bits`, alone and from the float network before it: bytes, and "
    "accuracy on 2,000 test images of CIFAR-10 (JPEG):",
    [
        ("bits", _text("bits")), ("alone", _bytes("direct")),
        ("accuracy", _percent("accuracy direct")), ("difference", _bytes("difference")),
        ("accuracy", _percent("accuracy")),
    ],
)  # fmt: skip

_CHAIN = _table(
    "Five updates in a row, each from what the one before it gave; the error is the root of the "
    "mean squared one, in steps of 6 bits. The receiver of all five holds, bit for bit, what the "
    "sender predicts from, and the error does not grow: nothing adds up. Accuracies at 4 bits vary "
    "as they do for packets alone:",
    [
        ("update", _update), ("alone", _bytes("direct")), ("difference", _bytes("difference")),
        ("as the sender has it", _said("as the sender has it")),
        ("error alone", _ratio("error direct")), ("error", _ratio("error")),
        ("accuracy alone", _percent("accuracy direct")), ("accuracy", _percent("accuracy")),
    ],
)  # fmt: skip

_NOISE = _table(
    "The last of these networks, rounded to the same grid of 4 bits alone, each weight at random "
    "to one of the steps near it: what accuracy varies by where no difference is involved:",
    [("draw", _text("seed")), ("error", _ratio("error")), ("accuracy", _percent("accuracy"))],
)

_EXACT_CHAIN = _table(
    "The same five updates as exact codes of 4 bits, a step a tensor:",
    [
        ("update", _update), ("alone", _bytes("direct")), ("difference", _bytes("difference")),
        ("equal to the one sent", _said("equal to the one sent")),
    ],
)  # fmt: skip

_BOTH_PRUNED = _table(
    "Exact codes where the predecessor and the new network are pruned alike:",
    [
        ("pruned", _pruned), ("alone", _bytes("direct")), ("difference", _bytes("difference")),
        ("of alone", _ratio("of direct")),
    ],
)  # fmt: skip

_SPARSE_FILES = _table(
    "The same as checkpoints that have their codes in the cheapest format for each layer:",
    [
        ("pruned", _pruned),
        ("formats", lambda row: ", ".join(f"{n} {name}" for name, n in row["formats"].items())),
        ("file", _bytes("file")), ("packet", _bytes("direct")),
        ("difference", _bytes("difference")),
    ],
)  # fmt: skip

_FAMILY = _table(
    "Five short fine-tunings of one network (images, half of the classes, vehicles, rotations, "
    "noise) in one file:",
    [
        ("bits", lambda row: f"{row['bits']}, {row['kind']}"),
        ("sum of single packets", _bytes("sum of direct")), ("family", _bytes("family")),
        ("of the sum", _ratio("of direct")),
    ],
)  # fmt: skip

_PUBLISHED = _table(
    "What others report of related tasks, on other networks:",
    [(name, _text(name)) for name in ("method", "task", "reported", "source")],
)


def _damaged(rows: Sequence[Row]) -> str:
    lead = (
        "The same from a predecessor that was rounded, pruned or wiped out: bytes grow towards "
        "those without a base, and accuracy is the target's:"
    )
    head = ["predecessor", "its accuracy", "6 bits", "of alone", "accuracy", "4 bits", "of alone",
            "accuracy"]  # fmt: skip
    known = {(row["bits"], row["predecessor"]): row for row in rows}
    cells = []
    for name in dict.fromkeys(row["predecessor"] for row in rows):
        line = [name, f"{known[6, name]['its accuracy']:.1%}"]
        for bits in (6, 4):
            row = known[bits, name]
            line += [f"{row['bytes']:,}", f"{row['of direct']:.3f}", f"{row['accuracy']:.2%}"]
        cells.append(line)
    return markdown(lead, head, cells)


def _intervals(rows: Sequence[Row]) -> str:
    lead = "Exact codes from ever older predecessors, short fine-tunings apart:"
    head = ["bits", *(f"{age} apart" for age in range(1, 6))]
    cells = [
        [str(bits), *(f"{row['bytes']:,}" for row in rows if row["bits"] == bits)]
        for bits in dict.fromkeys(row["bits"] for row in rows)
    ]
    return markdown(lead, head, cells)


def _turned(lead: str, key: str) -> Writer:
    """Return what writes a table with a column for each row of a section."""

    def cell(name: str, row: Row) -> str:
        if name not in row:
            return "-"
        return f"{row[name]:.2%}" if "accuracy" in name else f"{row[name]:,}"

    def write(rows: Sequence[Row]) -> str:
        names = list(dict.fromkeys(name for row in rows for name in row if name != key))
        head = ["", *(row[key] for row in rows)]
        return markdown(lead, head, [[name, *(cell(name, row) for row in rows)] for name in names])

    return write


_WRITERS: Mapping[str, Writer] = {
    "single": _SINGLE, "sequential": _SEQUENTIAL,
    "rounded": lambda rows: _ROUNDED([row for row in rows if "bits" in row]),
    "damaged": _damaged, "both pruned": _BOTH_PRUNED, "sparse files": _SPARSE_FILES,
    "chain": _CHAIN, "noise": _NOISE, "exact chain": _EXACT_CHAIN, "intervals": _intervals,
    "family": _FAMILY,
    "compared": _turned(
        "The same files by other tools, bytes; the old file is known where it says so:", "pair"
    ),
    "one bit": _turned(
        "BitDelta's rule (the sign of each weight's difference, times their mean size in the "
        "tensor), without its distillation, beside differences of few bits; bytes of the weights "
        "alone:", "pair"
    ),
    "speed": _turned(
        "CPU seconds of one thread of a busy machine, and megabytes of weights (as float32) a "
        "second; order-0 coders have all codes as one string:", "network"
    ),
    "published": _PUBLISHED,
}  # fmt: skip
