"""Weights & Biases: a run of a project, or of a folder where WANDB_MODE is offline."""

import os
from collections.abc import Mapping
from typing import Any

from haq.errors import HaqError
from haq.extras import library


class WandbTracker:
    """Writes configuration, history and summary; online, a resumed run goes on in its run there.

    Args:
        place: The project, or ENTITY/PROJECT.

    Raises:
        HaqError: Nobody is logged in.
    """

    name = "wandb"

    def __init__(self, place: str) -> None:
        self._entity, _, self._project = place.rpartition("/")
        self._library = library("wandb", "wandb", f"tracker {self.name}")
        is_online = os.environ.get("WANDB_MODE", "online") in ("online", "run", "shared")
        if is_online and not self._library.login(prompt=False):
            raise HaqError(
                f"tracker wandb:{place} needs somebody who is logged in: run wandb login, or set "
                "WANDB_MODE=offline to keep the run in a folder"
            )
        self._run: Any = None

    def begin(self, name: str, identity: str, settings: Mapping[str, str]) -> int:
        """Start the run of this identity, or go on with it."""
        self._run = self._library.init(
            project=self._project, entity=self._entity or None, name=name, id=identity,
            config=dict(settings), resume="allow",
            settings=self._library.Settings(silent=True, disable_git=True, save_code=False),
        )  # fmt: skip
        return int(self._run.step)

    def add(self, episode: int, values: Mapping[str, float]) -> None:
        """Log one step of the history."""
        self._run.log(dict(values), step=episode)

    def end(self, values: Mapping[str, float], finished: bool) -> None:
        """Fill in the summary and finish."""
        self._run.summary.update(dict(values))
        self._run.finish(exit_code=0 if finished else 1)
