"""From the files of a run to trackers: what is on disk is handed on, each episode once."""

import json
import math
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haq.allocation.trials import Trial, best
from haq.metrics import metric_of
from haq.metrics.metric import Metric
from haq.runs.folder import read_job, read_json, write_json
from haq.runs.progress import OnProgress, Progress
from haq.runs.tracking.tracker import Tracker

IDENTITY = "tracking.json"
"""File of a run with its identity in trackers, made when it is first followed."""

Warn = Callable[[str], None]


class NewTrials:
    """Reads the episodes of a run as they are written, each once.

    Args:
        folder: Of the run; ``trials.jsonl`` may not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._read = folder / "trials.jsonl", 0

    def read(self) -> Iterator[Trial]:
        """Yield the episodes that were written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline was cut short
        for line in lines:
            self._read += len(line) + 1
            yield Trial.from_line(line.decode())


class Follower:
    """Hands the episodes of a run on to one tracker.

    A tracker that fails is left alone from then on: the search is worth more.

    Args:
        folder: Of the run.
        tracker: Not begun yet.
        warn: Told why a tracker is left alone.

    Attributes:
        failed: Whether it is left alone.
    """

    def __init__(self, folder: Path, tracker: Tracker, warn: Warn) -> None:
        self._folder, self._tracker, self._warn = folder, tracker, warn
        self._known: int | None = None
        self._top: Trial | None = None
        self._trials = NewTrials(folder)
        self.failed = False

    def catch_up(self) -> None:
        """Hand on the episodes that the tracker does not know."""
        self._tried(self._catch_up)

    def end(self) -> None:
        """Hand on what is left, and what came of the run."""
        self._tried(self._end)

    def _tried(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            work()
        except Exception as error:  # of the tracker's own kinds: servers that are gone, full disks
            self.failed = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._warn(f"{self._tracker.name} is not told any more: {reason}")

    def _catch_up(self) -> None:
        if not (self._folder / "summary.json").exists():  # which follows the first episode
            return
        if self._known is None:
            self._known = self._begin()
        metric = metric_of(read_json(self._folder / "summary.json"))
        for trial in self._trials.read():
            self._top = trial if self._top is None else best([self._top, trial])
            if trial.episode >= self._known:
                self._tracker.add(trial.episode, values_of(trial, self._top, metric))

    def _begin(self) -> int:
        settings = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in read_job(self._folder).model_dump(mode="json").items()
            if value not in (None, [], {})
        }
        return self._tracker.begin(self._folder.resolve().name, identity(self._folder), settings)

    def _end(self) -> None:
        self._catch_up()
        if self._known is None:
            return
        summary = read_json(self._folder / "summary.json")
        self._tracker.end(_values_of_run(summary), summary["state"] == "finished")


def identity(folder: Path) -> str:
    """Return what a run is known by in trackers; made up, and written, when first asked for."""
    path = folder / IDENTITY
    if not path.exists():
        write_json(path, {"identity": uuid.uuid4().hex})
    return str(read_json(path)["identity"])


def values_of(trial: Trial, top: Trial, metric: Metric) -> dict[str, float]:
    """Return what is shown of an episode, by name.

    Args:
        trial: The episode.
        top: The best one so far.
        metric: What both were scored by.
    """
    bits = list(trial.policy.values())
    values = {
        metric.word: metric.of_score(trial.accuracy),
        f"best_{metric.word}": metric.of_score(top.accuracy),
        "loss": trial.loss,
        "reward": trial.reward,
        "seconds": trial.seconds,
        "bits/weights": sum(pair.weight for pair in bits) / len(bits),
        "bits/activations": sum(pair.act for pair in bits) / len(bits),
        **{f"cost/{quantity}": cost for quantity, cost in trial.cost.items()},
        **{f"agent/{name}": value for name, value in trial.notes.items()},
    }
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _values_of_run(summary: Mapping[str, Any]) -> dict[str, float]:
    metric = metric_of(summary)
    stages = ("float_val", "float_test", "episode_val", "final_val", "final_test")
    values = {metric.key(stage): summary.get(metric.key(stage)) for stage in stages}
    values |= {f"cost/{quantity}": cost for quantity, cost in summary["cost"].items()}
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


@contextmanager
def following(
    folder: Path,
    on_progress: OnProgress,
    trackers: Sequence[Tracker] = (),
    warn: Warn = lambda text: warnings.warn(text, stacklevel=2),
    on_trial: Callable[[Trial], None] | None = None,
) -> Iterator[OnProgress]:
    """Give a function for a run's progress that hands its episodes on as they end.

    Args:
        folder: Of the run, which may still be empty.
        on_progress: Called as well, first.
        trackers: Not begun yet.
        warn: Told why a tracker is left alone.
        on_trial: Called with each episode that was not there before.
    """
    followers = [Follower(folder, tracker, warn) for tracker in trackers]
    fresh = NewTrials(folder)
    deque(fresh.read(), maxlen=0)

    def passed_on(now: Progress) -> None:
        on_progress(now)
        if now.stage != "search":
            return
        for follower in followers:
            follower.catch_up()
        if on_trial is not None:
            for trial in fresh.read():
                on_trial(trial)

    try:
        yield passed_on
    finally:
        for follower in followers:
            follower.end()
