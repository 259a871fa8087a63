"""Where a run stands, for whoever shows it."""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        stage: What it does: "calibrate", "search", "test", ….
        done: How far it is in that stage.
        total: How far that stage goes.
        note: What to say beside it.
        share: How much of the whole run is behind it, in [0, 1]; None where nobody knows.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    share: float | None = None


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""


def with_share(on_progress: OnProgress, weights: Mapping[str, float]) -> OnProgress:
    """Return a function that adds the share of the whole run to what it passes on.

    The share never falls. A stage without a weight adds nothing.

    Args:
        on_progress: Gets it.
        weights: What each stage takes, in order, in any one unit.
    """
    whole, reached = sum(weights.values()) or 1.0, 0.0
    before = dict(zip(weights, accumulate([0.0, *weights.values()]), strict=False))

    def passed_on(now: Progress) -> None:
        nonlocal reached
        if now.stage in weights and now.total:
            done = weights[now.stage] * min(now.done / now.total, 1.0)
            reached = max(reached, (before[now.stage] + done) / whole)
        on_progress(now._replace(share=min(reached, 1.0)))

    return passed_on
