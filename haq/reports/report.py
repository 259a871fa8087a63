"""The report of one run: everything it found, on one page that works without a network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from haq.quantization.sensitivity import Sensitivity
from haq.reports.charts import Chart, amount
from haq.reports.page import Card, Cell, Section, Table, number, plain, render
from haq.reports.record import (
    Found,
    Three,
    all_charts,
    kind_of,
    no_roof,
    read_run,
    roofline,
    side_by_side,
    why,
)

LIVE_RELOAD_S = 10
"""How often the page of a run that still goes on loads itself again."""


def report_html(folder: Path, live: bool = False, model: nn.Module | None = None) -> str:
    """Return the page of a run: all of it in one file.

    Args:
        folder: A run, finished or not.
        live: Whether the page of a run that still goes on loads itself again now and then.
        model: As for ``haq.reports.record.read_run``.

    Raises:
        RunError: The folder is no run, or a file in it is damaged.
    """
    found = read_run(folder, model)
    going_on = live and found.summary.get("state") not in ("finished", "interrupted")
    return render(_title(found), _subtitle(found), _sections(found), LIVE_RELOAD_S * going_on)


def report_fragments(folder: Path) -> dict[str, Any]:
    """Return the parts of the report as JSON has them, for a page of someone else's.

    Returns:
        ``{"title", "state", "charts": {key: {"title", "sentence", "figure", "columns", "rows"}},
        "reasons": {layer: sentence}, "missing": {section: sentence}}``; the figures hold names of
        colours, see ``haq.reports.charts``.

    Raises:
        RunError: As ``report_html``.
    """
    found = read_run(folder)
    charts = {chart.key: chart for chart in all_charts(found)}
    return {
        "title": _title(found),
        "state": found.summary.get("state", "started"),
        "charts": {
            key: plain({name: value for name, value in chart._asdict().items() if name != "key"})
            for key, chart in charts.items()
        },
        "reasons": why(found),
        "missing": {
            **found.missing,
            **({} if roofline(found) else {"roofline": no_roof(found)}),
        },
    }


def _title(found: Found) -> str:
    job = found.job
    on = f" on {job.target}" if job.target else ""
    return f"{job.model}{on}: {', '.join(job.budgets)}"


def _subtitle(found: Found) -> str:
    job, state = found.job, found.summary.get("state", "started")
    return (
        f"Run {found.folder.resolve().name} · {job.data.partition(':')[0]} · agent {job.agent} · "
        f"seed {job.seed} · {len(found.trials)} of {job.episodes} episodes · {state}"
    )


def _sections(found: Found) -> list[Section]:
    if not found.summary:
        return [Section("summary", "Summary", notes=["No episode has been finished yet."])]
    charts: dict[str, list[Chart]] = {}
    for chart in all_charts(found):
        charts.setdefault(chart.key.partition("-")[0], []).append(chart)
    shown = {
        "bits": (), "shares": (), "progress": (), "trials": (),
        "sensitivity": () if "sensitivity" in charts else (found.missing["sensitivity"],),
        "roofline": () if "roofline" in charts else (no_roof(found),),
    }  # fmt: skip
    titles = {"sensitivity": "Sensitivity", "roofline": "Roofline"}
    order = ("bits", "shares", "sensitivity", "roofline", "trials", "progress")
    sections = [_summary(found)]
    for key in order:
        title = titles.get(key) or charts[key][0].title.partition(",")[0]
        choice = [charts[key]] if key in charts else []
        lead = LEADS[f"progress by {found.job.reward}" if key == "progress" else key]
        tables = _finalists(found) if key == "progress" else []
        sections.append(Section(key, title, lead, (), tables, choice, shown[key]))
    return [*sections, _layers(found), _provenance(found)]


LEADS = {
    "bits": "Kinds of layers differ in colour and pattern.",
    "shares": "What each layer takes of the whole network, with 8 bits everywhere and in this run.",
    "sensitivity": "How far the outputs move when one layer alone is rounded.",
    "roofline": "What each layer attains, and what the target's arithmetic and memory allow at its "
    "bits; the bytes are those of the weights and the inputs, each read once.",
    "trials": "Every policy tried. No policy tried lies above and left of the front.",
    "progress by accuracy": "The reward is a tenth of the points of accuracy won or lost against "
    "the float network.",
    "progress by agreement": "The reward falls with the divergence from the float network's "
    "answers.",
    "progress by loss": "The reward is how much lower the loss is than the float network's.",
}  # fmt: skip


def _finalists(found: Found) -> list[Table]:
    """Return what the last candidates reached after an epoch each, where there was such a round."""
    rows = [
        [number(row["episode"]), number(row["val_accuracy"], f"{row['val_accuracy']:.2%}")]
        for row in found.summary.get("finalists", [])
    ]
    caption = "Finalists: validation accuracy after one epoch of fine-tuning"
    return [Table(caption, ("episode", "validation accuracy"), rows, "finalists")] if rows else []


def _summary(found: Found) -> Section:
    summary, cards = found.summary, []
    final = summary.get("final_test_accuracy")
    if final is not None:
        drop = 100 * (final - summary["float_test_accuracy"])
        cards.append(
            Card("Test accuracy", f"{final:.2%}",
                 f"{drop:+.2f} points from float ({summary['float_test_accuracy']:.2%})")
        )  # fmt: skip
    else:
        top = summary["episode_val_accuracy"]
        share = kind_of(found) != "score"
        cards.append(
            Card(f"Best {kind_of(found)} so far", f"{top:.2%}" if share else amount(top),
                 f"float {_accuracy(summary['float_val_accuracy'], share)}")
        )  # fmt: skip
    for budget in summary["budgets"]:
        share = budget["achieved"] / budget["limit"]
        cards.append(
            Card(f"Budget {budget['asked']}", amount(budget["achieved"], budget["unit"]),
                 f"{share:.1%} of the limit, {amount(budget['limit'], budget['unit'])}", share)
        )  # fmt: skip
    costs = side_by_side(found)
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
    cards += _measured(summary.get("measured_latency", {})) + _in_onnx_runtime(found.onnx)
    notes = []
    if summary["state"] != "finished":
        notes.append(
            f"The run is {summary['state']}: these are the figures of the best policy so far; the "
            "test images are looked at when it is finished."
        )
    if found.uniform:
        notes.append("8 bits everywhere: calibrated as this run, not fine-tuned.")
    if "plan" in found.missing:
        notes.append(found.missing["plan"])
    return Section("summary", "Summary", _headline(found), cards, [_comparison(found, costs)],
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


def _headline(found: Found) -> str:
    summary = found.summary
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


def _comparison(found: Found, costs: Mapping[str, Three]) -> Table:
    summary, share = found.summary, kind_of(found) != "score"
    rows: list[list[Cell]] = []
    for label, mine, name in (
        ("validation", "final_val_accuracy", "val_accuracy"),
        ("test", "final_test_accuracy", "test_accuracy"),
    ):
        now = summary.get(mine)
        if label == "validation" and now is None:
            now = summary["episode_val_accuracy"]
        accuracies = [summary.get(f"float_{name}"), found.uniform.get(name), now]
        if any(value is not None for value in accuracies):
            kind = f"{label} accuracy" if share else f"score ({label})"
            rows.append([Cell(kind), *(number(v, _accuracy(v, share)) for v in accuracies)])
    for quantity, three in costs.items():
        unit = summary["units"][quantity]
        rows.append([Cell(quantity), *(number(v, amount(v, unit)) for v in three)])
    columns = ("", "float", "8 bits everywhere", "this run")
    return Table("Side by side", columns, rows, "comparison", sortable=False)


def _layers(found: Found) -> Section:
    summary = found.summary
    reasons, sensitivity = why(found), found.sensitivity
    quantities = [q for q in ("latency", "energy", "size") if q in summary["units"]]
    columns = ["layer", "weight bits", "activation bits", *["why"] * bool(reasons), "kind"]
    columns += [f"{quantity} ({summary['units'][quantity]})" for quantity in quantities]
    columns += ["sensitivity"] * bool(sensitivity) + ["parameters", "MACs"]
    rows = []
    for layer in summary["layers"]:
        row = [Cell(layer["name"])]
        row += [number(layer[key], str(layer[key])) for key in ("weight_bits", "act_bits")]
        if reasons:
            row.append(Cell(reasons[layer["name"]]))
        row.append(Cell(layer["kind"]))
        row += [number(layer["cost"][q], amount(layer["cost"][q])) for q in quantities]
        if sensitivity:
            row.append(number(_chosen_sensitivity(sensitivity, layer)))
        row += [number(layer[key], f"{layer[key]:,}") for key in ("params", "macs")]
        rows.append(row)
    lead = "A click on a heading sorts the table."
    if reasons:
        lead += " Why: what the next fewer bits would save and cost, all else left as it is."
    notes = [] if reasons else [found.missing.get("plan", "")]
    return Section(
        "layers", "Layers", lead, notes=notes,
        tables=[Table("All layers, in order of execution", columns, rows, "layer-table")],
    )  # fmt: skip


def _chosen_sensitivity(known: Sensitivity, layer: Mapping[str, Any]) -> float | None:
    pair = (
        known.weights.get(layer["name"], {}).get(layer["weight_bits"]),
        known.activations.get(layer["name"], {}).get(layer["act_bits"]),
    )
    values = [value for value in pair if value is not None]
    return math.fsum(values) if values else None


def _provenance(found: Found) -> Section:
    made = found.summary["provenance"]
    rows = [[Cell("command"), Cell(made["command"])]]
    rows += [[Cell(name), Cell(text)] for name, text in made["versions"].items()]
    rows += [[Cell(name), Cell(str(text))] for name, text in made["machine"].items()]
    return Section(
        "provenance",
        "How it was made",
        tables=[Table("Versions and machine", ("", ""), rows, sortable=False)],
    )
