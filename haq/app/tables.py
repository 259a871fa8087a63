"""Publish runs: copy what they found into ``results/reference``, and from there into the README.

python -m haq.app.tables publish COMMIT RUN ...     copies runs that COMMIT made
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

TITLES = {"cifar10": "CIFAR-10 (JPEG)", "digits": "digits"}
"""Data sets as they are named beside numbers: these CIFAR-10 images were encoded anew as JPEG."""

_KEPT = (
    "state", "float_val_accuracy", "float_test_accuracy", "best_episode", "episode_val_accuracy",
    "episode_test_accuracy", "final_val_accuracy", "final_test_accuracy", "episodes",
    "evaluations", "evaluation_seconds", "seconds_per_evaluation", "finish_seconds", "budgets",
    "cost", "units", "threads", "provenance",
)  # fmt: skip


def publish(run: str, commit: str) -> Path:
    """Copy the job, policy and figures of a finished run into ``results/reference``.

    Args:
        run: Name or folder.
        commit: Of the code that made it.
    """
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
    results.write_json(path, record)
    return path


def without_folders(command: str) -> str:
    """Return the command without the folders of one machine."""
    words = re.sub(r":[^ ]*/[^ ]*", ":DIR", command)  # cifar10:/some/where
    return re.sub(r"(?<![^ =])[^ =]*/", "", words)


def results_table() -> str:
    """Return the Markdown of all that is published: training, calibration, episode, searches."""
    records = {path.stem: results.read_json(path) for path in sorted(REFERENCE.glob("*.json"))}
    parts = [_training(records[name]) for name in records if name.startswith("train-")]
    parts += [_calibration(records[name]) for name in records if name.startswith("calibration-")]
    parts += [_episode(records[name]) for name in records if name.startswith("episode-")]
    return "\n\n".join([*parts, _searches([r for r in records.values() if "job" in r])])


def _training(record: dict[str, Any]) -> str:
    return (
        f"Float network: {record['model']} on {TITLES[record['data']]}, {record['epochs']} epochs "
        f"of the 45 000 training rows: validation {record['val_accuracy']:.2%}, "
        f"test {record['test_accuracy']:.2%}."
    )


def _calibration(record: dict[str, Any]) -> str:
    lines = [
        f"Accuracy of {record['model']} on {record['validation_images']} validation images right "
        f"after quantization, without any fine-tuning (float {record['float']:.2%}; first and last "
        "layer at 8 bits):",
        "",
    ]
    for what, methods in record["accuracy"].items():
        widths = list(next(iter(methods.values())))
        lines += [
            f"| {what}, bits | " + " | ".join(widths) + " |",
            "|---|" + "---:|" * len(widths),
            *(
                f"| `{method}` | " + " | ".join(f"{row[bits]:.2%}" for bits in widths) + " |"
                for method, row in methods.items()
            ),
            "",
        ]
    return "\n".join(lines).rstrip()


def _episode(record: dict[str, Any]) -> str:
    return (
        f"One episode of {record['model']} ({record['train_images']} + {record['val_images']} "
        f"images): {record['cpu_seconds']} s of CPU time on {record['threads']} thread(s), the "
        f"machine busy; {record['share_in_the_network']:.0%} of it inside the network's forward "
        "and backward passes."
    )


def _searches(records: list[dict[str, Any]]) -> str:
    records.sort(key=lambda r: [str(r["job"][key]) for key in ("target", "budgets", "agent")])
    lines = [
        "Searches from that float network; one seed, 5 000 training and 2 500 validation images an "
        "episode, one thread of a busy machine. *Drop* is in points of test accuracy, from the "
        "float network to the end. *uniform* is the best of the same bits everywhere, lowered from "
        "the last layer on until they keep the budget. Each record names the commit that made it.",
        "",
        "| target | budget | agent | policies evaluated | achieved | after its epoch: test (val) "
        "| after one epoch of all: test (val) | drop | s per evaluation |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_row(record) for record in records)])


def _row(record: dict[str, Any]) -> str:
    job, budget = record["job"], record["budgets"][0]
    acts = "" if job["act_bits"] is None else f", {job['act_bits']}-bit activations"
    drop = 100 * (record["float_test_accuracy"] - record["final_test_accuracy"])
    cells = [
        job["target"] or "-",
        f"{budget['asked']}{acts}",
        job["agent"] + (" (paper)" if job["paper"] else ""),
        str(record["evaluations"]),
        f"{budget['achieved']:,.4g} of {budget['limit']:,.4g} {budget['unit']}",
        f"{record['episode_test_accuracy']:.2%} ({record['episode_val_accuracy']:.2%})",
        f"{record['final_test_accuracy']:.2%} ({record['final_val_accuracy']:.2%})",
        f"{drop:.2f}",
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
        for run in arguments[2:]:
            publish(run, arguments[1])
    else:
        write_readme()


if __name__ == "__main__":
    main(sys.argv[1:])
