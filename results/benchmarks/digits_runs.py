"""The command README begins with, on digits, over several seeds: what is handed over.

python results/benchmarks/digits_runs.py --rule NAME

Adds rows to results/reference/digits-runs.json under the name of the rule by which finalists and
last epochs are chosen in the version of haq that runs. The test images choose nothing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json
from haq.runs.job import parse_job
from haq.runs.run import run

parser = argparse.ArgumentParser()
parser.add_argument("--rule", required=True)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--out", type=Path, default=REFERENCE / "digits-runs.json")
asked = parser.parse_args()

KEPT = (
    "float_val_accuracy", "float_test_accuracy", "episode_val_accuracy", "best_episode",
    "finalists", "rounding", "last_epochs", "final_val_accuracy", "final_test_accuracy",
)  # fmt: skip
SHOWN = ("seed", "episode_val_accuracy", "final_val_accuracy", "final_test_accuracy", "cpu_seconds")

record = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
for seed in range(asked.seeds):
    if any((row["rule"], row["seed"]) == (asked.rule, seed) for row in record["rows"]):
        continue
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(parse_job(seed=seed, threads=1), Path(folder))
    row = {"rule": asked.rule, "seed": seed}
    row |= {name: summary[name] for name in KEPT if name in summary}
    row |= {"cpu_seconds": round(time.process_time() - started, 1), **script_provenance()}
    record = {"what": __doc__.splitlines()[0], "rows": [*record["rows"], row]}
    write_json(asked.out, record)
    print({name: row.get(name) for name in SHOWN}, flush=True)
