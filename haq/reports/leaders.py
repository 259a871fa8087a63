"""Which of several runs is the most accurate, and which are not different from it beyond chance.

Only runs that were tested on the same images by the same metric are held against each other, image
by image: two networks on the same images differ by less than their own intervals suggest.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from haq.metrics import metric_of
from haq.metrics.metric import Share
from haq.reports.charts.theme import Row
from haq.reports.page import Cell, Section, Table, number
from haq.runs.tested import read_tested
from haq.training.paired import drop_interval, paired


def leaders_section(folders: Sequence[Path], rows: Sequence[Row]) -> list[Section]:
    """Return the section that holds runs against the most accurate one; none below two runs.

    Args:
        folders: The runs, all of one test set.
        rows: As ``haq.reports.compare.compared`` gives them.
    """
    tested = [at for at, row in enumerate(rows) if row["final_test_accuracy"] is not None]
    if len(tested) < 2:
        return []
    metric = metric_of(rows[tested[0]])
    order = sorted(tested, key=lambda at: -metric.score(rows[at]["final_test_accuracy"]))
    best = order[0]
    rights = [read_tested(folders[at]).get("final") for at in order]
    columns = ("run", "model", "data", "budget", "agent", f"test {metric.said}", "95 % interval",
               "against the best", "95 % interval of that")  # fmt: skip
    cells, apart, unknown = [], 0, 0
    for at, right in zip(order, rights, strict=True):
        row, first = rows[at], rows[best]
        value = row["final_test_accuracy"]
        ends = _interval(rights[0], right) if isinstance(metric, Share) else None
        if at != best:
            apart += ends is not None and ends[0] > 0
            unknown += ends is None
        gap = "" if at == best else metric.difference(value, first["final_test_accuracy"])
        cells.append([
            *(Cell(row[field]) for field in ("run", "model", "data", "budget", "agent")),
            number(value, metric.text(value)), interval_cell(row),
            Cell(gap), Cell("" if ends is None or at == best else
                            f"{-100 * ends[1]:+.2f} to {-100 * ends[0]:+.2f}"),
        ])  # fmt: skip
    table = Table("The most accurate first", columns, cells, "leaders-table", stacked=True)
    lead = _lead(rows, best, len(order) - 1, apart, unknown)
    return [Section("leaders", "The most accurate", lead, tables=[table])]


def _lead(rows: Sequence[Row], best: int, others: int, apart: int, unknown: int) -> str:
    row, metric = rows[best], metric_of(rows[best])
    way = "highest" if metric.higher else "lowest"
    text = (
        f"{row['run']} has the {way} test {metric.said}, {metric.text(row['final_test_accuracy'])}."
    )
    if unknown < others:
        text += (
            f" Of the {others} others {apart} are below it beyond chance, compared image by image."
        )
    if unknown:
        text += f" Of {unknown} it is not known whether the difference is chance."
    if len({one["budget"] for one in rows}) > 1:
        text += " Their budgets differ: which is the best at a cost is what the front shows."
    return text


def _interval(best: Tensor | None, other: Tensor | None) -> tuple[float, float] | None:
    """Return the interval of how far the other is below the best one."""
    if best is None or other is None or len(best) != len(other):
        return None
    return drop_interval(paired(best, other))


def interval_cell(row: Row) -> Cell:
    """Return the confidence interval of a run's test value; a dash where it has none."""
    low, high = (row.get(f"final_test_{end}_accuracy") for end in ("low", "high"))
    if low is None or high is None:
        return number(None)
    return Cell(f"{low:.2%} to {high:.2%}")
