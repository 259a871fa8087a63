"""The first section of a report: the figures that count."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import amount
from haq.reports.page import Card, Cell, Section, Table, number
from haq.reports.record import RunRecord, kind_of
from haq.reports.side_by_side import Three, side_by_side


def summary_section(record: RunRecord) -> Section:
    """Return the first section: the figures that count, and the run beside 8 bits and float."""
    summary, cards = record.summary, []
    final = summary.get("final_test_accuracy")
    if final is not None:
        drop = 100 * (final - summary["float_test_accuracy"])
        cards.append(
            Card("Test accuracy", f"{final:.2%}",
                 f"{drop:+.2f} points from float ({summary['float_test_accuracy']:.2%})")
        )  # fmt: skip
    else:
        top = summary["episode_val_accuracy"]
        share = kind_of(record) != "score"
        cards.append(
            Card(f"Best {kind_of(record)} so far", f"{top:.2%}" if share else amount(top),
                 f"float {_accuracy(summary['float_val_accuracy'], share)}")
        )  # fmt: skip
    for budget in summary["budgets"]:
        share = budget["achieved"] / budget["limit"]
        cards.append(
            Card(f"Budget {budget['asked']}", amount(budget["achieved"], budget["unit"]),
                 f"{share:.1%} of the limit, {amount(budget['limit'], budget['unit'])}", share)
        )  # fmt: skip
    costs = side_by_side(record)
    size, full = costs["size"][2], costs["size"][0]
    if size and full:
        note = f"{full / size:.1f} times smaller than float"
        cards.append(Card("Size", amount(size, "bytes"), note))
    for quantity in ("latency", "energy"):
        if quantity in costs and costs[quantity][1] and costs[quantity][2]:
            eight, now = costs[quantity][1], costs[quantity][2]
            assert eight is not None and now is not None
            cards.append(
                Card(quantity.capitalize(), amount(now, summary["units"][quantity]),
                     f"{now / eight:.1%} of 8 bits everywhere")
            )  # fmt: skip
    cards += _measured(summary.get("measured_latency", {})) + _in_onnx_runtime(record.onnx)
    notes = []
    if summary["state"] != "finished":
        notes.append(
            f"The run is {summary['state']}: these are the figures of the best policy so far; the "
            "test images are looked at when it is finished."
        )
    if record.uniform:
        notes.append("8 bits everywhere: calibrated as this run, not fine-tuned.")
    if "plan" in record.missing:
        notes.append(record.missing["plan"])
    return Section("summary", "Summary", _headline(record), cards, [_comparison(record, costs)],
                   notes=notes)  # fmt: skip


def _measured(latency: Mapping[str, Any]) -> list[Card]:
    if "value" not in latency:
        return []
    unit = latency["unit"]
    note = (
        f"{amount(latency['low'], unit)} to {amount(latency['high'], unit)}; predicted "
        f"{amount(latency['predicted'], unit)}, budget {amount(latency['budget'], unit)}"
    )
    share = latency["value"] / latency["budget"]
    return [Card("Latency by the clock", amount(latency["value"], unit), note, share)]


def _in_onnx_runtime(onnx: Mapping[str, Any]) -> list[Card]:
    cards = []
    if "test_images" in onnx:
        note = (
            f"{onnx['top1_agreement']:.2%} of {onnx['compared_images']} answers are those of "
            f"PyTorch ({onnx['torch_test_accuracy']:.2%})"
        )
        accuracy = f"{onnx['onnxruntime_test_accuracy']:.2%}"
        cards.append(Card("Test accuracy in ONNX Runtime", accuracy, note))
    if onnx:
        times = {name: onnx["latency"][name]["value"] for name in _COMPARED}
        own = times.pop("this")
        note = ", ".join(f"{own / us:.2f} of {_COMPARED[name]}" for name, us in times.items())
        unit = onnx["latency"]["unit"]
        cards.append(Card("Latency in ONNX Runtime", amount(own, unit), f"{note}; one thread"))
    return cards


_COMPARED = {"this": "", "fp32": "the float network", "quantize_static": "quantize_static, 8 bits"}


def _headline(record: RunRecord) -> str:
    summary = record.summary
    widths = [layer["weight_bits"] for layer in summary["layers"]]
    acts = [layer["act_bits"] for layer in summary["layers"]]
    return (
        f"{len(widths)} layers; weights with {_span(widths)} bits, activations with {_span(acts)}; "
        f"found in episode {summary['best_episode']} of {summary['episodes']}, after "
        f"{summary['evaluations']} evaluations of {summary['seconds_per_evaluation']:.2g} s."
    )


def _span(widths: Sequence[int]) -> str:
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def _accuracy(value: float | None, share: bool = True) -> str:
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash
    return f"{value:.2%}" if share else amount(value)


def _comparison(record: RunRecord, costs: Mapping[str, Three]) -> Table:
    summary, share = record.summary, kind_of(record) != "score"
    rows: list[list[Cell]] = []
    for label, mine, name in (
        ("validation", "final_val_accuracy", "val_accuracy"),
        ("test", "final_test_accuracy", "test_accuracy"),
    ):
        now = summary.get(mine)
        if label == "validation" and now is None:
            now = summary["episode_val_accuracy"]
        accuracies = [summary.get(f"float_{name}"), record.uniform.get(name), now]
        if any(value is not None for value in accuracies):
            kind = f"{label} accuracy" if share else f"score ({label})"
            rows.append([Cell(kind), *(number(v, _accuracy(v, share)) for v in accuracies)])
    for quantity, three in costs.items():
        unit = summary["units"][quantity]
        rows.append([Cell(quantity), *(number(v, amount(v, unit)) for v in three)])
    columns = ("", "float", "8 bits everywhere", "this run")
    return Table("Side by side", columns, rows, "comparison", sortable=False)
