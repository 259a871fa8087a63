"""What knowing the hardware is worth: policies for NE16 beside uniform widths of the same cycles.

python results/benchmarks/ne16.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/ne16.json. The network is MobileNetV2 (width 0.35) of float_networks.py.
For each width of weights there are its cycles on gap9-ne16 with that width everywhere (8 bits in
the first and the last layer, 8-bit activations, as everywhere on this target), and the policy of
the least sum of sensitivities within as many cycles (integer program, exact). Both are scored with
corrected statistics, nothing trained; test images decide nothing.
"""

import argparse
import time
from functools import partial

import torch

from haq.allocation.budgets import parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.hw_profiles import load as load_target
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json
from haq.runs.places import Places
from haq.runs.samples import Part
from haq.training.paired import correct_answers, paired
from haq.training.scoring import logits

TARGET = "gap9-ne16"

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--test-images", type=int, default=10_000)
asked = parser.parse_args()

started = time.process_time()
torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model("mobilenet_v2", data, 0.35, seed=0)
load_weights(model, asked.weights)
graph = trace(model.eval(), torch.zeros(1, *data.shape))
clips = calibrate(graph, calibration_batches(data, 512, seed=0), "kl")
images = torch.cat(list(calibration_batches(data, 256, seed=0)))
pins = {graph.layers[0].name: 8, graph.layers[-1].name: 8}
target = load_target(TARGET)
table = tabulate(graph.layers, permitted(graph.layers, target, pins=pins), target)
damage = objective(sensitivity(graph, clips, images, widths(table.choices)), table)
tuned = corrected(Places(graph, clips), images)
images_of_test = Part(data.test, torch.arange(min(asked.test_images, len(data.test))))


def scored(policy):
    """Return cycles, mean bits by kind, and which images a policy's network gives their class."""
    network = tuned(policy)
    kinds = {layer.kind for layer in graph.layers[1:-1]}
    mean_bits = {
        kind: round(
            sum(policy[x.name].weight for x in graph.layers[1:-1] if x.kind == kind)
            / sum(x.kind == kind for x in graph.layers[1:-1]), 2,
        )
        for kind in sorted(kinds)
    }  # fmt: skip
    test = correct_answers(partial(logits, network), images_of_test)
    row = {
        "cycles": total(table, policy, "latency"), "mean_weight_bits": mean_bits,
        "size_bytes": total(table, policy, "size"),
        "test_accuracy": float(test.float().mean()),
        "policy": {name: list(bits) for name, bits in policy.items()},
    }  # fmt: skip
    return row, test


rows = []
floats = correct_answers(partial(logits, graph.traced), images_of_test)
for width in (8, 6, 5, 4, 3, 2):
    uniform = {x.name: Bits(pins.get(x.name, width), 8) for x in graph.layers}
    row, test = scored(uniform)
    cycles = row["cycles"]
    policy = solve(damage, table, [parse_budget(f"latency={cycles}", graph.layers, target)])
    own, own_test = scored(policy)
    pairs = paired(test, own_test)
    rows.append({
        "weight_bits": width, "uniform": row, "ours": own,
        "gain": {"points": -100 * pairs.drop, "standard_error": 100 * pairs.error},
    })  # fmt: skip
    print(width, row["test_accuracy"], own["test_accuracy"], own["mean_weight_bits"], flush=True)
    write_json(REFERENCE / "ne16.json", {
        "what": "MobileNetV2 on NE16: policies within the cycles of uniform widths",
        "model": "mobilenet_v2", "width": 0.35, "data": data.name, "target": TARGET,
        "test_images": len(floats), "float_test_accuracy": float(floats.float().mean()),
        "method": "least sum of KL sensitivities (256 images), integer program; statistics "
        "corrected; nothing trained",
        "rows": rows, "cpu_seconds": round(time.process_time() - started, 1),
        **script_provenance(),
    })  # fmt: skip
