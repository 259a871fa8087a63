"""How often an accuracy target that is reported as met is exceeded on images nobody looked at.

python results/benchmarks/accuracy_target.py

Fifty searches on the digits with --max-drop: ten float networks, trained from different seeds, at
drops of 1, 1.5, 2, 3 and 5 points. Writes a row to results/reference/accuracy-target.json as each
search ends, and leaves out those that stand there. A violation is a target reported as met whose
drop on the test images is larger by more than their own noise explains (the one-sided 95 % bound
from below); "above" counts drops on the test images that are larger at all.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

from haq.datasets import load
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.job import parse_job
from haq.runs.run import run

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="digits_cnn")
parser.add_argument("--drops", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
parser.add_argument("--seeds", type=int, default=10)
parser.add_argument("--rounding-steps", type=int, default=50)
asked = parser.parse_args()

torch.set_num_threads(1)
place = REFERENCE / "accuracy-target.json"
images = len(load("digits").test)


def rows():
    """Return the rows that stand in the record."""
    return runs.read_json(place)["rows"] if place.exists() else []


def searched(seed, drop, weights):
    """Return the row of one search, and keep its float network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if weights.exists():
            (folder / "float.safetensors").write_bytes(weights.read_bytes())
        started = time.process_time()
        job = parse_job(
            model=asked.model, max_drop=drop, seed=seed, rounding_steps=asked.rounding_steps
        )
        summary = run(job, folder)
        seconds = time.process_time() - started
        weights.write_bytes((folder / "float.safetensors").read_bytes())
    target = summary["accuracy_target"]
    test_drop = summary["float_test_accuracy"] - summary["final_test_accuracy"]
    return {
        "model": asked.model, "seed": seed, "max_drop": drop / 100, "met": target["met"],
        "verifications": len(target["verifications"]), "drop": target["drop"],
        "bound": target["bound"], "test_drop": round(test_drop, 6), "size": summary["cost"]["size"],
        "share_of_8_bits": summary["cost"]["size"] / summary["budgets"][0]["limit"],
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def above_noise(row):
    """Return whether a drop on the test images is above the target by more than 1.645 errors."""
    away = row["test_drop"] - row["max_drop"]
    return away > 1.645 * (max(abs(row["test_drop"]), 1 / images) / images) ** 0.5


with tempfile.TemporaryDirectory() as floats:
    for seed, drop in itertools.product(range(asked.seeds), asked.drops):
        if any((r["seed"], r["max_drop"]) == (seed, drop / 100) for r in rows()):
            continue
        table = [*rows(), searched(seed, drop, Path(floats) / f"{seed}.safetensors")]
        met = [row for row in table if row["met"]]
        record = {
            "what": __doc__.splitlines()[0], "runs": len(table), "met": len(met),
            "violations": sum(map(above_noise, met)),
            "above": sum(row["test_drop"] > row["max_drop"] for row in met),
            "most_verifications": max(row["verifications"] for row in table),
            "test_images": images, "rows": table, **script_provenance(),
        }  # fmt: skip
        runs.write_json(place, record)
        print(table[-1], flush=True)
