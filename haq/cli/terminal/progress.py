"""How far a command is: bars in a terminal, lines of a log anywhere else."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from haq.runs.progress import OnProgress, Progress

PLAN = "plan"
"""The stage whose note is all there is to say: what the run does otherwise than one might think."""

LINE_EVERY_S = 30.0
"""A line is written at least this often while a stage goes on, if it goes on at all."""

SHARE, PAUSE_S = 0.1, 5.0
"""And for each such share of a stage, but not more often than this."""


@contextmanager
def progress() -> "Iterator[OnProgress]":
    """Give a function that shows how far a command is, on standard error."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bars() as on_progress:
            yield on_progress
    else:
        yield lines(lambda text: typer.echo(text, err=True), time.monotonic)


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

    def on_progress(now: "Progress") -> None:
        if now.stage == PLAN:
            write(now.note)
            return
        at_s = clock()
        stage = stages.get(now.stage)
        if stage is None or now.done < stage.written:  # a stage may come again
            stages[now.stage] = _Stage(at_s, now.done, now.done, at_s)
            write(_line(now, None))
        elif _is_due(stage, now, at_s):
            stage.written, stage.written_s = now.done, at_s
            write(_line(now, _left(stage, now, at_s)))

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


def _line(now: "Progress", left: str | None) -> str:
    parts = [f"{now.stage} {now.done}/{now.total}", left, now.note]
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
