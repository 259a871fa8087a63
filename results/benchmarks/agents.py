"""What the agents find under the same budgets with as many cheap evaluations each.

python results/benchmarks/agents.py --weights W.safetensors --data cifar10:DIR

Writes a row to results/reference/agents.json as each search ends, and leaves out those that stand
there for this version of haq, so that it can be stopped and started again. Each search has a
process to itself. Episodes correct statistics and validate on 2500 images; the three best (and
the known answers that an agent begins with) get an epoch of 5000 training images with the float
network as a teacher, and the most accurate of those on validation images is the one that is
tested. The episodes' reward is the divergence from the float network ("agreement") but for ddpg,
which follows the paper and looks at the accuracy. Test accuracies are those of the file in ONNX
Runtime. CPU and wall seconds leave out the tests and the reading of the data.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import resource
import time
from importlib.metadata import version
from pathlib import Path

import torch

from haq.allocation.trials import best
from haq.datasets import load
from haq.formats.onnx.runtime import integer_answer, prepared
from haq.models.weights import load_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.evaluation import labeled
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.training.scoring import score_answers

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--budgets", nargs="+", required=True)
parser.add_argument("--agents", nargs="+", default=["ilp", "guided", "random", "uniform", "ddpg"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--episodes", type=int, default=40)
parser.add_argument("--act-bits", type=int, default=4)
parser.add_argument("--target")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--folder", type=Path, default=Path("results/agents"), help="Of the runs.")
asked = parser.parse_args()

REWARD = {"ddpg": "accuracy"}

torch.set_num_threads(asked.threads)
place = REFERENCE / "agents.json"
data = load(asked.data)
len(data.test)  # is read at its first use


def rows():
    """Return the rows that stand in the record."""
    return json.loads(place.read_text())["rows"] if place.exists() else []


def spent(started):
    """Return the CPU and wall seconds since then."""
    return [round(now - then, 1) for now, then in zip(clocks(), started, strict=True)]


def clocks():
    """Return the CPU and wall seconds so far."""
    return time.process_time(), time.perf_counter()


def once(tuned):
    """Fine-tune each policy once, and hand out copies."""
    networks = {}

    def network(policy):
        key = tuple(sorted(policy.items()))
        if key not in networks:
            networks[key] = tuned(policy)
        return copy.deepcopy(networks[key])

    return network


def search(key):
    """Search as the key says, and add a row to the record."""
    agent = key["agent"]
    fields = {
        name: key[name]
        for name in ("model", "width", "target", "act_bits", "agent", "reward", "seed", "episodes")
    }
    job = parse_job(
        **fields, data="cifar10", budgets=(key["budget"],), evaluation="cheap", finalists=3,
        final_epochs=0, rounding_steps=0, threads=asked.threads,
    )  # fmt: skip
    job = job.model_copy(update={"paper": agent == "ddpg"})
    model = fresh_model(asked.model, data, width=asked.width, seed=0)
    load_weights(model, asked.weights)
    model.eval()
    name = "-".join(str(value) for value in key.values() if value is not None)
    folder = asked.folder / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_job(folder, job)
    begun = runs.read_trials(folder)

    started = clocks()
    planned = plan(job, model, images_of(data))
    evaluation = labeled(job, folder, planned, data, lambda _: None)
    evaluation = evaluation._replace(test=None, tuned=once(evaluation.tuned))
    preparation = spent(started)
    summary = play(job, folder, planned, evaluation)
    cpu, wall = spent(started)

    trials = runs.read_trials(folder)
    tuned = max(
        summary["finalists"], key=lambda row: (row["tuned_val_accuracy"], -row["tuned_val_loss"])
    )
    lowering = prepared(evaluation.network(trials[0].policy), data.test.batch(torch.arange(2))[0])

    def tested(network):
        return score_answers(integer_answer(lowering, network), data.test).accuracy

    chosen = trials[tuned["episode"]].policy
    row = key | {
        "evaluations": summary["evaluations"],
        "stopped": sum(trial.stopped for trial in trials),
        "first": scored(trials[0]), "best": scored(best(trials)),
        "late_mean_val_accuracy": sum(t.accuracy for t in trials[-10:]) / len(trials[-10:]),
        "finalists": summary["finalists"],
        "chosen_episode": tuned["episode"],
        "chosen_val_accuracy": tuned["tuned_val_accuracy"],
        "chosen_val_loss": tuned["tuned_val_loss"],
        "test_accuracy": tested(evaluation.tuned(chosen)),
        "untuned_test_accuracy": tested(evaluation.network(best(trials).policy)),
        "budget_achieved": summary["budgets"][0]["achieved"],
        "preparation_cpu_seconds": preparation[0],
        "cpu_seconds": None if begun else cpu,
        "wall_seconds": None if begun else wall,
        "seconds_per_evaluation": summary["seconds_per_evaluation"],
        "resumed": bool(begun),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **script_provenance(),
    }  # fmt: skip
    record = {"what": __doc__.splitlines()[0], "rows": [*rows(), row]}
    runs.write_json(place, record)
    shown = ("budget", "target", "agent", "seed", "first", "best", "chosen_val_accuracy",
             "test_accuracy", "untuned_test_accuracy", "cpu_seconds")  # fmt: skip
    print({name: row[name] for name in shown}, flush=True)


def scored(trial):
    """Return what a trial was worth."""
    return {"episode": trial.episode, "val_accuracy": trial.accuracy, "val_loss": trial.loss}


# The data are read once; a process of its own tells what each search takes.
processes = multiprocessing.get_context("fork")
for seed, budget, agent in itertools.product(asked.seeds, asked.budgets, asked.agents):
    key = {
        "model": asked.model, "width": asked.width, "data": data.name, "target": asked.target,
        "budget": budget, "act_bits": None if asked.target else asked.act_bits, "agent": agent,
        "reward": REWARD.get(agent, "agreement"), "seed": seed, "episodes": asked.episodes,
    }  # fmt: skip
    mine = [row for row in rows() if row["versions"]["haq"] == version("haq")]
    if not any(key.items() <= row.items() for row in mine):
        process = processes.Process(target=search, args=[key])
        process.start()
        process.join()
