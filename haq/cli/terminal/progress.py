"""How far a command is: bars in a terminal, lines of a log anywhere else."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from haq.cli.terminal.output import LOG, is_quiet, say

if TYPE_CHECKING:
    from haq.runs.progress import OnProgress, Progress

PLAN = "plan"
"""The stage whose note is all there is to say: what the run does otherwise than one might think."""

LINE_EVERY_S = 30.0
"""A line is written at least this often while a stage goes on, if it goes on at all."""

LEAST_SHARE = 0.02
"""Of a run that must be behind it before what is left can be told."""

SHARE, PAUSE_S = 0.1, 5.0
"""And for each such share of a stage, but not more often than this."""


@contextmanager
def progress() -> "Iterator[OnProgress]":
    """Give a function that shows how far a command is, on standard error and in its log."""
    if is_quiet() or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lines(say, time.monotonic)
        return
    logged = lines(LOG.info, time.monotonic)
    with _bars() as shown:

        def on_progress(now: "Progress") -> None:
            logged(now)
            shown(now)

        yield on_progress


@contextmanager
def _bars() -> "Iterator[OnProgress]":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(now: "Progress") -> None:
            if now.stage == PLAN:
                bars.console.print(now.note, highlight=False)
                return
            if now.share is not None:
                if "whole run" not in tasks:
                    tasks["whole run"] = bars.add_task("whole run", total=100, note="")
                bars.update(tasks["whole run"], completed=round(100 * now.share))
            if now.stage not in tasks:
                tasks[now.stage] = bars.add_task(now.stage, total=now.total, note="")
            bars.update(tasks[now.stage], completed=now.done, total=now.total, note=now.note)

        yield on_progress


@dataclass
class _Stage:
    """Since when a stage goes on, and what was written of it last."""

    started_s: float
    first: int
    written: int
    written_s: float


def lines(write: Callable[[str], None], clock: Callable[[], float]) -> "OnProgress":
    """Return a function that writes a line where a stage begins, now and then, and where it ends.

    Args:
        write: Takes a line.
        clock: Seconds, from any moment on.
    """
    stages: dict[str, _Stage] = {}
    whole = _Whole()

    def on_progress(now: "Progress") -> None:
        if now.stage == PLAN:
            write(now.note)
            return
        at_s = clock()
        in_all = whole.left(now, at_s)
        stage = stages.get(now.stage)
        if stage is None or now.done < stage.written:  # a stage may come again
            stages[now.stage] = _Stage(at_s, now.done, now.done, at_s)
            write(_line(now, None, in_all))
        elif _is_due(stage, now, at_s):
            stage.written, stage.written_s = now.done, at_s
            write(_line(now, _left(stage, now, at_s), in_all))

    return on_progress


def _is_due(stage: _Stage, now: "Progress", at_s: float) -> bool:
    if now.done == stage.written:
        return False
    passed_s = at_s - stage.written_s
    enough = now.done - stage.written >= SHARE * now.total and passed_s >= PAUSE_S
    return now.done >= now.total or enough or passed_s >= LINE_EVERY_S


def _left(stage: _Stage, now: "Progress", at_s: float) -> str:
    passed_s = at_s - stage.started_s
    if now.done >= now.total:
        return f"done in {duration(passed_s)}"
    return f"about {duration(passed_s * (now.total - now.done) / (now.done - stage.first))} left"


class _Whole:
    """Since when a run goes on, and how much of it was behind it then."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None

    def left(self, now: "Progress", at_s: float) -> str | None:
        """Return about what the whole run still takes, None while nobody can tell."""
        if now.share is None:
            return None
        if self._started is None:
            self._started = at_s, now.share
        since_s, first = self._started
        if now.share - first < LEAST_SHARE or now.share >= 1:
            return None
        left_s = (at_s - since_s) * (1 - now.share) / (now.share - first)
        return f"the whole run: about {duration(left_s)} left"


def _line(now: "Progress", left: str | None, in_all: str | None) -> str:
    parts = [f"{now.stage} {now.done}/{now.total}", left, in_all, now.note]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Return a length of time for people.

    >>> duration(0.4), duration(75), duration(3700)
    ('0 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
