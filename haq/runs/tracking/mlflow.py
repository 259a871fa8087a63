"""MLflow: a run of the experiment "haq" in a database or on a server."""

import os
from collections.abc import Mapping

from haq.errors import HaqError
from haq.extras import library

EXPERIMENT, TAG = "haq", "haq.identity"

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Settings of MLflow for servers that do not answer: its own let a search wait for minutes."""

LONGEST = 500
"""Signs of a parameter; servers refuse longer ones."""


class MlflowTracker:
    """Writes parameters and metrics; a run that is resumed goes on in its run of MLflow.

    Args:
        place: Tracking URI, such as sqlite:///mlflow.db or http://localhost:5000.

    Raises:
        HaqError: It is no URI of a database or a server, or no server answers there.
    """

    name = "mlflow"

    def __init__(self, place: str) -> None:
        scheme, _, rest = place.partition("://")
        if not rest or scheme == "file":
            raise HaqError(
                f"tracker mlflow:{place} names no database and no server: write "
                "mlflow:sqlite:///mlflow.db or mlflow:http://HOST:5000"
            )
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self._client = library("mlflow", "mlflow", f"tracker {self.name}").MlflowClient(place)
        self._run = ""
        if place.startswith("http"):  # a database would be made by asking for it
            try:
                self._client.get_experiment_by_name(EXPERIMENT)
            except Exception as error:  # of MLflow and of what it sends requests with
                raise HaqError(f"tracker mlflow:{place} does not answer: {error}") from error

    def begin(self, name: str, identity: str, settings: Mapping[str, str]) -> int:
        """Find the run of this identity, or make it."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        place = (
            experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        )
        known = self._client.search_runs([place], f"tags.`{TAG}` = '{identity}'")
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return len(self._client.get_metric_history(self._run, "reward"))
        run = self._client.create_run(place, run_name=name, tags={TAG: identity})
        self._run = run.info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value[:LONGEST])
        return 0

    def add(self, episode: int, values: Mapping[str, float]) -> None:
        """Log a metric for each value; "reward" at last, by which episodes are counted."""
        for key in sorted(values, key=lambda key: key == "reward"):
            self._client.log_metric(self._run, key, values[key], step=episode)

    def end(self, values: Mapping[str, float], finished: bool) -> None:
        """Log the run's own values and say how it ended."""
        for key, value in values.items():
            self._client.log_metric(self._run, f"run/{key}", value)
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
