"""How well the surrogates of HAQ-Bench predict policies that they were not fitted on.

python results/benchmarks/bench_surrogate.py [NAME ...]

Every policy of a table is predicted by surrogates that were fitted without it (five parts, by its
place in the file). Writes results/reference/haq-bench.json: error and rank correlation, of all and
of the policies of each budget, beside those of the sum of the sensitivities.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from haq.allocation.sensitivities import objective
from haq.bench.environment import log_odds, logarithms
from haq.bench.surrogate import fit_surrogate
from haq.bench.table import Bench, read_bench
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

PARTS = 5


def held_out(bench: Bench, values: np.ndarray) -> np.ndarray:
    """Return what surrogates that do not know a policy predict of it."""
    predicted = np.zeros(len(bench))
    for part in range(PARTS):
        known = [at for at in range(len(bench)) if at % PARTS != part]
        rest = np.arange(part, len(bench), PARTS)
        surrogate = fit_surrogate(bench, values, known)
        predicted[rest] = surrogate.predict([bench.drawn[at].policy for at in rest])
    return predicted


def ranks(one: np.ndarray, other: np.ndarray) -> float:
    """Return a rank correlation."""
    return round(float(spearmanr(one, other)[0]), 3)


def row_of(name: str, bench: Bench) -> dict[str, Any]:
    """Return what there is to say of a table."""
    started = time.process_time()
    truth = logarithms(bench.figures["divergence"])
    predicted = held_out(bench, truth)
    seconds = time.process_time() - started
    odds = log_odds(bench.figures["accuracy"])
    right = 1 / (1 + np.exp(held_out(bench, odds)))
    table = bench.subject.costs()
    goal = objective(bench.subject.sensitivity, table)
    sums = np.array([
        sum(goal[n][table.positions[n][bits]] for n, bits in one.policy.items())
        for one in bench.drawn
    ])  # fmt: skip
    near = np.array([one.family in ("doubted", "moved") for one in bench.drawn])
    settings = [one.setting for one in bench.drawn]
    groups = {}
    for setting in dict.fromkeys(s for s in settings if s):
        mine = np.array([one == setting for one in settings])
        groups[setting] = {
            "policies": int(mine.sum()),
            "rank_correlation": ranks(predicted[mine], truth[mine]),
            "near_the_optimum": ranks(predicted[mine & near], truth[mine & near]),
            "sum_of_sensitivities_near_the_optimum": ranks(sums[mine & near], truth[mine & near]),
        }
    error = predicted - truth
    return {
        "table": name, "model": bench.subject.model, "data": bench.subject.about["data"],
        "policies": len(bench), "kilobytes": Path(_place(name)).stat().st_size // 1024,
        "divergence": {
            "mean_error_of_logarithm": round(float(np.abs(error).mean()), 4),
            "explained_share": round(float(1 - error.var() / truth.var()), 4),
            "rank_correlation": ranks(predicted, truth),
            "sum_of_sensitivities": ranks(sums, truth),
        },
        "accuracy": {
            "mean_error": round(float(np.abs(right - bench.figures["accuracy"]).mean()), 4),
            "rank_correlation": ranks(right, bench.figures["accuracy"]),
        },
        "settings": groups, "cpu_seconds_of_a_fit": round(seconds / PARTS, 2),
        "about": {k: bench.subject.about[k] for k in ("images", "float_val_accuracy", "machine")},
    }  # fmt: skip


def _place(name: str) -> Path:
    return Path("results/haq-bench") / f"{name}.parquet"


def main(names: list[str]) -> None:
    """Describe the tables."""
    names = names or [path.stem for path in sorted(Path("results/haq-bench").glob("*.parquet"))]
    rows = [row_of(name, read_bench(_place(name))) for name in names]
    record = {"what": __doc__.splitlines()[0], "rows": rows, **script_provenance()}
    write_json(REFERENCE / "haq-bench.json", record)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(sys.argv[1:])
