"""Which reward ranks policies as their own epoch of training does.

python results/benchmarks/ranking.py [NAME ...]

NAME is a table of results/haq-bench (all of them without one), of which some policies were trained
(``haq_bench.py --stage trained``). Truth is the divergence from the float network after an epoch of
a policy of its own, on 1 000 validation images that no candidate saw; the mean of two epochs of
different seeds where there are two. A candidate is what could be known of the policy before that.
Writes results/reference/ranking.json: rank correlations with 95 % intervals (bootstrap over the
policies) for random policies within a budget, and for the best of doubted sensitivities.
"all_images" is the correlation with the first epoch's divergence on all validation images, which
is less noisy and shares images with the candidates; "those_with_steps" repeats that for the
policies of which a few steps were trained.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from haq.bench.table import Bench, read_bench
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

CANDIDATES = {
    "divergence, nothing trained, 500 images": ("divergence_500", 1),
    "divergence, nothing trained, 1 000 images": ("divergence_1000", 1),
    "divergence, nothing trained, 4 000 images": ("divergence_4000", 1),
    "accuracy, nothing trained, 4 000 images": ("accuracy_4000", -1),
    "divergence after 8 steps of training, 1 000 images": ("steps_divergence_1000", 1),
    "divergence after 8 steps of training, 4 000 images": ("steps_divergence_4000", 1),
    "accuracy after an epoch, 4 000 images": ("trained_accuracy_4000", -1),
    "divergence after an epoch, 4 000 images": ("trained_divergence_4000", 1),
}
"""What is known of a policy: a column of the table, and the sign that makes high values bad."""

EPOCHS = ("trained_accuracy_4000", "trained_divergence_4000")
"""Candidates that are the truth's own first epoch: the second one alone judges them, where there is
one. Else the accuracy is judged by the divergence of the very same network, on other images."""

FAMILIES = {"budget": "random", "doubted": "near the optimum"}
RESAMPLES = 2000
LEAST = 5
"""Policies of which a rank correlation is worth naming."""


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two rows of numbers; NaN where one is constant."""
    ranks = rankdata(one), rankdata(other)
    if min(np.ptp(row) for row in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def interval(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Return the 95 % interval of their rank correlation, by bootstrap over the policies."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(one), size=(RESAMPLES, len(one)))
    values = [correlation(one[at], other[at]) for at in drawn]
    return [round(float(value), 3) for value in np.nanpercentile(values, [2.5, 97.5])]


def judged(bench: Bench, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the truth of some policies: the mean of their epochs, and the second one alone."""
    first = bench.figures["trained_divergence"][chosen]
    again = bench.figures.get("again_divergence")
    if again is None or not np.isfinite(again[chosen]).all():
        return first, None
    return (first + again[chosen]) / 2, again[chosen]


def on_all_images(bench: Bench, chosen: np.ndarray) -> np.ndarray:
    """Return the divergence after the first epoch on all validation images, less noisy.

    Candidates were measured on most of these too.
    """
    images = bench.subject.about["images"]
    few = bench.figures["trained_divergence"][chosen]
    most = bench.figures["trained_divergence_4000"][chosen]
    share = images["rewarded"] / images.get("validation", 5000)
    return (1 - share) * few + share * most


def with_steps(bench: Bench, trained: np.ndarray) -> dict[str, Any]:
    """Return how candidates rank the policies of which a few steps were trained, on all images."""
    steps = bench.figures.get("steps_divergence_1000", np.full(len(bench), np.nan))
    chosen = trained[np.isfinite(steps[trained])]
    if len(chosen) < LEAST:
        return {}
    truth = on_all_images(bench, chosen)
    return {"count": len(chosen)} | {
        name: round(correlation(sign * bench.figures[column][chosen], truth), 3)
        for name, (column, sign) in CANDIDATES.items() if column not in EPOCHS
    }  # fmt: skip


def row_of(bench: Bench, setting: str, family: str) -> dict[str, Any] | None:
    """Return how the candidates rank the trained policies of a family under a budget."""
    if "trained_divergence" not in bench.figures:
        return None
    mine = np.array([(one.setting, one.family) == (setting, family) for one in bench.drawn])
    trained = np.flatnonzero(mine & np.isfinite(bench.figures["trained_divergence"]))
    if len(trained) < LEAST:
        return None
    ranks: dict[str, Any] = {}
    for name, (column, sign) in CANDIDATES.items():
        known = bench.figures.get(column, np.full(len(bench), np.nan))
        chosen = trained[np.isfinite(known[trained])]
        if len(chosen) < LEAST:
            continue
        truth, again = judged(bench, chosen)
        against = again if column in EPOCHS else truth
        if against is None and column == EPOCHS[0]:
            against = truth  # of the same network: what an epoch costs more than it tells
        if against is not None:
            values = sign * known[chosen]
            ranks[name] = {
                "correlation": round(correlation(values, against), 3),
                "interval": interval(values, against), "count": len(chosen),
                "all_images": round(correlation(values, on_all_images(bench, chosen)), 3),
            }  # fmt: skip
    truth, again = judged(bench, trained)
    return {
        "model": bench.subject.model, "data": bench.subject.about["data"], "setting": setting,
        "policies": FAMILIES[family], "count": len(trained), "epochs": 1 if again is None else 2,
        "epoch_images": bench.subject.about["images"]["epoch"],
        "truth": {"least": round(float(truth.min()), 4), "most": round(float(truth.max()), 4)},
        "candidates": ranks, "those_with_steps": with_steps(bench, trained),
    }  # fmt: skip


def main(names: list[str]) -> None:
    """Rank the candidates of every table."""
    folder = Path("results/haq-bench")
    places = [folder / f"{name}.parquet" for name in names] or sorted(folder.glob("*.parquet"))
    benches = [read_bench(place) for place in places]
    asked = [
        (bench, setting, family)
        for bench in benches for setting in _settings(bench) for family in FAMILIES
    ]  # fmt: skip
    rows = [row for one in asked if (row := row_of(*one))]
    means = {
        name: [
            round(float(np.mean([row["candidates"][name][key] for row in known])), 3)
            for key in ("correlation", "all_images")
        ]
        for name in CANDIDATES
        if (known := [row for row in rows if name in row["candidates"]])
    }
    record = {
        "what": __doc__.splitlines()[0], "mean_correlation": means, "rows": rows,
        **script_provenance(),
    }  # fmt: skip
    write_json(REFERENCE / "ranking.json", record)
    for name, (mean, all_images) in means.items():
        print(f"{mean:6.3f} {all_images:6.3f}  {name}")


def _settings(bench: Bench) -> list[str]:
    return list(dict.fromkeys(one.setting for one in bench.drawn if one.setting))


if __name__ == "__main__":
    main(sys.argv[1:])
