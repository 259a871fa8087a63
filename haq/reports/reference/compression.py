"""Markdown of the studies of compression: the tables of docs/compression.md."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from haq.reports.reference.markdown import TITLES, markdown

Row = Mapping[str, Any]


def compression_tables(records: Mapping[str, Row]) -> str:
    """Return the tables of those of the studies that there are, by the names of their records."""
    parts = [write(records[name]) for name, write in STUDIES.items() if name in records]
    return "\n\n".join(parts)


def _distillation(record: Row) -> str:
    runs = [row for row in record["rows"] if row["images"]]
    widths = sorted({row["weight_bits"] for row in runs})
    usual = [row["images"] for row in runs if row["loss"] == "kd"]
    seeds = len({row["seed"] for row in runs})
    lead = (
        f"Losses of distillation in equal CPU time: {record['model']} on {TITLES[record['data']]}, "
        f"{record['act_bits']}-bit activations, one epoch of {usual[0]:,} images for `kd` and as "
        f"many as fit into its time for the others, {_seeds(seeds)}; accuracy on "
        f"{record['val_images']:,} validation images that the float network "
        f"({record['float_val_accuracy']:.2%}) has not seen, in percentage points over labels "
        "alone (`none`) and over `kd` over all widths, with Student's intervals of 95 % where "
        "there are several runs:"
    )
    head = ["loss", "images", *(f"W{bits}A{record['act_bits']}" for bits in widths)]
    head += ["over `none`", "over `kd`", "divergence over `kd`"]
    known = {
        (one["loss"], one["over"]): one
        for one in record["comparisons"]
        if one["weight_bits"] == widths
    }
    cells = []
    for loss in dict.fromkeys(row["loss"] for row in runs):
        own = [row for row in runs if row["loss"] == loss]
        cells.append(
            [
                f"`{loss}`", f"{own[0]['images']:,}",
                *(_mean([r["val_accuracy"] for r in own if r["weight_bits"] == bits])
                  for bits in widths),
                _difference(known.get((loss, "none")), "val_accuracy", 100),
                _difference(known.get((loss, "kd")), "val_accuracy", 100),
                _difference(known.get((loss, "kd")), "divergence", 1),
            ]
        )  # fmt: skip
    return markdown(lead, head, cells) + "\n\n" + _clear(known)


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.2%}" if values else "-"


def _difference(comparison: Row | None, name: str, scale: float) -> str:
    if comparison is None:
        return "-"
    value, half = comparison[name]["difference"], comparison[name]["half_interval"]
    digits = 2 if scale == 100 else 3
    text = f"{scale * value:+.{digits}f}"
    return text if half is None else f"{text} ± {scale * half:.{digits}f}"


def _clear(known: Mapping[tuple[str, str], Row]) -> str:
    """Return a sentence on which losses differ from kd, and one on the others."""
    if all(one["val_accuracy"]["half_interval"] is None for one in known.values()):
        return "With one run of each no difference is shown."
    more, less = _beyond(known, "val_accuracy")
    further, nearer = _beyond(known, "divergence")
    return (
        f"More accurate than `kd` beyond the interval: {more}; less accurate: {less}. Nearer to "
        f"the float network: {nearer}; further from it: {further}. Of the others no difference "
        "is shown."
    )


def _beyond(known: Mapping[tuple[str, str], Row], name: str) -> tuple[str, str]:
    """Return the losses that are above `kd` in a figure by more than the interval, and below."""
    over = {loss: one[name] for (loss, other), one in known.items() if other == "kd"}
    above, below = (
        [
            f"`{loss}`"
            for loss, one in over.items()
            if one["differs"] and one["difference"] * way > 0
        ]
        for way in (1, -1)
    )
    return ", ".join(above) or "none", ", ".join(below) or "none"


def _codebooks(record: Row) -> str:
    rows = [row for row in record["rows"] if row["what"] == "size"]
    lead = (
        f"Codebooks beside linear codes, weights alone: {record['model']} on "
        f"{TITLES[record['data']]}, {record['val_images']:,} validation images that the float "
        f"network ({record['float']['val_accuracy']:.2%}) has not seen. Before: statistics "
        f"corrected. After: an epoch of {record['train_images']:,} images, "
        f"{_seeds(record['seeds'])}. Every row keeps the bytes of linear codes of so many bits; "
        "divergences from the float network stand behind the accuracies:"
    )
    head = ["budget", "bits", "codes", "bytes", "before", "after"]
    cells = []
    for row in rows:
        after = {
            name: mean(one[name] for one in row["after"]) for name in ("val_accuracy", "divergence")
        }
        cells.append(
            [
                f"{row['budget_bits']} bits ({row['budget_bytes']:,.0f} B)", row["how"],
                row["codes"], f"{row['bytes']:,.0f}", _score(row["before"]), _score(after),
            ]
        )  # fmt: skip
    return markdown(lead, head, cells)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


def _score(score: Row) -> str:
    return f"{score['val_accuracy']:.2%} ({score['divergence']:.3f})"


def _pruning(record: Row) -> str:
    lead = (
        "Large networks with few weights left against small dense ones, trained from the start for "
        f"the same epochs, {record['bits']}-bit weights: validation accuracy, mean over the seeds, "
        "and the difference from the small network with Student's interval of 95 %:"
    )
    head = ["networks", "", "seeds", "weights left", "bytes of the file", "accuracy", "difference"]
    cells = []
    for subject in dict.fromkeys(row["subject"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["subject"] == subject]
        for kind in dict.fromkeys(row["network"] for row in own):
            some = [row for row in own if row["network"] == kind]
            gain = record["differences"].get(subject, {}).get(kind)
            cells.append(
                [
                    subject, kind, str(len(some)), f"{mean(row['weights'] for row in some):,.0f}",
                    f"{mean(row['bytes'] for row in some):,.0f}",
                    _mean([row["val_accuracy"] for row in some]),
                    _gain(gain),
                ]
            )  # fmt: skip
    return markdown(lead, head, cells)


def _gain(gain: Row | None) -> str:
    if gain is None:
        return "-"
    half = gain["half_interval"]
    text = f"{100 * gain['gain']:+.2f}"
    return text if half is None else f"{text} ± {100 * half:.2f}"


def _channels(record: Row) -> str:
    """Return the networks of both roles of the study of channels, each role beside its own base."""
    parts = []
    for role, what in _ROLES.items():
        rows = [row for row in record["rows"] if row["role"] == role]
        if not rows:
            continue
        images, epochs = rows[0]["tuned_on"]
        lead = (
            f"Channels and bits in one search beside bits alone: {record['what']}; {what}. All are "
            f"fine-tuned alike, {epochs} x {images:,} images; answers of the file in ONNX Runtime "
            f"to {rows[0]['images']:,} images, with the difference from bits alone in percentage "
            "points and its standard error:"
        )
        head = ["network", "size", "weights", "not fine-tuned", "accuracy", "difference"]
        timed = record.get("latency_us", {}) if role == "test" else {}
        nearer = all("divergence" in row for row in rows)
        head += ["divergence"] * nearer + ["latency"] * bool(timed)
        parts.append(markdown(lead, head, [_channel_cells(row, timed, nearer) for row in rows]))
    if "kernels_us" in record:
        lead = (
            "What fewer channels inside the blocks of one stage are worth in ONNX Runtime, one "
            "thread, measured in turns, all layers at 3 bits:"
        )
        cells = [[name, _span(one)] for name, one in record["kernels_us"].items()]
        parts.append(markdown(lead, ["network", "latency"], cells))
    return "\n\n".join(parts)


_ROLES = {
    "choose": "validation images that the float network has not seen",
    "test": "other float weights, test images",
}


def _channel_cells(row: Row, timed: Mapping[str, Row], nearer: bool) -> list[str]:
    difference = "-"
    if row.get("standard_error"):
        gain, error = 100 * row["against_bits_alone"], 100 * row["standard_error"]
        difference = f"{gain:+.2f} ± {error:.2f}"
    cells = [
        row["name"], f"{row['size_bytes']:,.0f}", f"{row['weights']:,}",
        f"{row['accuracy_untuned']:.2%}", f"{row['accuracy']:.2%}", difference,
    ]  # fmt: skip
    if nearer:
        cells.append(f"{row['divergence']:.4f}")
    if timed:
        one = timed.get(row["name"])
        cells.append(_span(one) if one else "-")
    return cells


def _span(one: Row) -> str:
    return f"{one['value']:.1f} ({one['low']:.1f} to {one['high']:.1f}) us"


def _advice(record: Row) -> str:
    """Return what can be done at each size, one row a way."""
    lead = (
        f"What to do at few kilobytes: {record['what']} (codebooks: float ones), the same float "
        f"weights, {record['seconds']:g} CPU seconds of training each; accuracy on 10,000 test "
        "images:"
    )
    sizes = sorted({row["kB"] for row in record["rows"]}, reverse=True)
    names = dict.fromkeys(row["name"] for row in record["rows"])
    known = {(row["name"], row["kB"]): row for row in record["rows"]}
    cells = [[name, *(_worth(known.get((name, size))) for size in sizes)] for name in names]
    return markdown(lead, ["way", *(f"{size:g} kB" for size in sizes)], cells)


def _worth(row: Row | None) -> str:
    if row is None:
        return "-"
    return "not possible" if "refused" in row else f"{row['accuracy']:.2%}"


STUDIES: Mapping[str, Callable[[Row], str]] = {
    "distillation": _distillation,
    "codebooks": _codebooks,
    "widths": _channels,
    "compression-table": _advice,
    "pruning": _pruning,
}
"""Name of a record to its tables, in the order of the page."""
