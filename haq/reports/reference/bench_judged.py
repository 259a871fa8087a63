"""Markdown of what the answers of agents on HAQ-Bench are worth when they are evaluated."""

from collections.abc import Sequence
from typing import Any

from haq.reports.reference.markdown import markdown, spread

Row = dict[str, Any]

PAIRS = (
    ("guided", "uniform"),
    ("guided", "ilp"),
    ("trust", "uniform"),
    ("trust", "ilp"),
    ("ddpg as in the paper", "random"),
    ("ddpg as in the paper", "random, chosen by accuracy"),
    ("ddpg", "random"),
    ("ilp", "uniform"),
)
"""Agents, and whom each has to beat."""

ORDER = (
    "optimum", "uniform", "ilp", "guided", "trust", "ddpg", "ddpg as in the paper", "random",
    "random, chosen by accuracy",
)  # fmt: skip
"""Agents as tables have them; others come behind."""


def agents_of(rows: Sequence[Row]) -> list[str]:
    """Return the agents of some rows in the order of tables."""
    names = list(dict.fromkeys(row["agent"] for row in rows))
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def judged_tables(record: Row, titles: dict[str, str]) -> str:
    """Return for each table what the answers are worth before and after training.

    Args:
        record: Of ``results/benchmarks/bench_judge.py``.
        titles: Name of a table to what it is called.
    """
    parts = []
    for table in dict.fromkeys(row["table"] for row in record["judged"]):
        mine = [row for row in record["judged"] if row["table"] == table]
        title = titles.get(table, table)
        before = [row for row in mine if not row["trained_images"]]
        after = [row for row in mine if row["trained_images"]]
        parts += _before(title, before) if before else []
        parts += _after(title, after) if after else []
    return "\n\n".join(filter(None, parts))


def _before(title: str, rows: Sequence[Row]) -> list[str]:
    lead = (
        f"Divergence of these answers for {title}, evaluated on 4 000 validation images that "
        "neither the table nor the surrogate knows, nothing trained; mean of the seeds with lowest "
        "and highest:"
    )
    return [
        _worth(lead, rows, lambda row: spread(row["divergence"], ".4f")),
        _pairs("The same in pairs, image by image: difference of the divergence as a share of that "
               "of the rival, with 95 % intervals; below 0 is better:", rows, _share),
    ]  # fmt: skip


def _after(title: str, rows: Sequence[Row]) -> list[str]:
    images = max(row["trained_images"] for row in rows)
    epochs = max(row["epochs"] for row in rows)
    seeds = "one seed" if epochs == 1 else f"{epochs} seeds"
    lead = (
        f"The answers for {title} after the same epoch of {images:,} images ({seeds} of training), "
        "on the same 4 000 images: accuracy in %, and divergence:"
    )
    return [
        _worth(lead, rows, _trained),
        _pairs("The same in pairs: points of accuracy more than the rival's, and the difference of "
               "the divergence as a share of the rival's, with 95 % intervals:", rows,
               lambda row, rival, others: f"{_points(row, rival)}; {_share(row, rival, others)}"),
    ]  # fmt: skip


def _trained(row: Row) -> str:
    accuracies = [100 * accuracy for accuracy in row["accuracy"]]
    return f"{spread(accuracies, '.2f')}; {spread(row['divergence'], '.4f')}"


def _worth(lead: str, rows: Sequence[Row], cell: Any) -> str:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    known = {(row["agent"], row["setting"]): row for row in rows}
    lines = [
        [agent, *(cell(known[agent, s]) if (agent, s) in known else "" for s in settings)]
        for agent in agents_of(rows)
    ]
    return markdown(lead, ["agent", *settings], lines)


def _pairs(lead: str, rows: Sequence[Row], cell: Any) -> str:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    known = {(row["agent"], row["setting"]): row for row in rows}
    lines = []
    for agent, rival in PAIRS:
        cells = [
            cell(known[agent, s], rival, known[rival, s])
            if (agent, s) in known and (rival, s) in known else ""
            for s in settings
        ]  # fmt: skip
        if any(cells):
            lines.append([f"{agent} − {rival}", *cells])  # noqa: RUF001 (a minus)
    return markdown(lead, ["pair", *settings], lines) if lines else ""


def _share(row: Row, rival: str, other: Row) -> str:
    whole = sum(other["divergence"]) / len(other["divergence"])
    return _between(row["against"][rival]["divergence"], 100 / whole, ".1f", " %")


def _points(row: Row, rival: str) -> str:
    return _between(row["against"][rival]["accuracy"], 100, ".2f", "")


def _between(interval: Sequence[float], times: float, form: str, unit: str) -> str:
    mean, low, high = (format(times * value, "+" + form) for value in interval)
    return f"{mean}{unit} ({low} to {high})"
