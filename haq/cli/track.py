"""``haq track``: a run handed on to the tools in which people follow their experiments."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from haq.cli.options import RunFolder
from haq.cli.terminal.output import warn

if TYPE_CHECKING:
    from haq.runs.tracking import Tracker


def track_command(
    run: RunFolder,
    trackers: Annotated[
        list[str],
        typer.Argument(
            help="tensorboard:FOLDER, mlflow:URI or wandb:PROJECT.", metavar="TRACKER..."
        ),
    ],
) -> None:
    """Hand a run on to TensorBoard, MLflow or Weights & Biases, as far as it is."""
    from haq.errors import HaqError
    from haq.runs.folder import find_folder
    from haq.runs.tracking import Follower

    chosen = trackers_of(trackers)
    folder = find_folder(run)
    if not (folder / "summary.json").exists():
        raise HaqError(f"run {folder} has no finished episode yet: haq search --resume {folder}")
    followers = [Follower(folder, tracker, warn) for tracker in chosen]
    for follower in followers:
        follower.end()
    if any(follower.failed for follower in followers):
        raise typer.Exit(1)


def trackers_of(texts: Sequence[str] | None) -> "list[Tracker]":
    """Return the trackers that are asked for.

    Raises:
        HaqError: One does not exist, or its library is not installed.
    """
    if not texts:
        return []
    from haq.runs.tracking import tracker

    return [tracker(text) for text in texts]
