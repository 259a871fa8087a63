"""What the agents find under the same budgets with as many cheap evaluations each.

python results/benchmarks/agents.py --weights W.safetensors --data cifar10:DIR

Writes a row to results/reference/agents.json as each search ends, and leaves out those that stand
there, so that it can be stopped and started again. Episodes correct statistics and validate; the
three best on validation images (and the first one of ilp and guided) get an epoch of 5000 images.
Test accuracy is that of the best network on validation images, before or after the epoch ("final"),
and of the best after it ("tuned"). Where the float network has seen the validation images, they
favour what was not fine-tuned: then only "tuned" compares with other agents' "tuned".
"""

import argparse
import itertools
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import torch

from haq.app import results
from haq.app.job import parse_job
from haq.app.play import play
from haq.app.prepare import fresh_model, images_of, plan
from haq.app.search import labeled
from haq.app.tables import REFERENCE, without_folders
from haq.datasets import load
from haq.models.weights import load_weights
from haq.train import score
from haq.trials import Score, best

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument(
    "--budgets", nargs="+",
    default=["avg_weight_bits=3", "avg_weight_bits=2.25", "avg_weight_bits=4"],
)  # fmt: skip
parser.add_argument("--agents", nargs="+", default=["ilp", "guided", "random", "uniform", "ddpg"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--episodes", type=int, default=40)
parser.add_argument("--reward", default="accuracy")
parser.add_argument("--act-bits", type=int, default=4)
parser.add_argument("--target")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--folder", type=Path, default=Path("results/agents"), help="Of the runs.")
asked = parser.parse_args()

torch.set_num_threads(asked.threads)
place = REFERENCE / "agents.json"
record = json.loads(place.read_text()) if place.exists() else {}
record = {"what": __doc__.splitlines()[0], "rows": record.get("rows", [])}
data = load(asked.data)
len(data.test)  # is read at its first use, which is not to count
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()
tests = {"float": score(model, data.test, quick=True).accuracy}


def tested(floats, network):
    """Score on the test images; the float network once for all rows."""
    return Score(tests["float"]) if network is floats else score(network, data.test, quick=True)


for budget, seed, agent in itertools.product(asked.budgets, asked.seeds, asked.agents):
    key = {
        "model": asked.model, "data": data.name, "target": asked.target, "budget": budget,
        "act_bits": None if asked.target else asked.act_bits, "agent": agent,
        "reward": asked.reward, "seed": seed, "episodes": asked.episodes,
    }  # fmt: skip
    if any(key.items() <= row.items() for row in record["rows"]):
        continue
    fields = {
        name: key[name] for name in ("model", "target", "act_bits", "agent", "reward", "seed")
    }
    job = parse_job(
        **fields, data="cifar10", budgets=(budget,), episodes=asked.episodes, evaluation="cheap",
        finalists=3, final_epochs=0, rounding_steps=0, threads=asked.threads,
    )  # fmt: skip
    name = "-".join(str(value) for value in key.values() if value is not None)
    folder = asked.folder / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    folder.mkdir(parents=True, exist_ok=True)
    results.write_job(folder, job)
    started, wall = time.process_time(), time.perf_counter()
    planned = plan(job, model, images_of(data))
    evaluation = labeled(job, folder, planned, data, lambda _: None)
    prepared = time.process_time()

    begun = results.read_trials(folder)
    summary = play(
        job, folder, planned, evaluation._replace(test=partial(tested, planned.graph.traced))
    )
    trials = results.read_trials(folder)
    top = best(trials)
    tuned = max(summary["finalists"], key=lambda row: row["tuned_val_accuracy"])
    network = evaluation.tuned(trials[tuned["episode"]].policy)
    record["rows"].append(
        key
        | {
            "evaluations": summary["evaluations"],
            "stopped": sum(trial.stopped for trial in trials),
            "first_val_accuracy": trials[0].accuracy,
            "best_val_accuracy": top.accuracy, "best_val_loss": top.loss,
            "best_after_episode": top.episode,
            "late_mean_val_accuracy": sum(t.accuracy for t in trials[-10:]) / len(trials[-10:]),
            "finalists": summary["finalists"],
            "final_val_accuracy": summary["final_val_accuracy"],
            "final_test_accuracy": summary["final_test_accuracy"],
            "tuned_val_accuracy": tuned["tuned_val_accuracy"],
            "tuned_test_accuracy": score(network, data.test, quick=True).accuracy,
            "float_test_accuracy": tests["float"],
            "budget_achieved": summary["budgets"][0]["achieved"],
            "preparation_cpu_seconds": round(prepared - started, 1),
            "cpu_seconds": None if begun else round(time.process_time() - started, 1),
            "wall_seconds": None if begun else round(time.perf_counter() - wall, 1),
            "evaluation_wall_seconds": summary["evaluation_seconds"],
            "resumed": bool(begun),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **results.provenance(["python", "results/benchmarks/agents.py", *sys.argv[1:]]),
        }
    )  # fmt: skip
    row = record["rows"][-1]
    row["command"] = "python results/benchmarks/" + without_folders(
        row["command"].removeprefix("python results/benchmarks/")
    )
    results.write_json(place, record)
    shown = ("budget", "agent", "first_val_accuracy", "best_val_accuracy", "tuned_val_accuracy",
             "final_test_accuracy", "tuned_test_accuracy", "cpu_seconds")  # fmt: skip
    print({name: row[name] for name in shown}, flush=True)
