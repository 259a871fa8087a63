"""Markdown of what packets between networks take: the tables of docs/updates.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.reference.markdown import markdown

Row = Mapping[str, Any]


def updates_tables(record: Mapping[str, Any]) -> str:
    """Return the tables of results/reference/updates.json."""
    sections = {name: section["rows"] for name, section in record["sections"].items()}
    parts = [write(sections[name]) for name, write in _WRITERS.items() if name in sections]
    return "\n\n".join(parts)


def _bytes(row: Row, *keys: str) -> list[str]:
    return [f"{row[key]:,}" for key in keys]


def _single(rows: Sequence[Row]) -> str:
    lead = (
        "ResNet-20 (268,336 weights), bytes. The order-0 entropy is that of the codes, layer by "
        "layer; beside them the packet holds scales, biases, header and tables:"
    )
    head = ["codes", "file", "packet", "entropy", "packet without other tensors", "bits a weight"]
    share = "packet without other tensors, of the entropy"
    cells = [
        [
            row["network"], *_bytes(row, "file", "packet", "order-0 entropy of codes"),
            f"{row[share]:.1%} of it", f"{row['bits a weight']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(lead, head, cells)


def _sequential(rows: Sequence[Row]) -> str:
    lead = (
        "The same network after 20 epochs of fine-tuning, exactly, from the one before: bytes of "
        "packets, and what the difference saves of the packet without a base and of the order-0 "
        "entropy of its codes:"
    )
    head = ["codes", "without a base", "difference", "saved", "saved of the entropy"]
    cells = []
    for row in rows:
        apart = row.get("from the base", row.get("from the float base"))
        saved = 1 - apart / row["order-0 entropy"]
        whole = f"{row['direct']:,}"
        cells.append(
            [row["codes"], whole, f"{apart:,}", f"{row['saved of direct']:.1%}", f"{saved:.1%}"]
        )
    return markdown(lead, head, cells)


def _rounded(rows: Sequence[Row]) -> str:
    lead = (
        "The float network with `--bits`, alone and from the float network before it: bytes, and "
        "accuracy on 2,000 test images of CIFAR-10 (JPEG):"
    )
    head = ["bits", "alone", "accuracy", "difference", "accuracy"]
    cells = [
        [
            str(row["bits"]), f"{row['direct']:,}", f"{row['accuracy direct']:.2%}",
            f"{row['difference']:,}", f"{row['accuracy']:.2%}",
        ]
        for row in rows if "bits" in row
    ]  # fmt: skip
    return markdown(lead, head, cells)


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


def _chain(rows: Sequence[Row]) -> str:
    lead = (
        "Five updates in a row, each from what the one before it gave; the error is the root of "
        "the mean squared one, in steps of 6 bits:"
    )
    head = ["update", "alone", "difference", "error alone", "error", "accuracy alone", "accuracy"]
    cells = [
        [
            f"{row['update']} at {row['bits']} bits", *_bytes(row, "direct", "difference"),
            f"{row['error direct']:.3f}", f"{row['error']:.3f}", f"{row['accuracy direct']:.2%}",
            f"{row['accuracy']:.2%}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(lead, head, cells)


def _intervals(rows: Sequence[Row]) -> str:
    lead = "Exact codes from ever older predecessors, short fine-tunings apart:"
    head = ["bits", *(f"{age} apart" for age in range(1, 6))]
    cells = [
        [str(bits), *(f"{row['bytes']:,}" for row in rows if row["bits"] == bits)]
        for bits in dict.fromkeys(row["bits"] for row in rows)
    ]
    return markdown(lead, head, cells)


def _both_pruned(rows: Sequence[Row]) -> str:
    lead = "Exact codes where the predecessor and the new network are pruned alike:"
    head = ["pruned", "alone", "difference", "of alone"]
    cells = [
        [
            f"{row['pruned']:.0%}, {row['bits']} bits", *_bytes(row, "direct", "difference"),
            f"{row['of direct']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(lead, head, cells)


def _family(rows: Sequence[Row]) -> str:
    lead = (
        "Five short fine-tunings of one network (images, half of the classes, vehicles, rotations, "
        "noise) in one file:"
    )
    head = ["bits", "sum of single packets", "family", "of the sum"]
    cells = [
        [
            f"{row['bits']}, {row['kind']}", *_bytes(row, "sum of direct", "family"),
            f"{row['of direct']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(lead, head, cells)


def _compared(rows: Sequence[Row]) -> str:
    lead = "The same files by other tools, bytes; the old file is known where it says so:"
    names = list(dict.fromkeys(key for row in rows for key in row if key != "pair"))
    head = ["", *(row["pair"] for row in rows)]
    cells = [[name, *(f"{row[name]:,}" if name in row else "-" for row in rows)] for name in names]
    return markdown(lead, head, cells)


def _speed(rows: Sequence[Row]) -> str:
    lead = (
        "CPU seconds of one thread of a busy machine, and megabytes of weights (as float32) a "
        "second; order-0 coders have all codes as one string:"
    )
    names = list(dict.fromkeys(key for row in rows for key in row if key != "network"))
    head = ["", *(row["network"] for row in rows)]
    cells = [[name, *(f"{row[name]:,}" if name in row else "-" for row in rows)] for name in names]
    return markdown(lead, head, cells)


def _published(rows: Sequence[Row]) -> str:
    lead = "What others report of related tasks, on other networks:"
    head = ["method", "task", "reported", "source"]
    cells = [[row["method"], row["task"], row["reported"], row["source"]] for row in rows]
    return markdown(lead, head, cells)


_WRITERS = {
    "single": _single, "sequential": _sequential, "rounded": _rounded, "damaged": _damaged,
    "both pruned": _both_pruned, "chain": _chain, "intervals": _intervals, "family": _family,
    "compared": _compared, "speed": _speed, "published": _published,
}  # fmt: skip
