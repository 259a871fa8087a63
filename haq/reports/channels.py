"""The section of a report on the channels that layers keep, and why others were removed."""

from collections.abc import Mapping
from typing import Any

from haq.reports.page import Cell, Section, Table, number
from haq.reports.reasons import why_channels
from haq.reports.record import RunRecord

LEAD = (
    "The share of each layer's output channels that stays was chosen together with the bits; the "
    "other channels are removed from the network and its files. Layers whose results are added "
    "share their channels, and keep the same share of them."
)


def channels_section(record: RunRecord) -> list[Section]:
    """Return the section on channels; none for a run that did not choose them."""
    layers = record.summary["layers"]
    if not record.job.widths or not all("channels" in layer for layer in layers):
        return []
    reasons = why_channels(record)
    columns = ["layer", "share", "channels", "of", *["why"] * bool(reasons)]
    rows = [_row(layer, reasons) for layer in layers]
    lost = [layer for layer in layers if layer["channels"] < layer["float_channels"]]
    before = sum(layer["float_channels"] for layer in layers)
    now = sum(layer["channels"] for layer in layers)
    note = (
        f"{len(lost)} of {len(layers)} layers have fewer channels than in the float network: "
        f"{now} of {before} are left."
    )
    table = Table("Channels, in order of execution", columns, rows, "channel-table")
    return [Section("channels", "Channels", LEAD, notes=[note], tables=[table])]


def _row(layer: Mapping[str, Any], reasons: Mapping[str, str]) -> list[Cell]:
    share = layer["channels"] / layer["float_channels"]
    cells = [
        Cell(layer["name"]), number(share, f"{share:.0%}"),
        number(layer["channels"], str(layer["channels"])),
        number(layer["float_channels"], str(layer["float_channels"])),
    ]  # fmt: skip
    return cells + ([Cell(reasons.get(layer["name"], ""))] if reasons else [])
