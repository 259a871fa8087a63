"""The best accuracy of each run up to each evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.allocation.trials import Trial, best
from haq.metrics import METRICS, Metric
from haq.reports.charts.theme import SERIES, Chart, axis, layout

SPREAD = 0.02
"""Of an accuracy that never changes, what is shown above and below it."""

DASHES = ("solid", "dot", "dashdot", "longdash")


def best_so_far_chart(
    trials: Mapping[str, Sequence[Trial]], metric: Metric = METRICS["top1"]
) -> Chart:
    """Return the best value of the metric up to each evaluation, a line for each run.

    Args:
        trials: Run to its trials, at least one each.
        metric: Of all of them.
    """
    shown = metric.format
    data: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    for at, (run, own) in enumerate(trials.items()):
        tops = [metric.of_score(best(own[: n + 1]).accuracy) for n in range(len(own))]
        data.append(
            {
                "type": "scatter", "name": run,
                # A single episode is a line of no length: a marker shows it.
                "mode": "lines" if len(own) > 1 else "lines+markers",
                "x": [t.episode for t in own], "y": tops,
                "line": {"color": SERIES[at % len(SERIES)], "width": 2, "shape": "hv",
                         "dash": DASHES[at // len(SERIES) % len(DASHES)]},
                "hovertemplate": f"{run}, episode %{{x}}: "
                                 f"%{{y:{shown}}}<extra></extra>",
            }
        )  # fmt: skip
        rows.append([run, len(own), tops[-1], best(own).episode])
    tick: dict[str, Any] = {"tickformat": ".1%"} if shown == ".2%" else {}
    values = {value for trace in data for value in trace["y"] if math.isfinite(value)}
    if len(values) == 1:  # else plotly shows from nothing to twice as much
        (only,) = values
        tick["range"] = [only - SPREAD, only + SPREAD] if shown == ".2%" else [0, 1.5 * only]
    about = layout(420, xaxis=axis("episode"), yaxis=axis("best so far, validation", **tick))
    sentence = f"The best {metric.said} on validation images up to each episode."
    columns = ("run", "episodes", "best", "in episode")
    return Chart("best", "Best so far", sentence, {"data": data, "layout": about}, columns, rows)
