"""A run read back as pandas frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.allocation.policy import Bits
from haq.allocation.trials import best
from haq.runs.folder import find_folder, read_job, read_json, read_trials
from haq.runs.job import Job

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Tables:
    """A run read back from its folder, with its numbers as pandas frames.

    Attributes:
        folder: Where it lies.
        job: What was asked for.
        summary: As in ``summary.json``; empty before the first episode.
        policy: Of the best trial.
        trials: A row an episode: accuracy, loss, reward, seconds, cached, a column for each cost
            under its quantity's name, the policy, and what the agent noted, as agent_NAME.
        layers: A row a layer: kind, params, macs, weight_bits, act_bits, and for each quantity its
            cost and, as quantity_w8a8, the one at 8 bits. The units of both frames are in their
            ``attrs["units"]``.
    """

    folder: Path
    job: Job
    summary: dict[str, Any]
    policy: dict[str, Bits]
    trials: "DataFrame"
    layers: "DataFrame"


def load_run(path: str | Path) -> Tables:
    """Return a run, finished or not, as tables.

    Args:
        path: Its name or folder.

    Raises:
        RunError: There is no run, or it is damaged.

    >>> run = load_run("mine")  # doctest: +SKIP
    >>> run.trials.plot.scatter("avg_weight_bits", "accuracy")  # doctest: +SKIP
    """
    from pandas import DataFrame

    folder = find_folder(str(path))
    file = folder / "summary.json"
    summary = read_json(file) if file.exists() else {}
    played = read_trials(folder)
    flat = [_flat(vars(trial), "cost") for trial in played]
    trials = DataFrame([_flat(row, "notes", "agent_") for row in flat])
    rows = [_flat(row, "cost") for row in summary.get("layers", [])]
    layers = DataFrame([_flat(row, "cost_w8a8", suffix="_w8a8") for row in rows])
    trials = trials.set_index("episode") if played else trials
    layers = layers.set_index("name") if rows else layers
    trials.attrs["units"] = layers.attrs["units"] = summary.get("units", {})
    policy = dict(best(played).policy) if played else {}
    return Tables(folder, read_job(folder), summary, policy, trials, layers)


def _flat(row: Mapping[str, Any], field: str, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """Return a row with the entries of one of its fields as columns of their own."""
    columns = {f"{prefix}{name}{suffix}": value for name, value in row[field].items()}
    return {name: value for name, value in row.items() if name != field} | columns
