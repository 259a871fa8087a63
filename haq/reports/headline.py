"""What a report says first: what came of the run, is it better, by how much, at what cost, checked.

A sentence and a row of cards, from which a reader has the answer in ten seconds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.metrics import Metric, metric_of
from haq.metrics.metric import Share
from haq.reports.charts.theme import amount, counted, spoken
from haq.reports.names import model_name, target_name
from haq.reports.page import Card
from haq.reports.record import RunRecord, kind_of
from haq.reports.side_by_side import Three
from haq.reports.uniform import Versus, beats, gain_text, versus_uniform

Costs = Mapping[str, Three]


def headline(record: RunRecord, costs: Costs) -> str:
    """Return what came of a run, in two or three sentences."""
    parts = [_policy_sentence(record)]
    summary, metric = record.summary, metric_of(record.summary)
    tested = _tested(summary, metric)
    size = costs.get("size", (None, None, None))
    smaller = f"{size[0] / size[2]:.1f} times smaller than float" if size[0] and size[2] else ""
    if tested is not None:
        final, floats = tested
        parts.append(
            f"It has {metric.text(final)} test {metric.said}, "
            f"{_against_float(final, floats, metric)} float ({metric.text(floats)})"
            + (f", and is {smaller}." if smaller else ".")
        )
    elif smaller:
        parts.append(f"It is {smaller}.")
    versus = versus_uniform(summary)
    if versus is not None:
        parts.append(_verdict(versus, metric))
    return " ".join(parts)


def _policy_sentence(record: RunRecord) -> str:
    layers = record.summary["layers"]
    weights, acts = (_span([row[field] for row in layers]) for field in ("weight_bits", "act_bits"))
    state = "" if record.summary["state"] == "finished" else " so far"
    return (
        f"The best policy{state} of {model_name(record.job)} has {weights} bits for weights and "
        f"{acts} for activations, over {counted(len(layers), 'layer')}."
    )


def _span(widths: Sequence[int]) -> str:
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def _tested(summary: Mapping[str, Any], metric: Metric) -> tuple[float, float] | None:
    """Return the test values of the network handed over and of float; None without both."""
    final, floats = (summary.get(metric.key(f"{of}_test")) for of in ("final", "float"))
    if final is None or floats is None or not math.isfinite(final - floats):
        return None
    return final, floats


def _against_float(own: float, floats: float, metric: Metric) -> str:
    """Return by how much a run is above or below float, such as "1.45 points below"."""
    gain = metric.difference(own, floats)
    if not any(digit in gain for digit in "123456789"):
        return "the same as"
    side = "above" if gain.startswith("+") else "below"
    return f"{gain.lstrip('+-')} {side}"


def _verdict(versus: Versus, metric: Metric) -> str:
    if versus.same:
        return f"Nothing better than uniform bits ({versus.name}) was found."
    better = beats(versus, metric)
    gain = gain_text(versus, metric)
    how = {True: "better than", False: "worse than", None: "not different beyond chance from"}
    if versus.interval is None:
        way = metric.score(versus.own) - metric.score(versus.uniform)
        said = "better than" if way > 0 else "worse than" if way < 0 else "equal to"
    else:
        said = how[better]
    return f"On validation it is {said} the best uniform bits within the budgets: {gain}."


def cards(record: RunRecord, costs: Costs) -> list[Card]:
    """Return the row of cards, the question that matters most first."""
    summary = record.summary
    return [
        *_float_card(record),
        _uniform_card(summary),
        *(_budget_card(budget) for budget in summary["budgets"]),
        *_target_card(summary),
        *_size_card(costs),
        *_cost_cards(record, costs),
        *_checked_card(record),
    ]


def _float_card(record: RunRecord) -> list[Card]:
    summary, metric = record.summary, metric_of(record.summary)
    tested = _tested(summary, metric)
    if tested is None:
        top, before = summary[metric.key("episode_val")], summary.get(metric.key("float_val"))
        last = summary.get(metric.key("final_val"))
        label = f"Validation {metric.said}" if last is not None else f"Best {kind_of(record)}"
        note = f"float {value(before, metric)}"
        return [Card(label, value(top if last is None else last, metric), note)]
    final, floats = tested
    drop = summary.get("test_drop")
    note = f"{metric.text(final)} against {metric.text(floats)}"
    if images := summary.get("test_set", {}).get("images"):
        note += f", {images:,} test inputs"
    if not metric.higher:
        note += "; lower is better"
    if drop is None and (own := summary.get("final_test_interval")):
        note += f"; {metric.text(own[0])} to {metric.text(own[1])} with 95 % confidence"
    if drop is not None:
        low, high = (metric.difference(-end, 0.0).partition(" ")[0] for end in drop["interval"])
        note = f"95 % interval {high} to {low}; {note}"
    label = f"Test {metric.said} against float"
    return [Card(label, metric.difference(final, floats), note)]


def _uniform_card(summary: Mapping[str, Any]) -> Card:
    versus, metric = versus_uniform(summary), metric_of(summary)
    label = "Against best uniform bits"
    if versus is None:
        reference = summary.get("uniform_reference", summary.get("best_uniform"))
        return Card(label, "–", "none keep the budgets or can be evaluated" if reference is None  # noqa: RUF001
                    and ("best_uniform" in summary or "uniform_reference" in summary)
                    else "not evaluated in this run")  # fmt: skip
    if versus.same:
        return Card(label, "the same", f"{versus.name}: nothing better was found")
    gain = metric.difference(versus.own, versus.uniform)
    note = f"{metric.text(versus.own)} against {metric.text(versus.uniform)} of {versus.name}"
    if versus.interval is not None:
        low, high = (metric.difference(end, 0.0).partition(" ")[0] for end in versus.interval)
        note = f"95 % interval {low} to {high}; {note}"
    when = "fine-tuned each" if versus.tuned else "as in episodes"
    return Card(label, gain, f"{note}; validation, {when}")


def _budget_card(budget: Mapping[str, Any]) -> Card:
    share = budget["achieved"] / budget["limit"]
    note = f"{share:.1%} of the limit, {amount(budget['limit'], budget['unit'])}"
    achieved = amount(budget["achieved"], budget["unit"])
    label = f"Budget on {spoken(budget['quantity'])}"
    return Card(label, achieved, note, share)


def _target_card(summary: Mapping[str, Any]) -> list[Card]:
    target = summary.get("accuracy_target")
    if target is None:
        return []
    note = (
        f"drop of {100 * target['drop']:.2f} points, at most {100 * target['bound']:.2f} with "
        f"{target['confidence']:.0%} confidence on {target['images']:,} inputs not chosen by"
    )
    word = "met" if target["met"] else "NOT met"
    return [Card(f"At most {100 * target['max_drop']:g} points lost", word, note)]


def _size_card(costs: Costs) -> list[Card]:
    full, _, size = costs.get("size", (None, None, None))
    if not size or not full:
        return []
    note = f"{full / size:.1f} times smaller than float ({amount(full, 'bytes')})"
    return [Card("Size", amount(size, "bytes"), note)]


def _cost_cards(record: RunRecord, costs: Costs) -> list[Card]:
    """Return latency and energy: measured end to end where they were, else as modelled."""
    shown = []
    for quantity in ("latency", "energy"):
        measured = record.summary.get(f"measured_{quantity}", {})
        if "value" in measured:
            shown.append(_measured_card(quantity, measured))
        elif costs.get(quantity, (None,) * 3)[2] is not None:
            shown.append(_modelled_card(record, quantity, costs[quantity]))
    if "latency" in record.onnx and not any("easured" in card.label for card in shown):
        shown.append(_onnx_latency_card(record.onnx["latency"]))
    return shown


def _measured_card(quantity: str, row: Mapping[str, Any]) -> Card:
    unit = row["unit"]
    note = (
        f"{amount(row['low'], unit)} to {amount(row['high'], unit)}; predicted "
        f"{amount(row['predicted'], unit)}, budget {amount(row['budget'], unit)}"
    )
    share = row["value"] / row["budget"]
    return Card(f"{quantity.capitalize()}, measured", amount(row["value"], unit), note, share)


def _modelled_card(record: RunRecord, quantity: str, three: Three) -> Card:
    _, eight, now = three
    assert now is not None  # see above
    unit, text = record.summary["units"][quantity], ""
    target = record.planned.target if record.planned else None
    si = target.si.get(quantity) if target else None
    shown = amount(now, unit)
    if si and unit not in ("us", "ms", "s", "ns", "nJ", "uJ", "mJ", "J"):
        shown, text = amount(now * si, "s" if quantity == "latency" else "J"), f"{shown}; "
    origin = (record.summary.get("cost_origin") or {}).get("quantities", {}).get(quantity, {})
    word = "measured by layers" if origin.get("provenance") == "measured" else "modelled"
    if eight:
        text += f"{now / eight:.1%} of 8 bits everywhere; "
    return Card(f"{quantity.capitalize()}, {word}", shown, f"{text}{target_name(record.job)}")


_COMPARED = {"fp32": "of float", "quantize_static": "of quantize_static at 8 bits"}


def _onnx_latency_card(latency: Mapping[str, Any]) -> Card:
    own, unit = latency["this"]["value"], latency["unit"]
    times = [
        f"{own / latency[name]['value']:.2f} {said}"
        for name, said in _COMPARED.items() if name in latency
    ]  # fmt: skip
    note = "; ".join([", ".join(times), "one thread"])
    return Card("Latency in ONNX Runtime, measured", amount(own, unit), note)


def _checked_card(record: RunRecord) -> list[Card]:
    """Return what of the network handed over was checked, and where."""
    onnx, summary = record.onnx, record.summary
    if summary["state"] != "finished":
        return []
    if "test_images" not in onnx:
        note = "equal to its integers in PyTorch; haq export compares its file"
        return [Card("Checked in", "PyTorch", note)]
    metric = metric_of(onnx)
    own, torch_value = (onnx[metric.key(f"{of}_test")] for of in ("onnxruntime", "torch"))
    if "top1_agreement" in onnx:
        note = f"{onnx['top1_agreement']:.2%} of {onnx['compared_images']:,} answers are PyTorch's"
    else:
        note = f"cosine to PyTorch's answers {onnx['cosine_to_torch']:.4f}"
    note = f"{note}; test {metric.said} {metric.text(own)} there, {metric.text(torch_value)} here"
    return [Card("Checked in", "ONNX Runtime", note)]


def value(number: float | None, metric: Metric) -> str:
    """Return a value of a metric; a dash where there is none."""
    if number is None or not math.isfinite(number):
        return "–"  # noqa: RUF001 - a dash
    return metric.text(number)


def history_of_float(record: RunRecord) -> str:
    """Return why the float network's validation is higher than its test, where it is by far.

    That is by more than three standard errors of the difference of both shares.
    """
    summary, metric = record.summary, metric_of(record.summary)
    seen, unseen = summary.get(metric.key("float_val")), summary.get(metric.key("float_test"))
    count = summary.get("test_set", {}).get("images")
    if not isinstance(metric, Share) or seen is None or unseen is None or not count:
        return ""
    images = min(record.job.val_images, count)
    spread = math.sqrt(unseen * (1 - unseen) * (1 / images + 1 / count))
    if seen - unseen <= 3 * spread:
        return ""
    came = "The weights were given with the run; they" if record.job.weights else "It"
    return (
        f"The float network has {metric.text(seen)} on validation and {metric.text(unseen)} on "
        f"test images, more apart than chance explains. {came} have probably seen the validation "
        "images in training, so that all validation figures here are too high; differences "
        "between networks on the same images, and test figures, are not."
    ).replace("It have", "It has")
