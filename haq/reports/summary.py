"""The first section of a report: the figures that count."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.metrics import Metric, metric_of
from haq.reports.accuracy_target import accuracy_target_sentence
from haq.reports.charts.theme import amount, counted, spoken
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
    summary, metric = record.summary, metric_of(record.summary)
    final = summary.get(metric.key("final_test"))
    if final is None:
        top, floats = summary[metric.key("episode_val")], summary[metric.key("float_val")]
        return Card(f"Best {kind_of(record)} so far", _value(top, metric),
                    f"float {_value(floats, metric)}")  # fmt: skip
    floats = summary[metric.key("float_test")]
    note = f"{metric.difference(final, floats)} from float ({metric.text(floats)})"
    return Card(f"Test {metric.said}", metric.text(final), note)


def _uniform_card(summary: Mapping[str, Any]) -> list[Card]:
    versus, metric = versus_uniform(summary), metric_of(summary)
    if versus is None:
        return []
    shown = "the same policy" if versus.same else metric.difference(versus.own, versus.uniform)
    when = ", fine-tuned each" if versus.tuned else ""
    own, uniform = metric.text(versus.own), metric.text(versus.uniform)
    note = f"validation: {own}, best uniform bits {uniform}{when}"
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
    if target := record.summary.get("accuracy_target"):
        notes.append(accuracy_target_sentence(target))
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
        metric = metric_of(onnx)
        torch_value = metric.text(onnx[metric.key("torch_test")])
        if "top1_agreement" in onnx:
            note = (
                f"{onnx['top1_agreement']:.2%} of {onnx['compared_images']} answers are those of "
                f"PyTorch ({torch_value})"
            )
        else:
            note = f"cosine to PyTorch's answers {onnx['cosine_to_torch']:.4f} ({torch_value})"
        value = metric.text(onnx[metric.key("onnxruntime_test")])
        cards.append(Card(f"Test {metric.said} in ONNX Runtime", value, note))
    if onnx:
        times = {
            name: onnx["latency"][name]["value"] for name in _COMPARED if name in onnx["latency"]
        }
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
    episode, episodes = summary["best_episode"], summary["episodes"]
    source = (
        f"found in episode {episode} of {episodes}" if episode < episodes else "raised to verify"
    )
    return (
        f"{len(widths)} layers; weights with {_span(widths)} bits, activations with {_span(acts)}; "
        f"{source}, after "
        f"{counted(summary['evaluations'], 'evaluation')} of "
        f"{summary['seconds_per_evaluation']:.2g} s."
    )


def _span(widths: Sequence[int]) -> str:
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def _value(value: float | None, metric: Metric) -> str:
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash
    return metric.text(value)


def _comparison(record: RunRecord, costs: Mapping[str, Three]) -> Table:
    summary, metric = record.summary, metric_of(record.summary)
    rows: list[list[Cell]] = []
    for label, part in (("validation", "val"), ("test", "test")):
        now = summary.get(metric.key(f"final_{part}"))
        if label == "validation" and now is None:
            now = summary[metric.key("episode_val")]
        values = [
            summary.get(metric.key(f"float_{part}")), record.uniform.get(metric.key(part)), now
        ]  # fmt: skip
        if any(value is not None for value in values):
            kind = f"{label} {metric.said}"
            rows.append([Cell(kind), *(number(v, _value(v, metric)) for v in values)])
    for quantity, three in costs.items():
        # Where the name says the unit, it is not said again.
        unit = "" if spoken(quantity) != quantity else summary["units"][quantity]
        rows.append([Cell(spoken(quantity)), *(number(v, amount(v, unit)) for v in three)])
    columns = ("", "float", "8 bits everywhere", "this run")
    return Table("Side by side", columns, rows, "comparison", sortable=False)
