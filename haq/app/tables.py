"""Publish runs: copy what they found into ``results/reference``, and from there into the README.

python -m haq.app.tables publish RUN ...     copies runs
python -m haq.app.tables                     writes the README's table
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haq.app import results
from haq.errors import HaqError
from haq.files import write_text

REFERENCE = Path("results/reference")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

_KEPT = (
    "state", "float_val_accuracy", "float_test_accuracy", "best_episode", "episode_val_accuracy",
    "episode_test_accuracy", "final_val_accuracy", "final_test_accuracy", "episodes",
    "evaluations", "evaluation_seconds", "seconds_per_evaluation", "finish_seconds", "budgets",
    "cost", "units", "threads", "provenance",
)  # fmt: skip


def publish(run: str) -> Path:
    """Copy the job, policy and figures of a finished run into ``results/reference``."""
    folder = results.find_folder(run)
    summary = results.read_json(folder / "summary.json")
    if summary["state"] != "finished":
        raise HaqError(f"run {run} is {summary['state']}; only finished runs are published")
    job = results.read_job(folder).model_dump(mode="json")
    job["data"] = job["data"].partition(":")[0]
    job["weights"] = Path(job["weights"]).name if job["weights"] else None
    summary["provenance"]["command"] = without_folders(summary["provenance"]["command"])
    trials = results.read_trials(folder)
    record = {
        "run": folder.name,
        "job": job,
        **{key: summary[key] for key in _KEPT if key in summary},
        "policy": {row["name"]: [row["weight_bits"], row["act_bits"]] for row in summary["layers"]},
        "trials": [
            {"accuracy": t.accuracy, "reward": t.reward, "seconds": t.seconds, "cached": t.cached}
            for t in trials
        ],
    }
    path = REFERENCE / f"{folder.name}.json"
    results.write_json(path, record)
    return path


def without_folders(command: str) -> str:
    """Return the command without the folders of one machine."""
    words = re.sub(r":[^ ]*/[^ ]*", ":DIR", command)  # cifar10:/some/where
    return re.sub(r"(?<![^ =])[^ =]*/", "", words)


def results_table() -> str:
    """Return the Markdown table of the published searches, by budget and agent."""
    rows = []
    for path in sorted(REFERENCE.glob("*.json")):
        record = results.read_json(path)
        if "job" in record:
            rows.append(record)
    rows.sort(
        key=lambda r: (
            r["job"]["model"],
            r["job"]["target"] or "",
            r["job"]["budgets"],
            r["job"]["agent"],
        )
    )
    lines = [
        "| target | budget | agent | evaluations | achieved | float test "
        "| after its epoch: test (val) | after final fine-tuning: test (val) | s per evaluation |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_row(record) for record in rows)])


def _row(record: dict[str, Any]) -> str:
    job, budget = record["job"], record["budgets"][0]
    acts = "" if job["act_bits"] is None else f", {job['act_bits']}-bit activations"
    cells = [
        job["target"] or "-",
        f"{budget['asked']}{acts}",
        job["agent"] + (" (paper)" if job["paper"] else ""),
        str(record["evaluations"]),
        f"{budget['achieved']:,.4g} {budget['unit']}",
        f"{record['float_test_accuracy']:.2%}",
        f"{record['episode_test_accuracy']:.2%} ({record['episode_val_accuracy']:.2%})",
        f"{record['final_test_accuracy']:.2%} ({record['final_val_accuracy']:.2%})",
        f"{record['seconds_per_evaluation']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def write_readme(readme: Path = Path("README.md")) -> None:
    """Put the table between the README's two marks."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HaqError(f"{readme} has no {BEGIN} … {END}")
    write_text(readme, f"{before}{BEGIN}\n\n{results_table()}\n\n{END}{after}")


def main(arguments: Sequence[str]) -> None:
    """Publish the runs named, or write the README's table."""
    if arguments[:1] == ["publish"]:
        for run in arguments[1:]:
            publish(run)
    else:
        write_readme()


if __name__ == "__main__":
    main(sys.argv[1:])
