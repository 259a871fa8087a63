"""What searching is worth on an Ethos-U: policies beside uniform widths of the same bytes in flash.

python results/benchmarks/ethos_u.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/ethos-u.json, a row at a time; given again it goes on. The network is
ResNet-20. For each width of weights there are its bytes in the flash of ethos-u55-128 with that
width everywhere (8 bits in the first and the last layer, 8-bit activations, as everywhere on this
target), and policies of the least sum of sensitivities within as many bytes, by exact sensitivities
and by those to second order. Of the two, validation images choose the one that diverges less from
the float network; test images decide nothing. All are scored with corrected statistics, nothing
trained. The bytes are those that Vela's encoder gives for the codes of each network.
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
from haq.distillation.kd import divergence
from haq.hw_profiles import load as load_target
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.second_order import second_order
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches
from haq.runs.encoded_cost import costs_of, on_weights
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.folder import read_json, write_json
from haq.runs.places import Places
from haq.runs.samples import Part
from haq.training.paired import correct_answers, paired
from haq.training.scoring import logits

TARGET, WIDTHS, VALIDATION = "ethos-u55-128", (7, 6, 5, 4, 3, 2), 1000

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--test-images", type=int, default=10_000)
asked = parser.parse_args()

started = time.process_time()
torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model("resnet20", data, 1.0, seed=0)
load_weights(model, asked.weights)
graph = trace(model.eval(), torch.zeros(1, *data.shape))
clips = calibrate(graph, calibration_batches(data, 512, seed=0), "kl")
images = torch.cat(list(calibration_batches(data, 256, seed=0)))
pins = {graph.layers[0].name: 8, graph.layers[-1].name: 8}
target = on_weights(load_target(TARGET), graph.traced, clips.weights.__getitem__)
table = tabulate(graph.layers, permitted(graph.layers, target, pins=pins), target)
asked_for = widths(table.choices)
objectives = {
    "sensitivity": objective(sensitivity(graph, clips, images, asked_for), table),
    "second order": objective(second_order(graph, clips, images, asked_for), table),
}
tuned = corrected(Places(graph, clips), images)
images_of_test = Part(data.test, torch.arange(min(asked.test_images, len(data.test))))
parts = torch.arange(VALIDATION).split(125)
truth = torch.cat([logits(graph.traced, data.val.batch(part)[0]) for part in parts])


def away(network):
    """Return the divergence from the float network on validation images."""
    answers = torch.cat([logits(network, data.val.batch(part)[0]) for part in parts])
    return float(divergence(answers, truth))


def scored(policy, network):
    """Return what a policy's network costs, and which test images it gives their class."""
    test = correct_answers(partial(logits, network), images_of_test)
    flash = costs_of(target, graph.layers, policy, network)["flash"]
    assert flash == total(table, policy, "flash")  # planned equals encoded
    row = {
        "flash_bytes": flash, "size_bytes": total(table, policy, "size"),
        "val_divergence": away(network), "test_accuracy": float(test.float().mean()),
        "weight_bits": [policy[layer.name].weight for layer in graph.layers],
    }  # fmt: skip
    return row, test


place = REFERENCE / "ethos-u.json"
rows = read_json(place)["rows"] if place.exists() else []
floats = correct_answers(partial(logits, graph.traced), images_of_test)
for width in WIDTHS:
    if any(row["weight_bits"] == width for row in rows):
        continue
    uniform = {x.name: Bits(pins.get(x.name, width), 8) for x in graph.layers}
    row, test = scored(uniform, tuned(uniform))
    budget = [parse_budget(f"flash={row['flash_bytes']:.0f}", graph.layers, target)]
    offered = {name: solve(damage, table, budget) for name, damage in objectives.items()}
    networks = {name: tuned(policy) for name, policy in offered.items()}
    divergences = {name: away(network) for name, network in networks.items()}
    chosen = min(divergences, key=divergences.__getitem__)
    own, own_test = scored(offered[chosen], networks[chosen])
    pairs = paired(test, own_test)
    rows.append({
        "weight_bits": width, "uniform": row, "ours": own, "by": chosen,
        "val_divergences": divergences,
        "gain": {"points": -100 * pairs.drop, "standard_error": 100 * pairs.error},
    })  # fmt: skip
    print(width, row["test_accuracy"], own["test_accuracy"], chosen, own["weight_bits"], flush=True)
    write_json(place, {
        "what": "ResNet-20 on an Ethos-U: policies within the flash bytes of uniform widths",
        "model": "resnet20", "data": data.name, "target": TARGET, "test_images": len(floats),
        "validation_images": VALIDATION,
        "float_test_accuracy": float(floats.float().mean()),
        "method": "least sum of KL sensitivities (256 images, exact or to second order, whichever "
        "diverges less on validation images), integer program; statistics corrected; nothing "
        "trained",
        "layers": [layer.name for layer in graph.layers],
        "rows": rows, "cpu_seconds": round(time.process_time() - started, 1),
        **script_provenance(),
    })  # fmt: skip
