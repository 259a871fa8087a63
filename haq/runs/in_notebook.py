"""A run as a notebook shows it: what came of it, and the bits of every layer."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from haq.metrics import metric_of

STAGES = (("float network", "float"), ("handed over", "final"))


def html_of(summary: Mapping[str, Any], name: str) -> str:
    """Return a fragment of HTML without scripts and styles of its own.

    Args:
        summary: As in ``summary.json``.
        name: Of the run.
    """
    return (
        f"<p><b>{escape(name)}</b>: {escape(summary['state'])}, "
        f"{summary['episodes']} episode{'s' * (summary['episodes'] != 1)}</p>"
        + _table((metric_of(summary).said, "validation", "test"), _accuracies(summary))
        + _table(("budget", "reached", "limit"), _budgets(summary))
        + f"<details><summary>bits of {len(summary['layers'])} layers</summary>"
        + _table(("layer", "kind", "weights", "activations", "parameters"), _layers(summary))
        + "</details>"
    )


def _accuracies(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    metric = metric_of(summary)
    for label, stage in STAGES:
        values = [summary.get(metric.key(f"{stage}_{split}")) for split in ("val", "test")]
        if values != [None, None]:
            val, test = ("" if value is None else metric.text(value) for value in values)
            yield label, val, test


def _budgets(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for budget in summary["budgets"]:
        reached, limit = (f"{budget[key]:,.6g} {budget['unit']}" for key in ("achieved", "limit"))
        yield budget["asked"], reached, limit


def _layers(summary: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for layer in summary["layers"]:
        bits = str(layer["weight_bits"]), str(layer["act_bits"])
        yield layer["name"], layer["kind"], *bits, f"{layer['params']:,}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
