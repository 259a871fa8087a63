"""How far the sensitivities explain what policies near the optimum are worth, and what is left.

python results/benchmarks/neighbours.py --weights W.safetensors --data cifar10:DIR --budget B

The policies are those that the agent ilp plays: the optimum, and optima of doubted sensitivities.
Each is scored, statistics corrected, by its divergence from the float network on two disjoint
halves of the validation images. Adds a row for the budget to results/reference/neighbours.json:
rank correlations of the sum of the sensitivities with the divergence, of the two halves with each
other, and of what the sum leaves unexplained in one half with what it leaves in the other. Where
that last one is high, there is something for an agent to learn; "best" says how much: by how much
the policy that is best on one half beats the optimum on the other.
"""

import argparse
import json

import numpy as np
import torch
from scipy.stats import spearmanr

from haq.agents import play
from haq.agents.ilp import Ilp
from haq.allocation.sensitivities import objective, widths
from haq.allocation.trials import Score
from haq.datasets import load
from haq.envs.quantization import QuantizationEnv
from haq.formats.onnx.runtime import integer_answer, prepared
from haq.models.weights import load_weights
from haq.quantization.calibration import calibrate
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.places import Places
from haq.runs.plan import images_of, plan
from haq.runs.samples import Part, freeze
from haq.training.scoring import score_answers
from haq.training.teacher import teacher_from

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--budget", required=True)
parser.add_argument("--target")
parser.add_argument("--policies", type=int, default=40)
parser.add_argument("--seed", type=int, default=0)
asked = parser.parse_args()

torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()
acts = None if asked.target else 4
job = parse_job(
    model=asked.model, data="cifar10", target=asked.target, act_bits=acts, agent="ilp",
    budgets=(asked.budget,),
)  # fmt: skip
planned = plan(job, model, images_of(data))
graph = planned.graph
clips = calibrate(graph, calibration_batches(data, job.calibration_images, asked.seed))
images = sensitivity_images(data, asked.seed)
known = objective(
    sensitivity(graph, clips, images, widths(planned.table.choices), lambda *_: None),
    planned.table,
)
some = torch.cat(list(calibration_batches(data, 256, asked.seed)))
network = corrected(Places(graph, clips), some)
order = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(asked.seed))
halves = [freeze(Part(data.val, part)) for part in order.chunk(2)]
floats = [teacher_from(graph.traced)(torch.arange(len(half)), half.images) for half in halves]
lowering = None
played = []


def divergences(policy):
    """Return the divergence from the float network on both halves."""
    global lowering
    made = network(policy)
    lowering = lowering or prepared(made, halves[0].images[:2])
    answer = integer_answer(lowering, made)
    pairs = zip(halves, floats, strict=True)
    return [score_answers(answer, half, reference=reference).loss for half, reference in pairs]


def evaluate(policy):
    """Remember what the policy is worth on both halves."""
    played.append(divergences(policy))
    return Score(1.0, played[-1][0])


env = QuantizationEnv(planned.table, evaluate, planned.budgets, sensitivity=known)
sums = [
    episode.notes["predicted"]
    for episode in play(Ilp(env, asked.policies, asked.seed), env, asked.policies)
]
one, other = np.array(played).T
line = np.polyfit(sums, np.array(played), 1)  # of both halves at once
left = np.array(played) - np.outer(sums, line[0]) - line[1]
picked = int(one.argmin())
row = {
    "model": asked.model, "target": asked.target, "budget": asked.budget, "act_bits": acts,
    "seed": asked.seed, "policies": len(sums), "images": [len(half) for half in halves],
    "optimum": played[0], "median": np.median(played, axis=0).tolist(),
    "best": {"episode": picked, "here": one[picked], "there": other[picked]},
    "sum_with_divergence": round(float(spearmanr(sums, one)[0]), 3),
    "half_with_half": round(float(spearmanr(one, other)[0]), 3),
    "unexplained_half_with_half": round(float(spearmanr(*left.T)[0]), 3),
    "unexplained_share_of_variance": round(float(left[:, 0].var() / one.var()), 3),
    **script_provenance(),
}  # fmt: skip
place = REFERENCE / "neighbours.json"
rows = json.loads(place.read_text())["rows"] if place.exists() else []
rows = [old for old in rows if (old["budget"], old["target"]) != (asked.budget, asked.target)]
results.write_json(place, {"what": __doc__.splitlines()[0], "rows": [*rows, row]})
print(row)
