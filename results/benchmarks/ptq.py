"""Weights in few bits without fine-tuning: rounded, statistics corrected, rounding learned.

python results/benchmarks/ptq.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/ptq.json. Per channel, clipped by squared error, activations in float, no
layer pinned; bits by integer program on sensitivities. "folded" is the same network without
BatchNorm, folded into its convolutions. How it is done was chosen on validation images; the test
images are read here.
"""

import argparse
import time

import torch
from torch import nn

from haq.allocation.budgets import Budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.sensitivity import IMAGES, sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluation import ROUNDED_ON
from haq.runs.evaluator import CORRECTED_ON, corrected
from haq.runs.float_network import fresh_model
from haq.runs.samples import Part
from haq.training.scoring import score

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2.25])
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1)
asked = parser.parse_args()

torch.set_num_threads(asked.threads)
data = load(asked.data)
len(data.test)  # is read at its first use, which is not to count
record = {
    "what": __doc__.splitlines()[0],
    "model": asked.model,
    "data": data.name,
    "seed": asked.seed,
    "threads": asked.threads,
    "images": {
        "clips of activations": 0, "sensitivities": IMAGES, "statistics": CORRECTED_ON,
        "rounding": ROUNDED_ON, "with labels": 0,
    },
    "rows": [],
    **script_provenance(),
}  # fmt: skip


def fold(model):
    """Fold every BatchNorm of a ResNet into its convolution, in place."""
    parts = dict(model.named_modules())
    for name, norm in parts.items():
        if isinstance(norm, nn.BatchNorm2d):
            layer = parts[name.replace("bn", "conv")]
            factor = norm.weight.data / (norm.running_var + norm.eps).sqrt()
            layer.weight.data = layer.weight.data * factor[:, None, None, None]
            layer.bias = nn.Parameter(norm.bias.data - norm.running_mean * factor)
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, nn.Identity())
    return model


def spent(function, *args, **options):
    """Return what a function returns, and its CPU seconds."""
    started = time.process_time()
    return function(*args, **options), time.process_time() - started


def row(network, bits, method, model, seconds):
    """Score a network, and write its row down."""
    record["rows"].append(
        {
            "network": network, "avg_weight_bits": bits, "method": method,
            "val_accuracy": score(model, data.val).accuracy,
            "test_accuracy": score(model, data.test).accuracy, "cpu_seconds": round(seconds, 1),
        }
    )  # fmt: skip
    print(record["rows"][-1], flush=True)
    results.write_json(REFERENCE / "ptq.json", record)


for network in ("as it is", "folded"):
    model = fresh_model(asked.model, data, width=1.0, seed=0)
    load_weights(model, asked.weights)
    if network == "folded":
        fold(model)
    graph = trace(model.eval(), torch.zeros(1, *data.shape))
    row(network, 32, "float", graph.traced, 0.0)
    plain = torch.cat(list(calibration_batches(data, CORRECTED_ON, asked.seed)))
    table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
    clips, calibrating = spent(calibrate, graph, [plain], "mse")
    augmented = sensitivity_images(data, asked.seed)
    known, measuring = spent(sensitivity, graph, clips, augmented, widths(table.choices))
    make, looking = spent(corrected, graph, clips, plain)
    generator = torch.Generator().manual_seed(asked.seed)
    some = Part(data.train, torch.randperm(len(data.train), generator=generator)[:ROUNDED_ON])
    for bits in asked.bits:
        limits = [Budget("avg_weight_bits", bits)]
        found, solving = spent(solve, objective(known, table), table, limits)
        policy = {name: Bits(pair.weight, FLOAT) for name, pair in found.items()}
        before = calibrating + measuring + looking + solving
        row(network, bits, "rounded", quantize(graph, policy, clips), before)
        model, correcting = spent(make, policy)
        row(network, bits, "corrected", model, before + correcting)
        _, learning = spent(adaround, model, graph, some, seed=asked.seed)
        row(network, bits, "learned", model, before + correcting + learning)
