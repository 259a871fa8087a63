"""The runs below a folder, a line each: what was asked for, how far it is, what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from haq.errors import HaqError
from haq.metrics import metric_of
from haq.runs.folder import HOME, read_job, read_json, read_trials


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        name: Of its folder, as it was found.
        state: "finished"; "unfinished", which a run that goes on is too; or "damaged".
        model: What was asked for, as ``data``, ``target``, ``budgets`` and ``agent`` are.
        episodes: That have ended.
        asked: Episodes of the whole search; None while the run has not decided.
        metric: What ``float_val`` and the others are of.
        float_val: Of the float network on validation data; None where it is not known yet.
        final_val: Of the network handed over.
        final_test: Of the same on test data.
        changed: When something was written last, seconds since 1970.
        fault: Why a damaged run cannot be read; empty otherwise.
    """

    name: str
    state: str
    changed: float
    model: str = ""
    data: str = ""
    target: str | None = None
    budgets: Sequence[str] = ()
    agent: str = ""
    episodes: int = 0
    asked: int | None = None
    metric: str = ""
    float_val: float | None = None
    final_val: float | None = None
    final_test: float | None = None
    fault: str = ""

    def fields(self) -> dict[str, Any]:
        """Return all attributes by name."""
        return asdict(self)


def runs_in(folder: Path = HOME) -> list[Listed]:
    """Return the runs whose folders lie in a folder, the one that changed last at the end.

    Raises:
        HaqError: There is no such folder.
    """
    if not folder.is_dir() and folder != HOME:
        raise HaqError(f"there is no folder {folder}: give one in which runs lie")
    listed = [_listed(path.parent) for path in folder.glob("*/job.json")]
    return sorted(listed, key=lambda run: (run.changed, run.name))


def _listed(folder: Path) -> Listed:
    name = folder.name if folder.parent == HOME else str(folder)
    files = [path for path in folder.iterdir() if path.is_file()]
    changed = max(path.stat().st_mtime for path in files)
    try:
        job, trials = read_job(folder), read_trials(folder)
        has_summary = (folder / "summary.json").exists()
        summary = read_json(folder / "summary.json") if has_summary else {}
        finished = summary.get("state") == "finished"
        return Listed(
            name, "finished" if finished else "unfinished", changed, job.model, job.data,
            job.target, job.budgets, job.agent, len(trials), job.episodes, **_values(summary),
        )  # fmt: skip
    except (HaqError, OSError) as error:
        return Listed(name, "damaged", changed, fault=str(error))


def _values(summary: Mapping[str, Any]) -> dict[str, Any]:
    if not summary:
        return {}
    metric = metric_of(summary)
    stages = ("float_val", "final_val", "final_test")
    return {"metric": metric.name} | {name: summary.get(metric.key(name)) for name in stages}
