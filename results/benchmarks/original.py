"""Episodes of the original code and ours, taking turns on the same data, and the way to a policy.

python results/benchmarks/original.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/original.json as it goes. The original's procedure is haq2019.py. In every
round all procedures evaluate a policy of that round: about 3-bit weights and 4-bit activations
(the original's size search: its weights near 3.88 average bits, as in the search it is compared
with). Seconds are CPU seconds of the process, on one thread. What is computed once for a whole
search stands under "once".

"to_a_policy" is what `haq search --agent ilp` does at 3.88 average bits, from loaded data and
weights to the finished network, nothing fine-tuned: with corrected statistics, and with learned
rounding; with 8-bit activations as the command does it, and with float activations as the
original's size search has them. Test images score finished networks only.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import haq2019
import numpy as np
import torch
from passes import counted

from haq.allocation.budgets import Budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits, readers
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.models import build
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate, load_clips
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluation import ROUNDED_ON, labeled
from haq.runs.evaluator import CORRECTED_ON, Evaluator, Recipe, corrected
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.places import Places
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.runs.restored import restored
from haq.runs.samples import Part
from haq.training.scoring import score

AVERAGE_BITS = 3.88
REPORTED = {
    "episodes": 93, "cpu_seconds": 2006, "avg_weight_bits": AVERAGE_BITS,
    "test_accuracy_before_its_epoch": 0.8435, "test_accuracy": 0.8722,
    "test_accuracy_after_50000_images": 0.8762,
}  # fmt: skip
"""Of a size search by the original code, ported to a CPU, on another machine: issue 5."""

CHEAP_A_ROUND = 5
"""Cheap evaluations in a round: a single one is too short to be timed."""

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--train-images", type=int, default=5000)
parser.add_argument("--val-images", type=int, default=2000)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
asked = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(asked.seed)
random = np.random.default_rng(asked.seed)
data = load(asked.data)
len(data.test)  # is read at its first use, which is not to count
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()

record = {
    "what": __doc__.splitlines()[0],
    "model": asked.model,
    "data": data.name,
    "train_images": asked.train_images,
    "val_images": asked.val_images,
    "seed": asked.seed,
    "threads": 1,
    "once": {},
    "rounds": [],
    "reported": REPORTED,
    "to_a_policy": [],
    **script_provenance(),
}


def spent(function, *args, **options):
    """Return what a function returns, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = function(*args, **options)
    return found, time.process_time() - cpu, time.perf_counter() - wall


def keep():
    """Write down what there is."""
    results.write_json(REFERENCE / "original.json", record)


def job(**fields):
    """Return a job on this network and these images."""
    return parse_job(
        model=asked.model, data="cifar10", seed=asked.seed, val_images=asked.val_images,
        train_images=asked.train_images, threads=1, **fields,
    )  # fmt: skip


def drawn(graph):
    """Return a policy of 2- to 4-bit weights and 3- to 5-bit activations, 8 at both ends."""
    ends = {graph.layers[0].name, graph.layers[-1].name}
    acts = {layer.name: int(random.integers(3, 6)) for layer in graph.layers}
    return {
        name: Bits(8, 8) if name in ends else Bits(int(random.integers(2, 5)), acts[group[0]])
        for name, group in readers(graph.layers).items()
    }


def drawn_sizes(layers):
    """Return bits of weights from 2 to 6 in every layer, near the average of the size search."""
    weights = np.array([layer.weights for layer in layers])
    while True:
        bits = random.integers(2, 7, len(layers))
        if abs(bits @ weights / weights.sum() - AVERAGE_BITS) < 0.1:
            return bits.tolist()


def timed(seconds, wall, accuracy, **more):
    """Return the line of one episode."""
    return {
        "cpu_seconds": round(seconds, 3), "wall_seconds": round(wall, 3),
        "val_accuracy": accuracy, **more,
    }  # fmt: skip


def theirs(kind):
    """Return a function from bits to the line of an episode of the original's procedure."""
    network = build(asked.model, classes=len(data.classes))
    load_weights(network, asked.weights)
    network = haq2019.rounding(network) if kind == "linear" else network
    start = copy.deepcopy(network.eval().state_dict())
    generator = torch.Generator().manual_seed(asked.seed)
    batches = []
    for split, count, augment in (
        (data.train, asked.train_images, True), (data.val, asked.val_images, False),
    ):  # fmt: skip
        chosen = torch.randperm(len(split), generator=generator)[:count]
        size = haq2019.BATCHES[kind]
        batches.append(haq2019.loader(split.images, split.labels, chosen, size, augment))
    episode = {"linear": haq2019.linear_episode, "size": haq2019.size_episode}[kind]

    def play_one(bits):
        (accuracy, parts), cpu, wall = spent(episode, network, start, bits, *batches)
        parts = {part: round(seconds, 3) for part, seconds in parts.items()}
        return timed(cpu, wall, accuracy, parts=parts)

    return play_one


def cheaply(evaluation, policies):
    """Return the line of several cheap evaluations: their means."""
    found, cpu, wall = spent(
        lambda: [evaluation.score(evaluation.network(policy)).accuracy for policy in policies]
    )
    return timed(cpu / len(policies), wall / len(policies), statistics.mean(found))


def tune(evaluator, policy):
    """Return the line of a fine-tuned episode."""
    with counted() as passes:
        found, cpu, wall = spent(lambda: evaluator.score(evaluator.tuned(policy)).accuracy)
    outside = 1 - sum(passes.values()) / cpu
    return timed(cpu, wall, found, share_outside_the_network=round(outside, 4))


def compare():
    """Play the rounds."""
    once = record["once"]
    with tempfile.TemporaryDirectory() as name:
        asked_for = job(agent="random", evaluation="cheap", act_bits=4, episodes=40)
        planned, once["layers and costs"], _ = spent(plan, asked_for, model, images_of(data))
        parts = (asked_for, Path(name), planned, data, lambda _: None)
        evaluation, once["clips, statistics, float score"], _ = spent(labeled, *parts)
        clips = load_clips(Path(name) / "clips.safetensors")
    graph = planned.graph
    first, more = drawn(graph), drawn(graph)
    before = cheaply(evaluation, [first])["cpu_seconds"]
    once["ONNX Runtime's template"] = before - cheaply(evaluation, [more])["cpu_seconds"]
    recipe = Recipe(asked.train_images, asked.val_images)
    evaluator = Evaluator(graph, clips, data, recipe, asked.seed)
    _, once["training images, augmented"], _ = spent(lambda: evaluator.images)
    _, once["teacher's answers"], _ = spent(lambda: evaluator.teacher)
    record["once"] = {what: round(seconds, 2) for what, seconds in once.items()}
    linear, size = theirs("linear"), theirs("size")
    for _ in range(asked.rounds):
        policies = [drawn(graph) for _ in range(CHEAP_A_ROUND)]
        policy = policies[0]
        bits = [tuple(policy[layer.name]) for layer in graph.layers]
        bits[0] = (8, -1)  # lib/env/linear_quantize_env.py, _keep_first_last_layer: pictures
        record["rounds"].append(
            {
                "original, linear": linear(bits), "fine-tuned": tune(evaluator, policy),
                "original, size": size(drawn_sizes(graph.layers)),
                "cheap": cheaply(evaluation, policies),
            }
        )  # fmt: skip
        summarise()
        keep()
        print(record["rounds"][-1], flush=True)


def summarise():
    """Put medians over the rounds into the record: seconds, and ratios within a round."""
    rounds = record["rounds"]
    record["cpu_seconds"] = {
        name: round(statistics.median(r[name]["cpu_seconds"] for r in rounds), 2)
        for name in rounds[0]
    }
    record["ratios"] = {
        f"{slow} / {fast}": _ratios([r[slow] for r in rounds], [r[fast] for r in rounds])
        for slow in ("original, linear", "original, size") for fast in ("fine-tuned", "cheap")
    }  # fmt: skip
    record["share_outside_the_network"] = statistics.median(
        r["fine-tuned"]["share_outside_the_network"] for r in rounds
    )


def _ratios(slow, fast):
    values = [a["cpu_seconds"] / b["cpu_seconds"] for a, b in zip(slow, fast, strict=True)]
    walls = [a["wall_seconds"] / b["wall_seconds"] for a, b in zip(slow, fast, strict=True)]
    return {
        "median": round(statistics.median(values), 2), "lowest": round(min(values), 2),
        "highest": round(max(values), 2), "median_wall": round(statistics.median(walls), 2),
    }  # fmt: skip


def arrived(activations, method, network, seconds):
    """Score a finished network and write its row down."""
    size = record["cpu_seconds"]["original, size"]
    accuracy = score(network, data.test).accuracy
    record["to_a_policy"].append(
        {
            "activations": activations, "method": method, "cpu_seconds": round(seconds, 1),
            "test_accuracy": accuracy,
            "as_accurate_as_reported": accuracy >= REPORTED["test_accuracy"],
            "as_accurate_as_reported_after_50000_images":
                accuracy >= REPORTED["test_accuracy_after_50000_images"],
            "ratio_to_reported": round(REPORTED["cpu_seconds"] / seconds, 1),
            "ratio_to_episodes_timed_here": round(REPORTED["episodes"] * size / seconds, 1),
        }
    )  # fmt: skip
    keep()
    print(record["to_a_policy"][-1], flush=True)


def search(method, steps):
    """Do what `haq search --agent ilp` does, with 8-bit activations."""
    pins = {} if asked.model == "resnet20" else None
    asked_for = job(
        agent="ilp", budgets=(f"avg_weight_bits={AVERAGE_BITS}",), act_bits=8, pins=pins,
        rounding_steps=steps,
    )  # fmt: skip

    def found(folder):
        results.write_job(folder, asked_for)
        planned = plan(asked_for, model, images_of(data))
        evaluation = labeled(asked_for, folder, planned, data, lambda _: None)
        play(asked_for, folder, planned, evaluation._replace(test=None))

    with tempfile.TemporaryDirectory() as name:
        _, seconds, _ = spent(found, Path(name))
        arrived("8 bits", method, restored(Path(name)).network, seconds)


def weights_alone():
    """Do the same with float activations; see ptq.py."""
    started = time.process_time()
    graph = trace(model, torch.zeros(1, *data.shape))
    plain = torch.cat(list(calibration_batches(data, CORRECTED_ON, asked.seed)))
    table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
    clips = calibrate(graph, [plain], "mse")
    images = sensitivity_images(data, asked.seed)
    known = objective(sensitivity(graph, clips, images, widths(table.choices)), table)
    bits = solve(known, table, [Budget("avg_weight_bits", AVERAGE_BITS)])
    policy = {name: Bits(pair.weight, FLOAT) for name, pair in bits.items()}
    network = corrected(Places(graph, clips), plain)(policy)
    seconds = time.process_time() - started
    arrived("float", "corrected", network, seconds)
    generator = torch.Generator().manual_seed(asked.seed)
    some = Part(data.train, torch.randperm(len(data.train), generator=generator)[:ROUNDED_ON])
    _, more, _ = spent(adaround, network, graph, some, seed=asked.seed)
    arrived("float", "learned", network, seconds + more)


compare()
weights_alone()
search("corrected", 0)
search("learned", 300)
