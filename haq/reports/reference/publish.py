"""Publish runs: copy what they found into ``results/reference``."""

import re
import sys
from pathlib import Path
from typing import Any

from haq.errors import HaqError
from haq.runs.folder import find_folder, provenance, read_job, read_json, read_trials, write_json

REFERENCE = Path("results/reference")

_KEPT = (
    "state", "float_val_accuracy", "float_test_accuracy", "best_episode", "episode_val_accuracy",
    "episode_test_accuracy", "final_val_accuracy", "final_test_accuracy", "episodes",
    "evaluations", "evaluation_seconds", "seconds_per_evaluation", "finish_seconds", "budgets",
    "cost", "cost_origin", "measured_latency", "units", "threads", "provenance",
)  # fmt: skip


def publish(run: str, commit: str) -> Path:
    """Copy the job, policy and figures of a finished run into ``results/reference``.

    Args:
        run: Name or folder.
        commit: Of the code that made it.
    """
    folder = find_folder(run)
    summary = read_json(folder / "summary.json")
    if summary["state"] != "finished":
        raise HaqError(f"run {run} is {summary['state']}; only finished runs are published")
    job = read_job(folder).model_dump(mode="json")
    job["data"] = job["data"].partition(":")[0]
    for file in ("weights", "target"):
        job[file] = Path(job[file]).name if job[file] else None
    summary["provenance"]["command"] = without_folders(summary["provenance"]["command"])
    trials = read_trials(folder)
    record = {
        "run": folder.name,
        "commit": commit,
        "job": job,
        **{key: summary[key] for key in _KEPT if key in summary},
        "policy": {row["name"]: [row["weight_bits"], row["act_bits"]] for row in summary["layers"]},
        "trials": [
            {"accuracy": t.accuracy, "reward": t.reward, "seconds": t.seconds, "cached": t.cached}
            for t in trials
        ],
    }
    path = REFERENCE / f"{folder.name}.json"
    write_json(path, record)
    return path


def without_folders(command: str) -> str:
    """Return the command without the folders of one machine."""
    words = re.sub(r":[^ ]*/[^ ]*", ":DIR", command)  # cifar10:/some/where
    return re.sub(r"(?<![^ =])[^ =]*/", "", words)


def script_provenance() -> dict[str, Any]:
    """Return what makes the record of a script of ``results/benchmarks`` that runs now.

    As ``haq.runs.folder.provenance``, without the folders of this machine.
    """
    record = provenance(sys.argv)
    return record | {"command": "python results/benchmarks/" + without_folders(record["command"])}
