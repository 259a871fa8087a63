"""The trials of a run as its search writes them, and what an episode takes."""

import math
import time
from pathlib import Path
from typing import Any

from haq.allocation.trials import Trial, best


class Tail:
    """Reads the trials of a run as they are written, each once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "trials.jsonl"
        self.rewind()

    @property
    def count(self) -> int:
        """How many have been read."""
        return len(self._trials)

    def rewind(self) -> None:
        """Begin again with the first one."""
        self._place, self._trials = 0, list[Trial]()

    def read(self) -> list[dict[str, Any]]:
        """Return those that are new, as the events have them; a line cut short is left for later.

        Raises:
            RunError: A line is damaged.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        events = []
        for line in whole.splitlines():
            self._trials.append(Trial.from_line(line.decode(errors="replace")))
            events.append(_as_event(self._trials))
        return events


def _as_event(trials: list[Trial]) -> dict[str, Any]:
    trial = trials[-1]
    return {
        "episode": trial.episode, "accuracy": trial.accuracy,
        "loss": None if math.isnan(trial.loss) else trial.loss, "reward": trial.reward,
        "cost": dict(trial.cost), "seconds": trial.seconds, "cached": trial.cached,
        "best_accuracy": best(trials).accuracy,
    }  # fmt: skip


class Pace:
    """What an episode takes, by the wall clock of this attempt."""

    def __init__(self, known: int) -> None:
        self._known, self._count, self._since = known, known, time.monotonic()
        self.episode_s: float | None = None

    def finished(self, count: int) -> None:
        """Note that so many episodes are finished."""
        if count <= self._count:
            return
        if self._count == self._known and self.episode_s is None:
            self._known, self._since = count, time.monotonic()  # the first one had a long start
        elif count > self._known:
            self.episode_s = (time.monotonic() - self._since) / (count - self._known)
        self._count = count
