"""The report of one run: everything it found, on one page that works without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from haq.metrics import metric_of
from haq.reports.channels import channels_section
from haq.reports.charts.theme import Chart
from haq.reports.layer_table import layers_section
from haq.reports.names import data_name, model_name, names_of_paths, scrubbed, target_name
from haq.reports.page import Cell, Section, Table, number, plain, render
from haq.reports.reasons import why
from haq.reports.record import RunRecord, read_run
from haq.reports.reference.publish import without_folders
from haq.reports.run_charts import all_charts, no_roof, roofline
from haq.reports.summary import summary_section

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
    record = read_run(folder, model)
    going_on = live and record.summary.get("state") not in ("finished", "interrupted")
    names = names_of_paths([record.job.model_dump(mode="json")], [folder])
    return render(
        _title(record), _subtitle(record), _sections(record), LIVE_RELOAD_S * going_on, names
    )


def report_fragments(folder: Path) -> dict[str, Any]:
    """Return the parts of the report as JSON has them, for a page of someone else's.

    Returns:
        ``{"title", "state", "charts": {key: {"title", "sentence", "figure", "columns", "rows"}},
        "reasons": {layer: sentence}, "missing": {section: sentence}}``; the figures hold names of
        colours, see ``haq.reports.charts``.

    Raises:
        RunError: As ``report_html``.
    """
    record = read_run(folder)
    charts = {chart.key: chart for chart in all_charts(record)}
    names = names_of_paths([record.job.model_dump(mode="json")], [folder])
    fragments = {
        "title": _title(record),
        "state": record.summary.get("state", "started"),
        "charts": {
            key: plain({name: value for name, value in chart._asdict().items() if name != "key"})
            for key, chart in charts.items()
        },
        "reasons": why(record),
        "missing": {
            **record.missing,
            **({} if roofline(record) else {"roofline": no_roof(record)}),
        },
    }
    return dict(scrubbed(fragments, names))


def _title(record: RunRecord) -> str:
    job = record.job
    on = f" on {target_name(job)}" if job.target else ""
    drop = [] if job.max_drop is None else [f"at most {job.max_drop:g} points lost"]
    return f"{model_name(job)}{on}: {', '.join([*drop, *job.budgets])}"


def _subtitle(record: RunRecord) -> str:
    job, state = record.job, record.summary.get("state", "started")
    episodes = f"{len(record.trials)} of {job.episodes}" if job.episodes else len(record.trials)
    return (
        f"Run {record.folder.resolve().name} · {data_name(job)} · agent {job.agent} · "
        f"seed {job.seed} · {episodes} episodes · {state}"
    )


def _sections(record: RunRecord) -> list[Section]:
    if not record.summary:
        return [Section("summary", "Summary", notes=["No episode has been finished yet."])]
    charts: dict[str, list[Chart]] = {}
    for chart in all_charts(record):
        charts.setdefault(chart.key.partition("-")[0], []).append(chart)
    sections = [summary_section(record)]
    for key in ("bits", "trials", "shares", "sensitivity", "roofline", "progress"):
        tables = _finalists(record) if key == "progress" else []
        if key not in charts and not tables:
            continue  # what is not there, and why, stands in the last section
        lead = _lead_of_progress(record) if key == "progress" else LEADS[key]
        choice = [charts[key]] if key in charts else []
        sections.append(Section(key, TITLES[key], lead, (), tables, choice))
    last = [*channels_section(record), layers_section(record), _provenance(record, charts)]
    return [*sections, *last]


TITLES = {
    "bits": "Bits of each layer", "trials": "All trials", "shares": "Where the costs are",
    "sensitivity": "Sensitivity", "roofline": "Roofline", "progress": "The search",
}  # fmt: skip

LEADS = {
    "bits": "Kinds of layers differ in colour and pattern.",
    "shares": "What each layer costs, with 8 bits everywhere and in this run.",
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


def _lead_of_progress(record: RunRecord) -> str:
    job, metric = record.job, metric_of(record.summary)
    if not job.by_metric or metric.name == "top1":
        return LEADS[f"progress by {'accuracy' if job.by_metric else job.reward}"]
    if metric.name == "perplexity":
        return "The reward is ten times the nats per token won or lost against the float network."
    return f"The reward is ten times the {metric.said} won or lost against the float network."


def _finalists(record: RunRecord) -> list[Table]:
    """Return what the last candidates reached fine-tuned, where there was such a round."""
    columns = ("episode", "without", "fine-tuned", "loss after it", "judged: divergence")
    metric = metric_of(record.summary)
    before, after = metric.key("val"), metric.key("tuned_val")
    rows = [
        [
            number(row["episode"]), number(row[before], metric.text(row[before])),
            number(row[after], metric.text(row[after])), number(row["tuned_val_loss"]),
            number(row.get("judged_divergence")),
        ]
        for row in record.summary.get("finalists", [])
    ]  # fmt: skip
    caption = f"Finalists: validation {metric.said} without and with fine-tuning"
    return [Table(caption, columns, rows, "finalists")] if rows else []


def _provenance(record: RunRecord, charts: Mapping[str, object]) -> Section:
    provenance = record.summary["provenance"]
    rows = [[Cell("command"), Cell(without_folders(provenance["command"]))]]
    for part in ("versions", "machine"):
        known = (f"{name} {text}" for name, text in provenance[part].items() if text is not None)
        rows.append([Cell(part), Cell(", ".join(known))])
    return Section(
        "provenance",
        "How it was made",
        notes=_left_out(record, charts),
        tables=[Table("Command, versions and machine", ("", ""), rows, sortable=False)],
    )


def _left_out(record: RunRecord, charts: Mapping[str, object]) -> list[str]:
    """Return what a page can have and this one has not, and why."""
    reasons = [record.missing.get("plan", "")]
    if "sensitivity" not in charts:
        reasons.append(record.missing.get("sensitivity", ""))
    if "roofline" not in charts:
        reasons.append(no_roof(record))
    text = " ".join(reason for reason in dict.fromkeys(reasons) if reason)
    return [f"Left out: {text[:1].lower()}{text[1:]}"] if text else []
