"""Which bits an edge and a cloud accelerator want, and what a policy costs on the other machine.

python results/benchmarks/transfer.py --model mobilenet_v2 --width 0.5 --weights W.safetensors \
    --data cifar10:DIR

Writes results/reference/transfer-MODEL.json. For each target the policy is the one with the least
sum of sensitivities within a share of its latency at 8 bits (integer program, exact); it is then
scored with corrected statistics on the validation images, and its latency is told on every target.
"""

import argparse
import time

import torch

from haq.allocation.budgets import parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import reference, tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.hw_profiles import load as load_target
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.places import Places
from haq.runs.samples import Part, freeze
from haq.training.scoring import score

EIGHT = Bits(8, 8)

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--share", type=int, default=50, help="percent of the latency at 8 bits")
parser.add_argument("--targets", default="bismo-edge,bismo-cloud,bitfusion-default")
asked = parser.parse_args()

started = time.process_time()
torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model(asked.model, data, asked.width, seed=0)
load_weights(model, asked.weights)
graph = trace(model.eval(), torch.zeros(1, *data.shape))
clips = calibrate(graph, calibration_batches(data, 512, seed=0), "kl")
images = torch.cat(list(calibration_batches(data, 256, seed=0)))
pins = {graph.layers[0].name: 8, graph.layers[-1].name: 8}

tables, targets = {}, {}
for name in asked.targets.split(","):
    targets[name] = load_target(name)
    tables[name] = tabulate(
        graph.layers, permitted(graph.layers, targets[name], pins=pins), targets[name]
    )
choices = next(iter(tables.values())).choices
assert all(table.choices == choices for table in tables.values())
known = sensitivity(graph, clips, images, widths(choices))
tuned = corrected(Places(graph, clips), images)
validation = freeze(Part(data.val, torch.arange(len(data.val))))


def mean_bits(policy, kind):
    """Return the mean bits of weights and of activations of one kind of layer, over the layers."""
    found = [policy[layer.name] for layer in graph.layers[1:-1] if layer.kind == kind]
    if not found:
        return None
    return {
        "layers": len(found),
        "weights": round(sum(bits.weight for bits in found) / len(found), 2),
        "activations": round(sum(bits.act for bits in found) / len(found), 2),
    }


def shares(policy):
    """Return the latency of a policy on every target, as a share of that at 8 bits."""
    return {
        name: round(
            total(table, policy, "latency")
            / reference(graph.layers, targets[name], "latency", EIGHT),
            4,
        )
        for name, table in tables.items()
    }


provenance = script_provenance()
rows = []
for name, table in tables.items():
    budget = parse_budget(f"latency={asked.share}%w8a8", graph.layers, targets[name])
    policy = solve(objective(known, table), table, [budget])
    if policy is None:
        rows.append({"found_for": name, "policy": None})
        continue
    rows.append(
        {
            "found_for": name,
            "val_accuracy": score(tuned(policy), validation).accuracy,
            "latency_share_of_w8a8": shares(policy),
            "mean_bits": {
                kind: mean_bits(policy, kind) for kind in ("depthwise", "pointwise", "conv")
            },
            "policy": {layer: list(bits) for layer, bits in policy.items()},
        }
    )
    print(rows[-1]["found_for"], rows[-1]["mean_bits"], rows[-1]["latency_share_of_w8a8"])

content = {
    "what": "Policies found for one target, and what they cost on the others.",
    "model": asked.model,
    "width": asked.width,
    "data": data.name,
    "input": list(data.shape),
    "budget": f"latency={asked.share}%w8a8",
    "method": "least sum of KL sensitivities (256 images), integer program; statistics corrected",
    "float_val_accuracy": score(graph.traced, validation).accuracy,
    "val_images": len(data.val),
    "rows": rows,
    "cpu_seconds": round(time.process_time() - started, 1),
    **provenance,
}
results.write_json(REFERENCE / f"transfer-{asked.model}.json", content)
