"""Which runs can be compared: by the images they are tested on, and by how they were trained."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any, NamedTuple

from haq.allocation.costs import WITHOUT_TARGET
from haq.metrics import metric_of
from haq.reports.charts.theme import Row

UNIFORM = "uniform"
"""The agent that others are held against."""

FREE = frozenset({"agent", "paper", "episodes", "threads", "workers", "ray"})
"""Fields of a job in which a run and its reference may differ: all that is not its treatment."""


def by_test_set(summaries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return a number for each run, from 1 on: equal ones were tested on the same images.

    Args:
        summaries: Their ``summary.json``: ``images`` say of what data the images are,
            ``test_set`` which of them the network was tested on.
    """
    numbers: dict[str, int] = {}
    return [
        numbers.setdefault(
            json.dumps(
                [metric_of(summary).name, *(summary.get(part) for part in ("images", "test_set"))],
                sort_keys=True,
            ),
            len(numbers) + 1,
        )
        for summary in summaries
    ]


def treatment(job: Mapping[str, Any]) -> str:
    """Return all that a run and its uniform reference must have in common.

    Args:
        job: Its fields, as JSON has them.
    """
    return json.dumps({k: v for k, v in job.items() if k not in FREE}, sort_keys=True)


def shared_quantities(rows: Sequence[Row], units: Mapping[str, str]) -> list[str]:
    """Return the quantities that several runs know and that mean the same in all of them.

    Costs of a target are compared only among runs on that target.
    """
    shared = []
    for quantity in units:
        knowing = [row for row in rows if row.get(quantity) is not None]
        targets = {row.get("target_id", row["target"]) for row in knowing}
        if len(knowing) > 1 and (quantity in WITHOUT_TARGET or len(targets) == 1):
            shared.append(quantity)
    return shared


class Difference(NamedTuple):
    """What an agent reaches beyond uniform bits under the same budget.

    Attributes:
        budget: As it was asked for.
        agent: Its name.
        seeds: Searches, each beside the uniform one of the same seed.
        accuracy: Mean test accuracy.
        uniform: Mean test accuracy of the best uniform bits, treated alike.
        points: Mean difference, in points of accuracy.
        error: Standard error of that over the seeds, in points; None of a single one.
    """

    budget: str
    agent: str
    seeds: int
    accuracy: float
    uniform: float
    points: float
    error: float | None


def against_uniform(rows: Sequence[Row]) -> list[Difference]:
    """Return what each agent reaches beyond uniform bits, where these were treated alike.

    Args:
        rows: As ``haq.reports.compare.compared`` gives them, of one test set.
    """
    tested = [row for row in rows if row["final_test_accuracy"] is not None]
    references = {row["treatment"]: row for row in tested if row["agent"] == UNIFORM}
    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in tested:
        reference = references.get(row["treatment"])
        if row["agent"] != UNIFORM and reference is not None:
            key = row["model"], row["budget"], row["agent"]
            pairs.setdefault(key, []).append(
                (row["final_test_accuracy"], reference["final_test_accuracy"])
            )
    return [_difference(budget, agent, some) for (_, budget, agent), some in pairs.items()]


def _difference(budget: str, agent: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    gains = [100 * (own - uniform) for own, uniform in pairs]
    count = len(pairs)
    return Difference(
        budget, agent, count,
        math.fsum(own for own, _ in pairs) / count,
        math.fsum(uniform for _, uniform in pairs) / count,
        math.fsum(gains) / count,
        stdev(gains) / math.sqrt(count) if count > 1 else None,
    )  # fmt: skip
