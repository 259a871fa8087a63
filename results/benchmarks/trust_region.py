"""How much nearer to the float network agents come than the integer program, under any budget.

python results/benchmarks/trust_region.py --weights W.safetensors --data cifar10:DIR --seeds 0

``trust`` and ``guided`` play as many episodes as a search would, each from the policy of ``ilp``;
policies are scored on half of the validation images, statistics corrected, nothing trained. Then
the answer is confirmed on training images, as in a search (haq.runs.confirm). The best policy by
its score ("scored") and the one that is handed on ("confirmed") are judged against the policies of
``ilp`` and of ``uniform`` (its best width and the next one lowered, the better by score) on the
test images, image by image. A seed has another half, other images for the sensitivities and other
draws. Writes a row to results/reference/trust-region.json as each agent ends, and leaves out those
that stand there.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

from haq.agents import AGENTS, play
from haq.allocation.trials import Score, Trial, best, rank
from haq.datasets import load
from haq.envs.quantization import QuantizationEnv
from haq.models.weights import load_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.confirm import confirmed
from haq.runs.evaluation import labeled
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.samples import Part
from haq.runs.state import Search
from haq.training.scoring import logits

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--budgets", nargs="+", default=["avg_weight_bits=2.25"],
                    help="Or TARGET:BUDGET.")  # fmt: skip
parser.add_argument("--agents", nargs="+", default=["trust", "guided"])
parser.add_argument("--episodes", type=int, default=60)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--test-images", type=int, default=10_000)
asked = parser.parse_args()

torch.set_num_threads(1)
place = REFERENCE / "trust-region.json"
data = load(asked.data)


def divergences(answers, reference):
    """Return the divergence of each image."""
    gap = reference.log_softmax(1) - answers.log_softmax(1)
    return (reference.softmax(1) * gap).sum(1).double().numpy()


def compared(evaluation, planned, policies, split):
    """Return the divergences of policies, image by image."""
    parts = [split.batch(part)[0] for part in torch.arange(len(split)).split(500)]
    truth = [logits(planned.graph.traced, part, quick=True) for part in parts]
    for policy in policies:
        network = evaluation.network(policy)
        yield torch.cat([
            torch.from_numpy(divergences(logits(network, part, quick=True), right))
            for part, right in zip(parts, truth, strict=True)
        ]).numpy()  # fmt: skip


def judged(start, end):
    """Return by how much an answer is nearer than the start, and the interval of that."""
    difference = (end - start).mean()
    error = 1.96 * (end - start).std() / len(start) ** 0.5
    return {
        "images": len(start),
        "divergence": [round(float(start.mean()), 4), round(float(end.mean()), 4)],
        "change": round(float(difference / start.mean()), 3),
        "interval_95": [round(float((difference + sign * error) / start.mean()), 3)
                        for sign in (-1, 1)],
    }  # fmt: skip


def played(name, planned, evaluation, seed):
    """Return the episodes of an agent, and the CPU seconds of it and of its evaluations."""
    spent = 0.0

    def evaluate(policy):
        nonlocal spent
        started = time.process_time()
        score = evaluation.score(evaluation.network(policy))
        spent += time.process_time() - started
        return Score(score.accuracy, score.loss, score.stopped)

    env = QuantizationEnv(
        planned.table, evaluate, planned.budgets, evaluation.float_score.accuracy,
        float_loss=evaluation.float_score.loss, reward="loss", sensitivity=evaluation.sensitivity,
    )  # fmt: skip
    started = time.process_time()
    episodes = list(play(AGENTS[name](env, asked.episodes, seed), env, asked.episodes))
    return episodes, spent, time.process_time() - started - spent


def trial_of(number, episode):
    """Return an episode as the trial that a search would write."""
    info = episode.info
    return Trial(
        number, info["policy"], info["cost"], info["accuracy"], info["loss"], episode.reward, 0.0
    )


def row_of(key, job, planned, evaluation):
    """Play an agent, confirm its answer and judge it."""
    episodes, evaluations, own = played(key["agent"], planned, evaluation, key["seed"])
    trials = [trial_of(*numbered) for numbered in enumerate(episodes)]
    job = job.model_copy(update={"agent": key["agent"]})
    search = Search(job, Path(), planned, evaluation, None, trials, lambda _: None)
    started = time.process_time()
    confirmation = confirmed(search)
    confirming = time.process_time() - started
    scored = best(trials)
    chosen = {
        "ilp": trials[0], "uniform": min(trials[1:3], key=rank), "scored": scored,
        "confirmed": scored if confirmation is None else confirmation.trial,
    }  # fmt: skip
    test = Part(data.test, torch.arange(asked.test_images))
    distinct = {trial.episode: trial.policy for trial in chosen.values()}
    each = dict(zip(distinct, compared(evaluation, planned, distinct.values(), test), strict=True))
    apart = {name: each[trial.episode] for name, trial in chosen.items()}
    return key | {
        "test": {
            f"{name} against {rival}": judged(apart[rival], apart[name])
            for name, rival in (
                ("confirmed", "ilp"), ("confirmed", "uniform"), ("scored", "ilp"),
                ("uniform", "ilp"),
            )
        },
        "policies": {name: [(bits.weight, bits.act) for bits in trial.policy.values()]
                     for name, trial in chosen.items()},
        "chosen_episode": {name: trial.episode for name, trial in chosen.items()},
        "losses": [round(trial.loss, 4) for trial in trials],
        "confirmation": None if confirmation is None else confirmation.summary,
        "cpu_seconds": {"evaluations": round(evaluations, 1), "agent": round(own, 2),
                        "confirmation": round(confirming, 1)},
    }  # fmt: skip


def prepared(budget, seed):
    """Return the job, the plan and the evaluation of a search."""
    target, _, limit = budget.rpartition(":")
    how = {"target": target} if target else {"act_bits": 4}
    job = parse_job(
        model=asked.model, width=asked.width, data="cifar10", agent="guided", evaluation="cheap",
        budgets=(limit,), seed=seed, threads=1, final_epochs=0, **how,
    )  # fmt: skip
    model = fresh_model(asked.model, data, width=asked.width, seed=0)
    load_weights(model, asked.weights)
    model.eval()
    planned = plan(job, model, images_of(data))
    with tempfile.TemporaryDirectory() as folder:
        return job, planned, labeled(job, Path(folder), planned, data, lambda _: None)


def rows():
    """Return the rows that stand in the record."""
    return runs.read_json(place)["rows"] if place.exists() else []


for seed, budget in itertools.product(asked.seeds, asked.budgets):
    prepared_once = None
    for agent in asked.agents:
        key = {"model": asked.model, "weights": Path(asked.weights).stem, "data": data.name,
               "budget": budget, "agent": agent, "episodes": asked.episodes,
               "seed": seed}  # fmt: skip
        if any(key.items() <= row.items() for row in rows()):
            continue
        prepared_once = prepared_once or prepared(budget, seed)
        row = row_of(key, *prepared_once)
        record = {"what": __doc__.splitlines()[0], "rows": [*rows(), row], **script_provenance()}
        runs.write_json(place, record)
        shown = ("budget", "agent", "seed", "test", "chosen_episode", "cpu_seconds")
        print({name: row[name] for name in shown}, flush=True)
