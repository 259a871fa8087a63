"""Runs in the tools in which people follow their experiments: TensorBoard, MLflow, W&B.

A new tool is a file with a ``Tracker`` and a line in ``TRACKERS``. Its library is imported when the
tracker is made: whoever names none does not need it.
"""

from collections.abc import Callable, Mapping

from haq.errors import HaqError, look_up
from haq.runs.tracking.follow import Follower, following
from haq.runs.tracking.mlflow import MlflowTracker
from haq.runs.tracking.tensorboard import TensorboardTracker
from haq.runs.tracking.tracker import Tracker
from haq.runs.tracking.wandb import WandbTracker

__all__ = ["TRACKERS", "Follower", "Tracker", "following", "tracker"]

TRACKERS: Mapping[str, Callable[[str], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}
"""Name to what makes a tracker from what follows the colon."""


def tracker(text: str) -> Tracker:
    """Return the tracker that a text asks for, such as "tensorboard:logs".

    Raises:
        HaqError: There is no such tracker, nothing says where, or its library is not installed.
    """
    name, _, place = text.partition(":")
    kind = look_up(TRACKERS, "tracker", name)
    if not place:
        raise HaqError(f"tracker {text!r} does not say where: write {EXAMPLES[name]}")
    return kind(place)


EXAMPLES: Mapping[str, str] = {
    "tensorboard": "tensorboard:FOLDER",
    "mlflow": "mlflow:sqlite:///mlflow.db or mlflow:http://HOST:5000",
    "wandb": "wandb:PROJECT",
}
