"""TensorBoard: a folder of events for each run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.errors import HaqError
from haq.extras import library


class TensorboardTracker:
    """Writes events that ``tensorboard --logdir FOLDER`` shows.

    A run that is resumed is written from its first episode on; TensorBoard drops what was there.

    Args:
        place: The folder.

    Raises:
        HaqError: There is a file of that name.
    """

    name = "tensorboard"

    def __init__(self, place: str) -> None:
        self._place = Path(place)
        if self._place.exists() and not self._place.is_dir():
            raise HaqError(f"tracker tensorboard:{place} is a file; give a folder")
        self._library = library("torch.utils.tensorboard", "tensorboard", f"tracker {self.name}")
        self._writer: Any = None

    def begin(self, name: str, identity: str, settings: Mapping[str, str]) -> int:
        """Open the folder of the run."""
        self._writer = self._library.SummaryWriter(str(self._place / name), purge_step=0)
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        self._writer.add_text("asked for", f"| setting | value |\n|---|---|\n{rows}")
        return 0

    def add(self, episode: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, episode)
        self._writer.flush()

    def end(self, values: Mapping[str, float], finished: bool) -> None:
        """Write the run's own values as scalars of one point."""
        for key, value in values.items():
            self._writer.add_scalar(f"run/{key}", value, 0)
        self._writer.close()
