"""Print what was packed, and what changed between two networks."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from haq.cli.terminal.console import console
from haq.formats.update.difference import Change, Difference
from haq.formats.update.pack import Packed

WORDS = {
    "s": "same", "d": "direct", "v": "difference", "q": "rounded",
    "l": "rounded diff.",
}  # fmt: skip
"""Mode of a unit, in small letters, to what is printed for it."""


def print_packed(packed: Packed) -> None:
    """Print what a packet holds and how large it is."""
    screen = console()
    share = packed.size / packed.files
    screen.print(
        f"{packed.path}: {packed.size / 1000:.1f} kB, {share:.1%} of {packed.files / 1000:.1f} kB"
    )
    for member in packed.manifest.members:
        size = sum(section.size for section in member.sections)
        base = f", from {member.base[:12]}" if member.base else ""
        known = member.modes.lower()
        counts = {word: known.count(mode) for mode, word in WORDS.items() if mode in known}
        modes = ", ".join(f"{count} {word}" for word, count in counts.items())
        screen.print(
            f"  {member.name}: network {member.id[:12]}{base}, {size / 1000:.1f} kB ({modes})"
        )
    if packed.roots:
        screen.print(_roots(packed))


def _roots(packed: Packed) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("root", "packet, kB", "relative entropy, nats", "shared values"):
        table.add_column(column, justify="left" if column == "root" else "right")
    for root in sorted(packed.roots, key=lambda one: one.size):
        chosen = " (chosen)" if root.name == packed.root else ""
        cells = f"{root.size / 1000:.1f}", f"{root.divergence:.4f}", f"{root.shared:,}"
        table.add_row(root.name + chosen, *cells)
    return table


def print_difference(difference: Difference) -> None:
    """Print what changed, a line a layer or tensor, and what sending it takes."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "layer or tensor", "bits", "changed", "energy", "saved", "sent as", "bytes", "alone",
    ):  # fmt: skip
        left = column in ("layer or tensor", "sent as")
        named = column == "layer or tensor"  # long names are folded, figures never
        table.add_column(
            column, justify="left" if left else "right", no_wrap=not named, overflow="fold",
            min_width=None if named else len(column),
        )  # fmt: skip
    for change in difference.changes:
        cells = _cells(change)
        for figures, cell in zip(table.columns[1:], cells[1:], strict=True):
            figures.min_width = max(figures.min_width or 0, len(cell))
        table.add_row(*cells)
    screen = console()
    screen.print(table, crop=False)
    screen.print(
        "energy: squared difference over squared new values; saved: bits a value that the "
        "difference saves (in brackets as predicted, 1/2 log2(1 / energy))"
    )
    saved = 1 - difference.size / difference.direct
    screen.print(
        f"from {difference.old[:12]} to {difference.new[:12]}: {difference.size / 1000:.1f} kB, "
        f"{saved:.1%} less than the {difference.direct / 1000:.1f} kB of the packet without a base "
        f"(the file has {difference.file / 1000:.1f} kB)"
    )


def _cells(change: Change) -> list[str]:
    old, new = change.old_bits, change.new_bits
    bits = "" if new is None else str(new) if old in (None, new) else f"{old} to {new}"
    energy = "" if change.energy is None else f"{change.energy:.4f}"
    predicted = "" if change.gain is None else f" ({change.gain:.2f})"
    return [
        change.name, bits, f"{change.changed:.0%}", energy, f"{change.measured:.2f}{predicted}",
        WORDS[change.mode.lower()], f"{change.sent:,.0f}", f"{change.direct:,.0f}",
    ]  # fmt: skip


def as_fields(difference: Difference) -> dict[str, Any]:
    """Return a difference as JSON has it."""
    fields = asdict(difference)
    fields["changes"] = [
        {**change._asdict(), "mode": WORDS[change.mode.lower()]} for change in difference.changes
    ]
    return fields
