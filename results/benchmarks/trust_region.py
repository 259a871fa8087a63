"""How much nearer to the float network the trust region comes than the integer program.

python results/benchmarks/trust_region.py --weights W.safetensors --data cifar10:DIR --seeds 0

``trust`` and ``guided`` play as many episodes as a search would, each from the policy of ``ilp``;
policies are scored on half of the validation images, statistics corrected, nothing trained. The
answer of ``trust`` is its best candidate, that of ``guided`` its best episode. They are judged
against the policy of ``ilp`` on the other half of the validation images and on test images, image
by image. A seed has other halves, other images for the sensitivities and other draws. Writes a row
to results/reference/trust-region.json as each agent ends, and leaves out those that stand there.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from haq.agents import AGENTS, play
from haq.agents.trust_region import TrustRegion
from haq.allocation.trials import Score
from haq.datasets import load
from haq.envs.quantization import QuantizationEnv
from haq.models.weights import load_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.evaluation import labeled
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.samples import Part
from haq.training.scoring import logits

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--limit", type=float, default=2.25, help="Average bits of the weights.")
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


def row_of(key, planned, evaluation):
    """Play an agent and judge its answer."""
    episodes, evaluations, own = played(key["agent"], planned, evaluation, key["seed"])
    losses = [episode.info["loss"] for episode in episodes]
    answers = [
        at for at, one in enumerate(episodes)
        if key["agent"] != "trust" or at < TrustRegion.references or one.notes["region"]
    ]  # fmt: skip
    number = min(answers, key=losses.__getitem__)
    uniform = min(episodes[1:3], key=lambda episode: episode.info["loss"])
    chosen = [episodes[0], episodes[number], uniform]
    policies = [episode.info["policy"] for episode in chosen]
    generator = torch.Generator().manual_seed(key["seed"])
    torch.randperm(len(data.train), generator=generator)  # as the evaluator draws them
    others = torch.randperm(len(data.val), generator=generator)[evaluation_images:]
    test = torch.arange(asked.test_images)
    start, end = compared(evaluation, planned, policies[:2], Part(data.val, others))
    on_test = list(compared(evaluation, planned, policies, Part(data.test, test)))
    return key | {
        "validation": judged(start, end), "test": judged(on_test[0], on_test[1]),
        "uniform_on_test": judged(on_test[0], on_test[2]),
        "start": [bits.weight for bits in policies[0].values()],
        "end": [bits.weight for bits in policies[1].values()],
        "chosen_episode": number, "losses": [round(loss, 4) for loss in losses],
        "candidates": [
            {"episode": at, "region": int(one.notes["region"]), "loss": round(losses[at], 4)}
            for at, one in enumerate(episodes) if one.notes.get("region")
        ],
        "cpu_seconds": {"evaluations": round(evaluations, 1), "agent": round(own, 2)},
    }  # fmt: skip


def prepared(seed):
    """Return the plan and the evaluation of a search."""
    job = parse_job(
        model=asked.model, width=asked.width, data="cifar10", agent="guided", evaluation="cheap",
        budgets=(f"avg_weight_bits={asked.limit:g}",), act_bits=4, seed=seed, threads=1,
        final_epochs=0,
    )  # fmt: skip
    model = fresh_model(asked.model, data, width=asked.width, seed=0)
    load_weights(model, asked.weights)
    model.eval()
    planned = plan(job, model, images_of(data))
    with tempfile.TemporaryDirectory() as folder:
        return planned, labeled(job, Path(folder), planned, data, lambda _: None), job.val_images


def rows():
    """Return the rows that stand in the record."""
    return runs.read_json(place)["rows"] if place.exists() else []


for seed in asked.seeds:
    prepared_once = None
    for agent in asked.agents:
        key = {"model": asked.model, "weights": Path(asked.weights).stem, "data": data.name,
               "avg_weight_bits": asked.limit, "act_bits": 4, "agent": agent,
               "episodes": asked.episodes, "seed": seed}  # fmt: skip
        if any(key.items() <= row.items() for row in rows()):
            continue
        planned, evaluation, evaluation_images = prepared_once = prepared_once or prepared(seed)
        row = row_of(key, planned, evaluation)
        record = {"what": __doc__.splitlines()[0], "rows": [*rows(), row], **script_provenance()}
        runs.write_json(place, record)
        print({name: row[name] for name in row if name != "losses"}, flush=True)
