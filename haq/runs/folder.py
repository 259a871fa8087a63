"""The folder of a run: its files, written so that a run killed at any moment can go on.

job.json               what was asked for
float.part             the state of the float network's training, while that goes on
float.safetensors      the float network the search starts from
clips.safetensors      where every tensor is clipped, per bit-width
trials.jsonl           one line an episode, written as it ends
policy.json            the best policy so far
weights.safetensors    its quantized network: float weights below the rounding, and the clips
agent.safetensors      networks that the agent learned, of ddpg alone
float_test.json        accuracy of the float network on the test images
tested.json            which test labels the float network and the one handed over have right
summary.json           budgets, accuracies, the per-layer table; written at the end
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from haq.allocation.trials import Trial
from haq.errors import RunError
from haq.files import write_text
from haq.metrics import METRICS, Metric
from haq.runs.job import Job, recorded_job

HOME = Path("results")
"""Where runs lie unless the user says otherwise."""


def new_folder(job: Job, name: str | Path | None) -> Path:
    """Return a fresh folder: at the user's path, or below ``HOME``, named by the user or the job.

    Args:
        job: Gives the name where the user gives none.
        name: A path such as ./mine or runs/mine, or the name of a folder below ``HOME``.

    Raises:
        RunError: The user's name is taken by another run, or is no name of a folder.
    """
    folder = _unused(HOME / _title(job)) if name is None else _place(name)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists already; go on with --resume {folder} or rename one")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run's folder {folder}: {error.strerror}") from error
    return folder


def _place(name: str | Path) -> Path:
    """Return the path that a user means: a name without a separator lies below ``HOME``."""
    separators = {os.sep, os.altsep, "/"} - {None}
    is_path = isinstance(name, Path) or any(str(s) in name for s in separators)
    return Path(name) if is_path or name in (".", "..") else HOME / name


def _title(job: Job) -> str:
    drop = [] if job.max_drop is None else [f"drop{job.max_drop:g}"]
    goals = [*drop, *job.budgets, job.agent]
    parts = [job.model, job.data.partition(":")[0], job.target or "", *goals]
    text = "-".join(part for part in parts if part)
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text.replace("%", "p"))


def _unused(folder: Path) -> Path:
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def find_folder(name: str | Path) -> Path:
    """Return the folder of an existing run, by its path or its name below ``HOME``.

    A name without a separator is looked for below ``HOME`` first, where a run of that name goes.

    Raises:
        RunError: There is no run there.
    """
    for folder in dict.fromkeys((_place(name), Path(name))):
        if (folder / "job.json").is_file():
            return folder
    names = sorted(path.parent.name for path in HOME.glob("*/job.json"))
    known = f"; known here: {', '.join(names)}" if names else ""
    raise RunError(f"no run at {str(name)!r}: there is no job.json{known}")


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json``."""
    write_text(folder / "job.json", job.model_dump_json(indent=2) + "\n")


def read_job(folder: Path) -> Job:
    """Read ``job.json``."""
    return recorded_job(**read_json(folder / "job.json"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a JSON object")
    return content


def append_trial(folder: Path, trial: Trial, metric: Metric = METRICS["top1"]) -> None:
    """Add one line to ``trials.jsonl`` and wait until it is on the disk.

    Args:
        folder: Of the run.
        trial: To add.
        metric: What its score is of; the line has its name and its value.
    """
    value = metric.of_score(trial.accuracy)
    line = trial.line(metric.word, None if value == trial.accuracy else value)
    with (folder / "trials.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_trials(folder: Path) -> list[Trial]:
    """Read the finished episodes; a last line that was cut short is not one.

    Raises:
        RunError: A line before the last is damaged, or an episode is missing.
    """
    path = folder / "trials.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short
    trials = [Trial.from_line(line.decode(errors="replace")) for line in lines]
    for number, trial in enumerate(trials):
        if trial.episode != number:
            raise RunError(f"{path} line {number + 1} is of episode {trial.episode}, not {number}")
    return trials


def drop_torn_line(folder: Path) -> None:
    """Cut off what a killed run left behind the last whole line of ``trials.jsonl``."""
    path = folder / "trials.jsonl"
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        with path.open("r+b") as file:
            file.truncate(whole)


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Return what made a result: command, versions and machine."""
    packages = ("haq", "torch", "stable-baselines3", "gymnasium", "numpy", "scipy", "onnxruntime")
    return {
        "command": " ".join(command),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "machine": {
            "cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system(),
            "load": _load(),
        },
    }  # fmt: skip


def _load() -> float | None:
    average = getattr(os, "getloadavg", None)  # not on every platform
    return round(average()[0], 2) if average else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):  # there is none but on Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
