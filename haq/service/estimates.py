"""When a run that waits will begin: from what runs like it took, and who is there to do them."""

import heapq
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from haq.service import store
from haq.service.feed import seconds_left

Paces = Mapping[tuple[str, str, str], Sequence[float]]
"""Seconds an episode of finished runs, by model, data and agent."""


class Wait(NamedTuple):
    """Of one run that waits.

    Attributes:
        position: From 1: it is the next to be taken.
        seconds: Until it begins; None where no worker is there, or no run before it ended yet.
    """

    position: int
    seconds: float | None


def waits(standing: store.Standing, paces: Paces) -> dict[str, Wait]:
    """Return for every run that waits its position and when it will begin."""
    left = [_left(run, standing.moment, paces) for run in standing.running]
    lengths = [duration(run, paces) for run in standing.waiting]
    begins = starts(left, lengths, standing.workers)
    return {
        run.id: Wait(number, _not_before(run, standing.moment, seconds))
        for number, (run, seconds) in enumerate(zip(standing.waiting, begins, strict=True), 1)
    }


def _not_before(run: store.Run, moment: float, seconds: float | None) -> float | None:
    return None if seconds is None else max(seconds, run.not_before - moment)


def starts(
    left: Sequence[float | None], lengths: Sequence[float | None], workers: int
) -> list[float | None]:
    """Return in how many seconds each run begins that waits, in the order in which they are taken.

    Args:
        left: Seconds that each run under way still takes; None where that is not known.
        lengths: Seconds that each run takes that waits; None likewise.
        workers: Who do runs, those under way among them.

    >>> starts([10], [5, 5, 5], workers=2)  # one is free
    [0.0, 5.0, 10.0]
    >>> starts([None], [5], workers=1), starts([], [5], workers=0)
    ([None], [None])
    """
    free: list[float] = [0.0] * max(0, workers - len(left))
    free += [float("inf") if one is None else float(one) for one in left]
    heapq.heapify(free)
    begins: list[float | None] = []
    for length in lengths:
        begin = heapq.heappop(free) if free else float("inf")
        begins.append(None if begin == float("inf") else begin)
        heapq.heappush(free, float("inf") if length is None else begin + length)
    return begins


def duration(run: store.Run, paces: Paces) -> float | None:
    """Return what a run takes that waits: as the last ones of its model, data and agent took.

    Where there is none of all three, those of its model and data count, then any. None where no run
    has finished.
    """
    job = run.job
    alike = [one for key, one in paces.items() if key == (job.model, job.data, job.agent)]
    alike = alike or [one for key, one in paces.items() if key[:2] == (job.model, job.data)]
    alike = alike or list(paces.values())
    every = [seconds for one in alike for seconds in one]
    return median(every) * run.episodes_asked if every else None


def _left(run: store.Run, moment: float, paces: Paces) -> float | None:
    """Return what a run still takes that is under way: its episodes, or what such runs took."""
    by_episodes = seconds_left(run)
    if by_episodes is not None and run.episodes < run.episodes_asked:
        return by_episodes
    whole = duration(run, paces)
    return None if whole is None else max(0.0, whole - (moment - (run.started or moment)))
