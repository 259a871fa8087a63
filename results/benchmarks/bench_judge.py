"""What the answers of agents on HAQ-Bench are worth when they are evaluated.

python results/benchmarks/bench_judge.py NAME --weights W.safetensors --data cifar10:DIR

Every policy that ``bench_agents.py`` ended with is evaluated once on 4 000 validation images that
neither the table nor the surrogate knows: with corrected statistics, and under the budgets of few
bits after the same epoch of 2 500 images too, from the same seed. What each image says stands in
--folder as it comes, a file a network, and the same command goes on from there. Then
results/reference/bench-judged.json is written from what there is: means of the seeds, and
differences from uniform, ilp and random, image by image, with 95 % intervals. What another seed of
training makes of a network is no part of these; --again trains with one more.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_agents import BLIND, PAPER, record
from haq_bench import EPOCH, Network, answer_of, network_of, tuned_model
from scipy.stats import spearmanr

from haq.allocation.policy import Bits
from haq.bench.table import read_bench
from haq.distillation.kd import divergences
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import read_json, write_json

OTHERS = slice(1000, 5000)
"""Validation images, in the table's random order, that no answer was chosen by."""

TUNED = ("avg_weight_bits=2.25 a4", "bismo-edge latency=35%w8a8", "bismo-cloud latency=35%w8a8")
"""Budgets whose answers are fine-tuned: those where uniform answers have at most 3 bits."""

AGENTS = ("uniform", "ilp", "guided", "ddpg", PAPER, "random")
"""Whose answers come first, in this order, and are fine-tuned."""

UNTUNED = (BLIND, "optimum")
"""Whose answers are evaluated without training alone."""

RIVALS = ("uniform", "ilp", "random", BLIND)
"""With whom all are compared."""

PLACE = REFERENCE / "bench-judged.json"


class Task(NamedTuple):
    """A network to evaluate: a policy as text, and the seed of its epoch or None."""

    policy: str
    seed: int | None

    def file(self, folder: Path) -> Path:
        """Return where its figures stand."""
        name = hashlib.sha256(f"{self.seed} {self.policy}".encode()).hexdigest()[:20]
        return folder / f"{name}.npz"


class Figures(NamedTuple):
    """What the images say of a network, (images,) each."""

    divergence: np.ndarray
    right: np.ndarray


def tasks(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Task]:
    """Return what is to be evaluated, the most telling first, each once."""
    order = sorted(rows, key=lambda r: (r["seed"], *_rank(r)))
    found = [Task(row["policy"], None) for row in order]
    for seed in seeds:
        found += [
            Task(row["policy"], seed) for row in order
            if row["setting"] in TUNED and row["agent"] not in UNTUNED
        ]  # fmt: skip
    return list(dict.fromkeys(found))


def _rank(row: dict[str, Any]) -> tuple[int, int]:
    agent = AGENTS.index(row["agent"]) if row["agent"] in AGENTS else len(AGENTS)
    setting = TUNED.index(row["setting"]) if row["setting"] in TUNED else len(TUNED)
    return setting, agent


def evaluated(net: Network, task: Task) -> Figures:
    """Return what the images that judge say of a network."""
    bits = [Bits(*map(int, pair.split(","))) for pair in task.policy.split()]
    policy = dict(zip([layer.name for layer in net.subject.layers], bits, strict=True))
    model = net.network(policy) if task.seed is None else tuned_model(net, policy, EPOCH, task.seed)
    answers = answer_of(net, model, OTHERS.stop)[OTHERS]
    labels = net.data.val.labels[net.order[OTHERS]]
    return Figures(
        divergences(answers, net.answers[OTHERS]).numpy(), (answers.argmax(1) == labels).numpy()
    )


def evaluate_all(asked: argparse.Namespace, todo: Sequence[Task]) -> None:
    """Evaluate what is not evaluated yet, until the CPU minutes are spent."""
    left = [task for task in todo if not task.file(asked.folder).exists()]
    print(f"{len(left)} of {len(todo)} networks are to be evaluated", flush=True)
    if not left or not asked.minutes:
        return
    net, started = network_of(asked), time.process_time()
    for task in left:
        if time.process_time() - started > 60 * asked.minutes:
            return
        figures = evaluated(net, task)
        np.savez_compressed(task.file(asked.folder), **figures._asdict())


def read(task: Task, folder: Path) -> Figures | None:
    """Return what is known of a network, None where it is not evaluated yet."""
    if not task.file(folder).exists():
        return None
    with np.load(task.file(folder)) as file:
        return Figures(file["divergence"], file["right"].astype(float))


def compared(
    rows: Sequence[dict[str, Any]], folder: Path, seeds: Sequence[int | None]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each budget and agent of which something was evaluated.

    Args:
        rows: What was played on one table.
        folder: Of the figures.
        seeds: Of the epochs whose mean counts, or None alone for networks that are not trained.
    """
    for setting in dict.fromkeys(row["setting"] for row in rows):
        known: dict[str, list[Figures]] = {}
        for row in (row for row in rows if row["setting"] == setting):
            each = [read(Task(row["policy"], seed), folder) for seed in seeds]
            there = [one for one in each if one is not None]
            if len(there) == len(seeds):
                mean = [np.mean(several, axis=0) for several in zip(*there, strict=True)]
                known.setdefault(row["agent"], []).append(Figures(*mean))
        for agent, several in known.items():
            yield {
                "table": rows[0]["table"], "setting": setting, "agent": agent,
                "trained_images": 0 if seeds[0] is None else EPOCH, "epochs": len(seeds),
                "divergence": [float(one.divergence.mean()) for one in several],
                "accuracy": [float(one.right.mean()) for one in several],
                "against": {
                    rival: against(several, known[rival])
                    for rival in RIVALS if rival in known and rival != agent
                },
            }  # fmt: skip


def against(mine: Sequence[Figures], rivals: Sequence[Figures]) -> dict[str, list[float]]:
    """Return differences of the means of the seeds, image by image, with 95 % intervals."""
    one, other = (
        Figures(*np.mean(several, axis=1)) for several in (_columns(mine), _columns(rivals))
    )
    return {
        "divergence": interval(one.divergence - other.divergence),
        "accuracy": interval(one.right - other.right),
    }


def _columns(several: Sequence[Figures]) -> list[np.ndarray]:
    return [np.stack(column) for column in zip(*several, strict=True)]


def interval(values: np.ndarray) -> list[float]:
    """Return the mean of some values with its 95 % interval."""
    mean, error = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return [round(number, 6) for number in (mean, mean - error, mean + error)]


def trusted(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, dict[str, float]]:
    """Return how what agents were told of their answers ranks these, beside the evaluation."""
    result = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        pairs = {
            row["policy"]: (row["divergence"], float(figures.divergence.mean()))
            for row in rows
            if row["setting"] == setting and (figures := read(Task(row["policy"], None), folder))
        }
        if len(pairs) > 2:
            told, real = np.array(list(pairs.values())).T
            result[setting] = {
                "answers": len(pairs),
                "rank_correlation": round(float(spearmanr(told, real)[0]), 3),
                "evaluated_over_told": round(float(np.exp(np.log(real / told).mean())), 3),
            }
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the answers on a table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--folder", type=Path, help="runs/haq-bench/NAME/judged without it.")
    parser.add_argument("--minutes", type=float, default=1e9, help="CPU minutes; 0 writes alone.")
    parser.add_argument("--again", action="store_true", help="Train with a second seed too.")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    subject = read_bench(Path("results/haq-bench") / f"{asked.name}.parquet").subject
    about = subject.about
    asked.model, asked.width, asked.seed = subject.model, about["width"], about["seed"]
    asked.images = about["images"]["scored"]
    asked.folder = asked.folder or Path("runs/haq-bench") / asked.name / "judged"
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in record()["played"] if row["table"] == asked.name]
    seeds = (0, 1) if asked.again else (0,)
    evaluate_all(asked, tasks(rows, seeds))
    before = read_json(PLACE) if PLACE.exists() else {"judged": [], "trusted": {}}
    others = [row for row in before["judged"] if row["table"] != asked.name]
    mine = [*compared(rows, asked.folder, (None,)), *compared(rows, asked.folder, seeds)]
    write_json(PLACE, {
        "what": __doc__.splitlines()[0], "judged": [*others, *mine],
        "trusted": {**before["trusted"], asked.name: trusted(rows, asked.folder)},
        **script_provenance(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
