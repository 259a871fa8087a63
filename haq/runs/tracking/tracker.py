"""What a tracker does: it is told of a run, of each of its episodes, and of its end."""

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Hands a run on to a tool; its errors are of the tool's own kinds."""

    name: str

    def begin(self, name: str, identity: str, settings: Mapping[str, str]) -> int:
        """Start on a run, or go on with one, and return of how many episodes the tool knows.

        Args:
            name: Of the run's folder.
            identity: Of this run and no other, the same when it is resumed.
            settings: What was asked for.
        """

    def add(self, episode: int, values: Mapping[str, float]) -> None:
        """Take note of an episode, counted from 0; no value is NaN."""

    def end(self, values: Mapping[str, float], finished: bool) -> None:
        """Take note of the run's own values, and let go of the tool."""
