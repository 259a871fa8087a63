"""How many images it takes to tell which of several policies near the optimum is better.

python results/benchmarks/images_needed.py --weights W.safetensors --data cifar10:DIR --scratch DIR

The policies are those that the integer program gives by doubted sensitivities, the undoubted one
and the uniform ones. All are evaluated as a search does, statistics corrected and nothing trained,
on validation and on training images (not augmented); their answers are kept in the scratch folder,
so that a run goes on where it stopped. Writes results/reference/images-needed.json: for some
numbers of images and temperatures of the divergence on them, means over random draws of

"rank": rank correlation with the divergence at a temperature of 1 on half of the images, others
"chosen": that divergence of the policy that is best on the images drawn, against that of ``ilp``
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from haq.agents.ilp import Ilp
from haq.agents.uniform import candidates
from haq.datasets import load
from haq.envs.quantization import QuantizationEnv
from haq.models.weights import load_weights
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.evaluation import labeled
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.training.scoring import logits

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--scratch", type=Path, required=True)
parser.add_argument("--budget", default="avg_weight_bits=2.25")
parser.add_argument("--target", default=None)
parser.add_argument("--act-bits", type=int, default=None)
parser.add_argument("--policies", type=int, default=40)
parser.add_argument("--train-images", type=int, default=10_000)
asked = parser.parse_args()

SIZES = (500, 1000, 2500, 5000)
TEMPERATURES = (1.0, 2.0, 4.0)
DRAWS = 200
torch.set_num_threads(1)
place = REFERENCE / "images-needed.json"
data = load(asked.data)
title = " ".join(
    str(part) for part in (asked.model, asked.target, asked.budget, asked.act_bits) if part
)
scratch = asked.scratch / title.replace("%", "p").replace(" ", "_")
scratch.mkdir(parents=True, exist_ok=True)


def planned_search():
    """Return the plan of a search and its evaluation."""
    more = {"target": asked.target} if asked.target else {}
    more |= {"act_bits": asked.act_bits} if asked.act_bits else {}
    job = parse_job(
        model=asked.model, width=asked.width, data="cifar10", agent="guided", evaluation="cheap",
        budgets=(asked.budget,), seed=0, threads=1, final_epochs=0, **more,
    )  # fmt: skip
    model = fresh_model(asked.model, data, width=asked.width, seed=0)
    load_weights(model, asked.weights)
    planned = plan(job, model.eval(), images_of(data))
    with tempfile.TemporaryDirectory() as folder:
        return planned, labeled(job, Path(folder), planned, data, lambda _: None)


def policies_of(planned, evaluation):
    """Return the policies by name."""
    env = QuantizationEnv(
        planned.table, lambda policy: None, planned.budgets, sensitivity=evaluation.sensitivity
    )
    agent = Ilp(env, asked.policies, 0)
    known = {f"uniform {number}": policy for number, policy in enumerate(candidates(env).values())}
    known = dict(list(known.items())[:2])
    for number in range(asked.policies):
        known[f"ilp {number}"] = env.policy(agent.propose(number).actions)
    return known


def pictures():
    """Yield the images: all of validation, then some of training."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(data.train), generator=generator)[: asked.train_images]
    for split, places in ((data.val, torch.arange(len(data.val))), (data.train, chosen)):
        for part in places.split(500):
            yield split.batch(part)[0]


def evaluate():
    """Work out the answers of all policies that are not there yet."""
    planned, evaluation = planned_search()
    evaluator = evaluation.scoring.evaluator
    floats = scratch / "float.npy"
    if not floats.exists():
        network = planned.graph.traced
        np.save(floats, torch.cat([logits(network, part, quick=True) for part in pictures()]))
    seconds = []
    for name, policy in policies_of(planned, evaluation).items():
        file = scratch / f"{name.replace(' ', '_')}.npy"
        if file.exists():
            continue
        started = time.process_time()
        network = evaluation.network(policy)
        answer = evaluator.integer_answer(network)
        ready = time.process_time()
        np.save(file, torch.cat([answer(part).cpu() for part in pictures()]))
        seconds.append((ready - started, time.process_time() - ready))
        runs.write_json(scratch / "seconds.json", seconds)
        print(name, seconds[-1], flush=True)


def log_softmax(values):
    """Return the logarithms of the softmax."""
    shifted = values - values.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def divergences(temperature=1.0):
    """Return the divergence of each policy in each image, (policies, images), and the names."""
    truth = log_softmax(np.load(scratch / "float.npy").astype(np.float64) / temperature)
    files = sorted(scratch.glob("ilp*.npy")) + sorted(scratch.glob("uniform*.npy"))
    rows = []
    for file in files:
        answers = log_softmax(np.load(file).astype(np.float64) / temperature)
        rows.append((np.exp(truth) * (truth - answers)).sum(1))
    return np.array(rows), [file.stem.replace("_", " ") for file in files]


def compared(by, truth, images, start, generator):
    """Return what choosing by some images is worth, means over many draws."""
    rank, chosen = [], []
    for _ in range(DRAWS):
        order = generator.permutation(by.shape[1])
        half = len(order) // 2
        seen = by[:, order[: min(images, half)]].mean(1)
        unseen = truth[:, order[half:]].mean(1)
        rank.append(spearmanr(seen, unseen)[0])
        chosen.append(unseen[seen.argmin()] / unseen[start] - 1)
    return {"rank": round(float(np.mean(rank)), 3), "chosen": round(float(np.mean(chosen)), 4)}


def analysed():
    """Return the row of the record."""
    plain, names = divergences()
    near = [at for at, name in enumerate(names) if name.startswith("ilp")]
    start, generator = names.index("ilp 0"), np.random.default_rng(0)
    means, gap = plain.mean(1), plain - plain[start]
    by = {temperature: divergences(temperature)[0][near] for temperature in TEMPERATURES}
    return {
        "policies": len(near), "images": plain.shape[1],
        "ilp": round(float(means[start]), 4),
        "spread": round(float(means[near].std() / means[start]), 4),
        "best": round(float(means[near].min() / means[start] - 1), 4),
        "uniform": [round(float(means[at] / means[start] - 1), 4)
                    for at in range(len(names)) if at not in near],
        "error_of_a_difference": {
            str(size): round(float(np.median(gap[near].std(1)) / size**0.5 / means[start]), 4)
            for size in SIZES
        },
        "by": [
            {"images": size, "temperature": temperature,
             **compared(values, plain[near], size, near.index(start), generator)}
            for size in SIZES for temperature, values in by.items()
        ],
    }  # fmt: skip


if len(list(scratch.glob("*.npy"))) < asked.policies + 3:  # with the float network's, two uniform
    evaluate()
row = analysed()
known = runs.read_json(place)["rows"] if place.exists() else {}
record = {"what": __doc__.splitlines()[0], "rows": known | {title: row}, **script_provenance()}
runs.write_json(place, record)
print(row)
