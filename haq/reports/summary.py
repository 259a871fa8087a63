"""The first section of a report: the figures that count."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.reports.charts.theme import amount, counted, points, spoken
from haq.reports.page import Card, Cell, Section, Table, number
from haq.reports.record import RunRecord, kind_of
from haq.reports.side_by_side import Three, side_by_side
from haq.reports.uniform import uniform_sentence, versus_uniform


def summary_section(record: RunRecord) -> Section:
    """Return the first section: the figures that count, and the run beside 8 bits and float."""
    summary, costs = record.summary, side_by_side(record)
    cards = [
        _accuracy_card(record),
        *_uniform_card(summary),
        *(_budget_card(budget) for budget in summary["budgets"]),
        *_cost_cards(summary["units"], costs),
        *_measured(summary.get("measured_latency", {})),
        *_in_onnx_runtime(record.onnx),
    ]
    return Section("summary", "Summary", _headline(record), cards, [_comparison(record, costs)],
                   notes=_notes(record))  # fmt: skip


def _accuracy_card(record: RunRecord) -> Card:
    summary, final = record.summary, record.summary.get("final_test_accuracy")
    if final is None:
        top, share = summary["episode_val_accuracy"], kind_of(record) != "score"
        return Card(f"Best {kind_of(record)} so far", _accuracy(top, share),
                    f"float {_accuracy(summary['float_val_accuracy'], share)}")  # fmt: skip
    drop = 100 * (final - summary["float_test_accuracy"])
    note = f"{points(drop)} points from float ({summary['float_test_accuracy']:.2%})"
    return Card("Test accuracy", f"{final:.2%}", note)


def _uniform_card(summary: Mapping[str, Any]) -> list[Card]:
    versus = versus_uniform(summary)
    if versus is None or not all(0 <= share <= 1 for share in (versus.own, versus.uniform)):
        return []
    gain = points(100 * (versus.own - versus.uniform))
    shown = "the same policy" if versus.same else f"{gain} points"
    when = ", after an epoch each" if versus.tuned else ""
    note = f"validation: {versus.own:.2%}, best uniform bits {versus.uniform:.2%}{when}"
    return [Card("Against uniform bits", shown, note)]


def _budget_card(budget: Mapping[str, Any]) -> Card:
    share = budget["achieved"] / budget["limit"]
    note = f"{share:.1%} of the limit, {amount(budget['limit'], budget['unit'])}"
    achieved = amount(budget["achieved"], budget["unit"])
    return Card(f"Budget {budget['asked']}", achieved, note, share)


def _cost_cards(units: Mapping[str, str], costs: Mapping[str, Three]) -> list[Card]:
    cards = []
    full, _, size = costs["size"]
    if size and full:
        note = f"{full / size:.1f} times smaller than float"
        cards.append(Card("Size", amount(size, "bytes"), note))
    for quantity in ("latency", "energy"):
        _, eight, now = costs.get(quantity, (None, None, None))
        if eight and now:
            note = f"{now / eight:.1%} of 8 bits everywhere"
            cards.append(Card(quantity.capitalize(), amount(now, units[quantity]), note))
    return cards


def _notes(record: RunRecord) -> list[str]:
    notes = list(record.summary.get("notes", []))
    if record.summary["state"] != "finished":
        notes.append(
            f"The run is {record.summary['state']}: these are the figures of the best policy so "
            "far; the test images are looked at when it is finished."
        )
    notes.append(uniform_sentence(record.summary))
    if record.uniform:
        notes.append("8 bits everywhere: calibrated as this run, not fine-tuned.")
    notes.append(record.missing.get("plan", ""))
    return [note for note in notes if note]


def _measured(latency: Mapping[str, Any]) -> list[Card]:
    if "value" not in latency:
        return []
    unit = latency["unit"]
    note = (
        f"{amount(latency['low'], unit)} to {amount(latency['high'], unit)}; predicted "
        f"{amount(latency['predicted'], unit)}, budget {amount(latency['budget'], unit)}"
    )
    share = latency["value"] / latency["budget"]
    return [Card("Latency measured end to end", amount(latency["value"], unit), note, share)]


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
        f"{counted(summary['evaluations'], 'evaluation')} of "
        f"{summary['seconds_per_evaluation']:.2g} s."
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
        # Where the name says the unit, it is not said again.
        unit = "" if spoken(quantity) != quantity else summary["units"][quantity]
        rows.append([Cell(spoken(quantity)), *(number(v, amount(v, unit)) for v in three)])
    columns = ("", "float", "8 bits everywhere", "this run")
    return Table("Side by side", columns, rows, "comparison", sortable=False)
