"""How the cost of a search grows with the number of layers.

python results/benchmarks/depth.py

Writes results/reference/depth.json row by row, and leaves out those that stand there, so that it
can be stopped and started again: CPU seconds on one thread, and peak memory, of networks with
random weights on random images: ResNets for 32x32 images, and plain chains of convolutions of 16
channels on 8x8 maps (the first of stride 4). A process each. Sensitivities are those of 2- to 8-bit
weights and activations in every layer; the integer program is solved under 3 average bits (8-bit
activations), and under half of the latency of 8 bits on bismo-edge (weights and activations). A
cheap evaluation corrects statistics and validates in ONNX Runtime; what is exported once for all of
them stands apart. The exponent is the slope of log seconds over log layers within a family.
"""

import argparse
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from haq.allocation.budgets import parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets.tensors import Data, TensorSplit
from haq.models.resnet_cifar import resnet_cifar
from haq.quantization.calibration import load_clips
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.evaluation import labeled
from haq.runs.job import parse_job
from haq.runs.plan import plan

FAMILIES = {"resnet": (20, 32, 44, 56), "chain": (50, 100, 200)}
CLASSES = tuple(f"class {number}" for number in range(10))


def chain(depth):
    """Return a network of ``depth`` layers, one after the other."""
    channels = [3, *[16] * (depth - 1)]
    parts = []
    for number, (c_in, c_out) in enumerate(pairwise(channels)):
        conv = nn.Conv2d(c_in, c_out, 3, stride=1 if number else 4, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        parts += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def random_data(images):
    """Return random images and classes."""
    mean, std = (0.5,) * 3, (0.25,) * 3
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    split = TensorSplit(pixels, torch.randint(10, (images,)), mean, std)
    return Data("random", CLASSES, (3, 32, 32), mean, std, split, split, split)


def spent(function, *args):
    """Return what a function returns, and its CPU seconds."""
    started = time.process_time()
    return function(*args), round(time.process_time() - started, 3)


def peak_mb():
    """Return the most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(family, depth, images, validation):
    """Return the row of one network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = {"resnet": resnet_cifar, "chain": chain}[family](depth).eval()
    model = model.to(memory_format=torch.channels_last)
    data = random_data(validation)
    job = parse_job(
        model=f"{family}{depth}", target="bismo-edge", budgets=("latency=50%w8a8",), pins={},
        agent="random", evaluation="cheap", episodes=40, clipping="max", val_images=validation,
        calibration_images=images,
    )  # fmt: skip
    planned = plan(job, model, {"shape": data.shape})
    with tempfile.TemporaryDirectory() as name:
        evaluation = labeled(job, Path(name), planned, data, lambda _: None)
        clips = load_clips(Path(name) / "clips.safetensors")
    row = {"network": f"{family} {depth}", "family": family, "layers": len(planned.graph.layers)}
    before = peak_mb()

    pictures, _ = data.train.batch(torch.arange(images))
    asked = widths(planned.table.choices)
    known, row["sensitivities"] = spent(sensitivity, planned.graph, clips, pictures, asked)
    row["peak_mb_before"], row["peak_mb_of_sensitivities"] = before, peak_mb()

    layers = planned.graph.layers
    flat = tabulate(layers, permitted(layers, None, act_bits=8))
    three = [parse_budget("avg_weight_bits=3", layers, None)]
    _, row["solve, average bits"] = spent(solve, objective(known, flat), flat, three)
    goal = objective(known, planned.table)
    _, row["solve, bismo-edge"] = spent(solve, goal, planned.table, planned.budgets)

    def evaluate(weight):
        policy = {layer.name: Bits(weight, 4) for layer in layers}
        return evaluation.score(evaluation.network(policy))

    _, first = spent(evaluate, 3)
    _, row["cheap evaluation"] = spent(evaluate, 4)
    row["export, once"] = round(first - row["cheap evaluation"], 3)
    row["peak_mb"] = peak_mb()
    return row


def exponents(rows):
    """Return for each family and measure how its seconds grow with the layers."""
    names = ("sensitivities", "solve, average bits", "solve, bismo-edge", "cheap evaluation",
             "export, once")  # fmt: skip
    found = {}
    for family in FAMILIES:
        some = [row for row in rows if row["family"] == family]
        if len(some) > 1:
            layers = np.log([row["layers"] for row in some])
            found[family] = {
                name: round(float(np.polyfit(layers, np.log([r[name] for r in some]), 1)[0]), 2)
                for name in names
            }
    return found


def main():
    """Measure all networks, and write each down as it is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64, help="for sensitivities")
    parser.add_argument("--validation", type=int, default=256, help="images of an evaluation")
    asked = parser.parse_args()
    place = REFERENCE / "depth.json"
    rows = json.loads(place.read_text())["rows"] if place.exists() else []
    record = {
        "what": __doc__.splitlines()[0],
        "images": {"sensitivities": asked.images, "validation": asked.validation},
        "threads": 1,
        "seed": 0,
        "unit": "CPU seconds",
        "rows": rows,
        **script_provenance(),
    }
    # A process each, because the peak of memory is that of a process.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for family, depths in FAMILIES.items():
            for depth in depths:
                if any(row["network"] == f"{family} {depth}" for row in rows):
                    continue
                job = pool.submit(measure, family, depth, asked.images, asked.validation)
                rows.append(job.result())
                record["exponents"] = exponents(rows)
                results.write_json(place, record)
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
