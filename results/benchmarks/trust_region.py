"""Whether moves of one bit, measured where the policy stands, take it below the integer program's.

python results/benchmarks/trust_region.py --weights W.safetensors --data cifar10:DIR

The start is the policy that ``ilp`` plays: the best by sensitivities to second order. Every round
measures what each move of one bit in one layer does to the divergence of the whole policy, on some
training images (from the moved layer on; BatchNorm normalises by the images), and solves for the
best moves within the budget, one a layer and at most R layers, by the measured gain less its
standard error. It is accepted if it falls on as many other training images; else R is 6, 3, 2, and
then it ends. Start and end are compared on the validation images, with statistics corrected as a
search does, image by image. Each seed has other training images. Writes a row to
results/reference/trust-region.json as each seed ends, and leaves out those that stand there.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from haq.allocation.budgets import parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.places import float_answers, normalising, places_of, quickly, rounded_at
from haq.quantization.second_order import second_order
from haq.quantization.sensitivity import _Recorder
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.places import Places
from haq.training.scoring import logits

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--limit", type=float, default=2.25, help="Average bits of the weights.")
parser.add_argument("--images", type=int, default=4000, help="To measure on, and to accept on.")
parser.add_argument("--part", type=int, default=500, help="Images at once.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--rounds", type=int, default=3)
asked = parser.parse_args()

REGIONS = (6, 3, 2)
torch.set_num_threads(1)
place = REFERENCE / "trust-region.json"
data = load(asked.data)
model = fresh_model("resnet20", data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()
graph = trace(model, data.train.batch(torch.arange(2))[0][:1])
pins = {graph.layers[0].name: 8, graph.layers[-1].name: 8}
table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=4, pins=pins))
budget = parse_budget(f"avg_weight_bits={asked.limit:g}", graph.layers, None)
clips = calibrate(graph, calibration_batches(data, 512, 0))
floats = normalising(graph, clips)
every = widths(table.choices)
# The fixed bits of activations are rounded too: whatever is not float in a policy.
fixed = {layer.name: (4, 8) for layer in graph.layers}
places = places_of(
    graph, clips, floats, {"weights": fixed | every["weights"], "activations": fixed}
)


def distances(answer, reference):
    """Return the divergence of each image."""
    gap = reference.log_softmax(1) - answer.log_softmax(1)
    return (reference.softmax(1) * gap).sum(1).double().numpy()


def answer_of(value):
    """Return the one answer of the network."""
    return next(iter(float_answers(value)))


def whole(policy, parts):
    """Return the divergence of a policy, image by image."""
    seen = []
    with quickly():
        for images in parts:
            reference = answer_of(floats(images))
            with rounded_at(places, policy):
                seen.append(distances(answer_of(floats(images)), reference))
    return np.concatenate(seen)


def moves_of(policy):
    """Return the moves of one bit: (layer, bits of the weights)."""
    return [
        (name, bits)
        for name, widths_of in every["weights"].items()
        for bits in widths_of
        if abs(bits - policy[name].weight) == 1
    ]


def measured(policy, parts):
    """Return what each move adds to the divergence, and the standard error of that."""
    moves = moves_of(policy)
    differences = [[] for _ in moves]
    of_weights = {one.layers[0]: one for one in places if one.kind == "weights"}
    with quickly():
        for images in parts:
            reference = answer_of(floats(images))
            with rounded_at(places, policy):
                recorder = _Recorder(floats)
                before = distances(answer_of(recorder.run(images)), reference)
                for at, (name, bits) in enumerate(moves):
                    with of_weights[name].round(bits):
                        moved = recorder.run_from(of_weights[name].nodes[0], images)
                    differences[at].append(distances(answer_of(moved), reference) - before)
    each = [np.concatenate(part) for part in differences]
    return moves, np.array([e.mean() for e in each]), np.array([error(e) for e in each])


def error(values):
    """Return the standard error of a mean."""
    return float(values.std() / len(values) ** 0.5)


def with_moves(policy, moves):
    """Return a policy after some moves."""
    return policy | {name: Bits(bits, policy[name].act) for name, bits in moves}


def best_moves(policy, moves, goal, most):
    """Return the moves of the least sum within the budget, one a layer and at most so many."""
    cost = partial(total, table)
    now = cost(policy, budget.quantity)
    costs = np.array([cost(with_moves(policy, [m]), budget.quantity) - now for m in moves])
    layers = sorted({name for name, _ in moves})
    rows = np.array([[float(name == layer) for name, _ in moves] for layer in layers])
    answer = milp(
        goal, integrality=np.ones(len(moves)), bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(np.vstack([costs, np.ones(len(moves))]), -np.inf,
                             [budget.limit - now + 1e-9, most]),
            LinearConstraint(rows, -np.inf, 1),
        ],
    )  # fmt: skip
    return [move for move, taken in zip(moves, answer.x, strict=True) if taken > 0.5]


def climbed(policy, measuring, accepting):
    """Return the policy at the end, and what the rounds did."""
    log, rounds, regions = [], 0, list(REGIONS)
    stands = whole(policy, accepting)
    while rounds < asked.rounds and regions:
        moves, gains, errors = measured(policy, measuring)
        rounds += 1
        while regions:
            taken = best_moves(policy, moves, gains + errors, regions[0])
            if not taken:
                return policy, log
            predicted = sum(gains[moves.index(move)] for move in taken)
            candidate = with_moves(policy, taken)
            there = whole(candidate, accepting)
            better = float((there - stands).mean())
            log.append({
                "round": rounds, "most": regions[0], "moves": taken,
                "predicted": round(float(predicted), 4), "on_others": round(better, 4),
                "standard_error": round(error(there - stands), 4),
                "stands": round(float(stands.mean()), 4),
                "accepted": better < 0,
            })  # fmt: skip
            print(log[-1], flush=True)
            if better < 0:
                policy, stands = candidate, there
                break
            regions.pop(0)
    return policy, log


def judged(policies):
    """Return the divergences on the validation images, image by image."""
    network = corrected(Places(graph, clips), torch.cat(list(calibration_batches(data, 256, 0))))
    parts = torch.arange(len(data.val)).split(asked.part)
    images = [data.val.batch(part)[0] for part in parts]
    truth = [logits(graph.traced, part, quick=True) for part in images]
    for policy in policies:
        rounded = network(policy)
        pairs = zip(images, truth, strict=True)
        yield np.concatenate([distances(logits(rounded, x, quick=True), y) for x, y in pairs])


def row_of(seed):
    """Climb from the integer program's policy on images of a seed, and judge."""
    started = time.process_time()
    known = second_order(graph, clips, sensitivity_images(data, seed), every)
    start = solve(objective(known, table), table, [budget])
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    measuring, accepting = (
        [data.train.batch(part)[0] for part in some.split(asked.part)]
        for some in order[: 2 * asked.images].split(asked.images)
    )
    end, log = climbed(start, measuring, accepting)
    seconds = time.process_time() - started
    before, after = judged([start, end])
    difference = after - before
    return {
        "model": "resnet20", "data": data.name, "avg_weight_bits": asked.limit, "seed": seed,
        "images": asked.images,
        "validation_images": len(before),
        "start": [bits.weight for bits in start.values()],
        "end": [bits.weight for bits in end.values()],
        "divergence": [round(float(before.mean()), 4), round(float(after.mean()), 4)],
        "difference": round(float(difference.mean()), 4),
        "interval_95": [round(float(difference.mean()) + z * error(difference), 4)
                        for z in (-1.96, 1.96)],
        "rounds": log, "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


rows = runs.read_json(place)["rows"] if place.exists() else []
for seed in asked.seeds:
    if any((r["seed"], r["avg_weight_bits"]) == (seed, asked.limit) for r in rows):
        continue
    rows.append(row_of(seed))
    record = {"what": __doc__.splitlines()[0], "rows": rows, **script_provenance()}
    runs.write_json(place, record)
    print(rows[-1], flush=True)
