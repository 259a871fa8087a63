"""How sensitivities to second order compare with the exact ones, and what lies beyond their sum.

python results/benchmarks/second_order.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/second-order.json: CPU seconds on one thread and rank correlations with the
exact isolated values, over all layers and widths: with BatchNorm normalising by the images' own
statistics ("sensitivity"), and with one layer rounded and its statistics corrected as the product
does ("corrected", weights of 2 to 4 bits). Then, under budgets on average bits with 4-bit
activations, the divergence on the first test images of what the integer program chooses by either,
and by sensitivities that are rescaled in the context of that policy: each layer's by its share of
the policy's divergence along the path from float (haq.quantization.attribution) over its isolated
value ("in_context"), and by the root of that ("halfway"). "again" is rescaled once more, in the
context of the nearest of these on 1 000 training images, and "kept" the nearest of all on them,
where it is nearer than "second_order" beyond chance (95 %, one-sided). "completeness" is the sum of
the shares over the divergence. Statistics are corrected on 256 training images; nothing is trained.
With --model mobilenet_v2 the budgets alone go into a part of their own.
"""

import argparse
import time
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import nn

from haq.allocation.budgets import parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.distillation.kd import divergence, divergences
from haq.models import build
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.attribution import attribution
from haq.quantization.calibration import calibrate
from haq.quantization.second_order import second_order
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.confirm import SURE
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.judge import errors_nearer
from haq.runs.places import Places
from haq.training.scoring import TEMPERATURE, logits

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3, 4])
parser.add_argument("--test-images", type=int, default=4000)
asked = parser.parse_args()

FURTHEST = 8.0  # of a factor, and one over the smallest
torch.set_num_threads(1)
place = REFERENCE / "second-order.json"
first = asked.model == "resnet20"
record = {"what": __doc__.splitlines()[0], "model": "resnet20", "threads": 1}
if not first:
    record = runs.read_json(place)


def spent(function, *args):
    """Return what a function returns, and its CPU seconds."""
    started = time.process_time()
    return function(*args), round(time.process_time() - started, 2)


def write(**more):
    """Add to the record as figures come in."""
    record.update(more, **script_provenance())
    runs.write_json(place, record)
    print(more, flush=True)


def chain(depth):
    """Return a network of ``depth`` layers, one after the other, as that of depth.py."""
    parts = []
    for number in range(depth - 1):
        conv = nn.Conv2d(16 if number else 3, 16, 3, 1 if number else 4, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        parts += [conv, nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def depth(model):
    """Return the CPU seconds for all layers and widths, weights and activations, on 64 images."""
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = trace(model.eval(), images[:1])
    clips = calibrate(graph, [images], "max")
    return spent(second_order, graph, clips, images, widths(permitted(graph.layers, None)))[1]


torch.manual_seed(0)
if first:
    write(seconds={"chain of 200": depth(chain(200)), "resnet56": depth(build("resnet56"))})

data = load(asked.data)
model = fresh_model(asked.model, data, width=asked.width, seed=0)
load_weights(model, asked.weights)
model.eval()
images = sensitivity_images(data, 0)
graph = trace(model, images[:1])
clips = calibrate(graph, calibration_batches(data, 512, 0))
every = widths(permitted(graph.layers, None))
known, known_seconds = spent(second_order, graph, clips, images, every)
network = corrected(Places(graph, clips), torch.cat(list(calibration_batches(data, 256, 0))))


def with_exact():
    """Write how the values compare with exact ones, and return those."""
    exact, exact_seconds = spent(sensitivity, graph, clips, images, every)

    def ranks(kind):
        one, other = getattr(exact, kind), getattr(known, kind)
        pairs = [(one[name][bits], other[name][bits]) for name in one for bits in one[name]]
        return round(float(spearmanr(*zip(*pairs, strict=True))[0]), 4)

    record["seconds"] |= {"resnet20, exact": exact_seconds, "resnet20": known_seconds}
    write(images=len(images), with_exact={kind: ranks(kind) for kind in ("weights", "activations")})

    small = corrected(Places(graph, clips), images[:64])
    floats = {layer.name: Bits(FLOAT, FLOAT) for layer in graph.layers}
    reference = logits(graph.traced, images, quick=True)
    pairs = []
    for layer in graph.layers[1:-1]:
        for bits in (2, 3, 4):
            rounded = small(floats | {layer.name: Bits(bits, FLOAT)})
            away = divergence(logits(rounded, images, quick=True), reference)
            pairs.append((float(away), known.weights[layer.name][bits]))
    write(with_corrected=round(float(spearmanr(*zip(*pairs, strict=True))[0]), 4))
    return exact


exact = with_exact() if first else None

parts = torch.arange(asked.test_images).split(250)
truth = torch.cat([logits(graph.traced, data.test.batch(part)[0], quick=True) for part in parts])
generator = torch.Generator().manual_seed(1)
held_out = torch.randperm(len(data.train), generator=generator)[:1000].split(250)
their_truth = torch.cat(
    [logits(graph.traced, data.train.batch(part)[0], quick=True) for part in held_out]
)


def scored(policy):
    """Return a policy's divergence on the test images, and the standard error of that."""
    rounded = network(policy)
    answers = torch.cat([logits(rounded, data.test.batch(part)[0], quick=True) for part in parts])
    away = divergences(answers, truth)
    return round(float(away.mean()), 4), round(float(away.std()) / len(away) ** 0.5, 4)


def held(policy):
    """Return a policy's softened divergence in each held-out training image."""
    rounded = network(policy)
    answers = [logits(rounded, data.train.batch(part)[0], quick=True) for part in held_out]
    return divergences(torch.cat(answers), their_truth, TEMPERATURE)


def in_context(policy, table, power=1.0):
    """Return the sensitivities, rescaled in the context of a policy, and completeness."""
    made_up = attribution(graph, clips, policy, images, widths(table.choices))

    def scaled(kind, width):
        rows = {}
        for name, row in getattr(known, kind).items():
            share = made_up.shares[kind].get(name, 0.0) / max(row[width(policy[name])], 1e-12)
            factor = min(max(share, 1 / FURTHEST), FURTHEST) ** power
            rows[name] = {bits: factor * value for bits, value in row.items()}
        return rows

    weights = scaled("weights", lambda bits: bits.weight)
    return replace(known, weights=weights), made_up.total / made_up.divergence


table = tabulate(graph.layers, permitted(
    graph.layers, None, act_bits=4, pins={graph.layers[0].name: 8, graph.layers[-1].name: 8}
))  # fmt: skip
rows = []
for limit in asked.budgets:
    budget = [parse_budget(f"avg_weight_bits={limit}", graph.layers, None)]

    def best(values, budget=budget):
        """Return the best policy by some sensitivities."""
        return solve(objective(values, table), table, budget)

    policies = {} if exact is None else {"exact": best(exact)}
    start = policies["second_order"] = best(known)
    context, completeness = in_context(start, table)
    policies["in_context"] = best(context)
    policies["halfway"] = best(in_context(start, table, 0.5)[0])
    away = {name: held(policy) for name, policy in policies.items() if name != "exact"}
    nearest = min(away, key=lambda name: float(away[name].mean()))
    policies["again"] = best(in_context(policies[nearest], table)[0])
    away["again"] = held(policies["again"])
    nearest = min(away, key=lambda name: float(away[name].mean()))
    accepted = errors_nearer(away["second_order"], away[nearest]) > SURE
    policies["kept"] = policies[nearest if accepted else "second_order"]
    texts = {name: str(policy) for name, policy in policies.items()}
    scores = {}
    for name, text in texts.items():
        same = next((other for other in scores if texts[other] == text), None)
        scores[name] = scores[same] if same else scored(policies[name])
    rows.append({
        "avg_weight_bits": limit, "completeness": round(completeness, 3),
        "divergence": {name: score[0] for name, score in scores.items()},
        "standard_error": {name: score[1] for name, score in scores.items()},
        "nearest": nearest, "accepted": accepted,
    })  # fmt: skip
    if first:
        write(test_images=asked.test_images, budgets=rows)
    else:
        write(other_networks={**record.get("other_networks", {}), asked.model: rows})
