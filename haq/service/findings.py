"""What a run found, in the few words that a list has room for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from haq.errors import HaqError
from haq.metrics import metric_of
from haq.reports.charts.theme import amount, spoken
from haq.runs.folder import read_json


class Finding(NamedTuple):
    """Of one run.

    Attributes:
        score: Of the network handed over, on test images; of the best one so far on validation.
        change: Its difference from the float network.
        costs: What each budget allowed and what the network takes of it.
        float_score: Of the float network on the same images.
    """

    score: str
    change: str
    costs: tuple[str, ...]
    float_score: str


def finding(folder: Path) -> Finding | None:
    """Return what the run in a folder found; None where no episode is finished."""
    file = folder / "summary.json"
    try:
        stat = file.stat()
        return _finding(file, stat.st_mtime_ns, stat.st_size)
    except (OSError, HaqError, KeyError, TypeError, ValueError):
        return None  # there is none yet, it is being written, or of an older form


@lru_cache(maxsize=512)
def _finding(file: Path, *state: int) -> Finding:
    return of_summary(read_json(file))


def of_summary(summary: Mapping[str, Any]) -> Finding:
    """Return what a summary says was found.

    Raises:
        KeyError: It says nothing of scores.
    """
    metric = metric_of(summary)
    tested = metric.key("final_test") in summary
    ours, floats = ("final_test", "float_test") if tested else ("episode_val", "float_val")
    value, before = summary[metric.key(ours)], summary[metric.key(floats)]
    where = "test" if tested else "validation"
    return Finding(
        f"{metric.text(value)} {where} {metric.said}",
        f"{metric.difference(value, before)} from float",
        tuple(_cost(budget) for budget in summary["budgets"]),
        metric.text(before),
    )


def _cost(budget: Mapping[str, Any]) -> str:
    limit, unit = amount(budget["limit"], budget["unit"]), budget["unit"]
    achieved = amount(budget["achieved"], unit)
    if limit.endswith(f" {unit}"):  # once is enough
        achieved = achieved.removesuffix(f" {unit}")
    return f"{spoken(budget['quantity'])} {achieved} of {limit}"
