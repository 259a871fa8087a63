"""Every loss of distillation at few bits, in equal time: paired differences to labels alone.

python results/benchmarks/distillation.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/distillation.json as it goes. A loss whose steps take longer gets as many
fewer images as makes its fine-tuning take the time of kd's. Differences are paired by seed; the
interval is Student's, of 95 %. Scores are of validation images.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from scipy.stats import t as student_t

from haq.datasets import load
from haq.distillation.settings import distillation_of, read_distillation
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json

LOSSES = ("none", "kd", "hint", "attention", "similarity", "distance+angle", "kd+hint",
          "hint+through-quantizer", "kd:0.9..0.3", "kd+self-study:0.25",
          "kd+self-study:0.2+co-study:0.3", "gradient")  # fmt: skip

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--weight-bits", type=int, nargs="+", default=[2, 3])
parser.add_argument("--act-bits", type=int, default=4)
parser.add_argument("--train-images", type=int, default=5000)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--losses", nargs="+", default=LOSSES)
parser.add_argument("--out", default="distillation")
asked = parser.parse_args()

torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
graph = trace(model, next(calibration_batches(data, 2, 0)))
clips = calibrate(graph, calibration_batches(data, 512, 0), "mse")
record = {
    "what": __doc__.splitlines()[0], "model": asked.model, "data": data.name,
    "act_bits": asked.act_bits, "seeds": asked.seeds, "rows": [], "gains": [],
    **script_provenance(),
}  # fmt: skip


def recipe(loss, images):
    """Return the recipe of one epoch with a loss."""
    entries = read_distillation(loss)
    settings = distillation_of(entries) if entries else None
    return replace(Recipe(train_images=images, val_images=2500), distill=settings)


def run(loss, bits, seed, images):
    """Return the validation accuracy after one epoch, and the seconds it took."""
    evaluator = Evaluator(graph, clips, data, recipe(loss, images), seed)
    evaluator.prepare(tuning=True)
    started = time.process_time()
    network = evaluator.tuned(uniform(graph, bits, asked.act_bits))
    seconds = time.process_time() - started
    return evaluator.score(network).accuracy, seconds


few = max(256, asked.train_images // 10)
speed = {loss: few / run(loss, asked.weight_bits[0], 0, few)[1] for loss in asked.losses}
for bits in asked.weight_bits:
    scores = {}
    for loss in asked.losses:
        share = speed[loss] / speed.get("kd", speed[loss])
        images = min(len(data.train), round(asked.train_images * share))
        for seed in range(asked.seeds):
            accuracy, seconds = run(loss, bits, seed, images)
            scores.setdefault(loss, []).append(accuracy)
            record["rows"].append(
                {"weight_bits": bits, "loss": loss, "seed": seed, "images": images,
                 "val_accuracy": accuracy, "seconds": round(seconds, 1)}
            )  # fmt: skip
            print(record["rows"][-1], flush=True)
            write_json(REFERENCE / f"{asked.out}.json", record)
    for loss in asked.losses:
        pairs = zip(scores[loss], scores[asked.losses[0]], strict=True)
        gains = [mine - its for mine, its in pairs]
        half = 0.0
        if len(gains) > 1:
            spread = statistics.stdev(gains) / len(gains) ** 0.5
            half = float(student_t.ppf(0.975, len(gains) - 1)) * spread
        mean = statistics.mean(gains)
        record["gains"].append(
            {"weight_bits": bits, "loss": loss, "over": asked.losses[0], "gain": mean,
             "half_interval": half, "differs": abs(mean) > half > 0}
        )  # fmt: skip
write_json(REFERENCE / f"{asked.out}.json", record)
