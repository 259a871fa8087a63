"""Every loss of distillation at few bits, in equal CPU time: accuracy, divergence, differences.

python results/benchmarks/distillation.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/distillation.json after every run and goes on from there. The float network
must not have seen the validation images. A loss whose steps take longer gets as many fewer images
as make its fine-tuning take the time of kd's; the teacher's forward counts. All losses of a seed
see the same images in the same order. Differences are paired by seed and bits; intervals are
Student's, of 95 %. Scores are of validation images.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from itertools import product

import torch
from scipy.stats import t as student_t

from haq.datasets import load
from haq.distillation.settings import distillation_of, read_distillation
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import Evaluator, Recipe, fine_tune
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json
from haq.runs.samples import Part

LOSSES = (
    "none", "kd", "kd:1", "hint", "hint+through-quantizer", "attention", "similarity",
    "distance+angle", "gradient", "kd+hint", "kd:0.9..0.3", "kd+self-study:0.2+co-study:0.3",
)  # fmt: skip
OVER = ("none", "kd")


def arguments():
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--act-bits", type=int, default=4)
    parser.add_argument("--train-images", type=int, default=1200)
    parser.add_argument("--val-images", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", default=LOSSES)
    parser.add_argument("--minutes", type=float, default=14, help="CPU minutes it may take.")
    parser.add_argument("--out", default="distillation")
    return parser.parse_args()


class Study:
    """One float network, and what is needed to fine-tune and score quantized ones."""

    def __init__(self, asked):
        self.asked = asked
        self.data = load(asked.data)
        model = fresh_model(asked.model, self.data, width=1.0, seed=0)
        load_weights(model, asked.weights)
        self.graph = trace(model, next(calibration_batches(self.data, 2, 0)))
        self.clips = calibrate(self.graph, calibration_batches(self.data, 512, 0), "mse")
        scoring = replace(Recipe(), val_images=asked.val_images, agreement=True)
        self.scorer = Evaluator(self.graph, self.clips, self.data, scoring, 0)
        self.scorer.prepare(tuning=False)

    def quantized(self, bits):
        """Return the network at uniform bits, not fine-tuned."""
        return quantize(self.graph, uniform(self.graph, bits, self.asked.act_bits), self.clips)

    def tune(self, network, loss, seed, images, on_step=None):
        """Fine-tune a network for one epoch of so many images."""
        entries = read_distillation(loss)
        recipe = replace(Recipe(), distill=distillation_of(entries) if entries else None)
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(seed))
        part = Part(self.data.train, order[:images])
        fine_tune(network, self.graph, part, epochs=1, recipe=recipe, seed=seed, on_step=on_step)

    def step_seconds(self, losses, rounds=2, steps=6):
        """Return the CPU seconds of a step of each loss, measured in turns; the least of them."""
        taken = {loss: [] for loss in losses}
        for _, loss in product(range(rounds), losses):
            times = []
            network = self.quantized(self.asked.weight_bits[0])
            images = steps * Recipe().batch
            self.tune(network, loss, 0, images, lambda _: times.append(time.process_time()))  # noqa: B023
            taken[loss].append((times[-1] - times[0]) / (steps - 1))
        return {loss: min(seconds) for loss, seconds in taken.items()}

    def row(self, bits, loss, seed, images):
        """Return one fine-tuning and what came of it."""
        network = self.quantized(bits)
        started = time.process_time()
        if images:
            self.tune(network, loss, seed, images)
        seconds = time.process_time() - started
        score = self.scorer.score(network)
        return {
            "weight_bits": bits, "loss": loss, "seed": seed, "images": images,
            "val_accuracy": score.accuracy, "divergence": score.loss,
            "seconds": round(seconds, 2),
        }  # fmt: skip


def interval(differences):
    """Return the mean of differences, and half of its interval."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, None
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return mean, float(student_t.ppf(0.975, len(differences) - 1)) * error


def comparison(rows, loss, over, bits):
    """Return how a loss compares with another one, over the runs that both have."""
    chosen = [row for row in rows if row["images"] and row["weight_bits"] in bits]
    mine, its = (
        {(row["weight_bits"], row["seed"]): row for row in chosen if row["loss"] == name}
        for name in (loss, over)
    )
    pairs = [(mine[key], its[key]) for key in mine.keys() & its.keys()]
    if not pairs or loss == over:
        return None
    result = {"weight_bits": list(bits), "loss": loss, "over": over, "pairs": len(pairs)}
    for name in ("val_accuracy", "divergence"):
        mean, half = interval([one[name] - other[name] for one, other in pairs])
        result[name] = {
            "difference": mean, "half_interval": half,
            "differs": half is not None and abs(mean) > half,
        }  # fmt: skip
    return result


def comparisons(rows, asked):
    """Return every loss beside labels alone and beside kd, at each width and over all."""
    groups = [(bits,) for bits in asked.weight_bits]
    if len(groups) > 1:
        groups.append(tuple(asked.weight_bits))
    every = (
        comparison(rows, loss, over, bits)
        for bits, over, loss in product(groups, OVER, asked.losses)
    )
    return [result for result in every if result]


def main():
    """Run what is missing and write the record after every run."""
    asked = arguments()
    torch.set_num_threads(1)
    study, path = Study(asked), REFERENCE / f"{asked.out}.json"
    record = {
        "what": __doc__.splitlines()[0], "model": asked.model, "data": study.data.name,
        "act_bits": asked.act_bits, "val_images": len(study.scorer.validation),
    }  # fmt: skip
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(before.get(name) == value for name, value in record.items())
    rows = before["rows"] if same else []
    spent = before["cpu_minutes"] * 60 if same else 0.0
    seconds = before["step_seconds"] if same else study.step_seconds(asked.losses)
    record |= {
        "float_val_accuracy": study.scorer.score(study.graph.traced).accuracy,
        "step_seconds": seconds, **script_provenance(),
    }  # fmt: skip
    done = {(row["weight_bits"], row["loss"], row["seed"]) for row in rows}
    runs = [(bits, "before", 0, 0) for bits in asked.weight_bits]
    for seed, bits, loss in product(range(asked.seeds), asked.weight_bits, asked.losses):
        images = round(asked.train_images * seconds["kd"] / seconds[loss])
        runs.append((bits, loss, seed, min(len(study.data.train), images)))
    for run in runs:
        if run[:3] in done or spent + time.process_time() > 60 * asked.minutes:
            continue
        rows.append(study.row(*run))
        print(rows[-1], flush=True)
        minutes = (spent + time.process_time()) / 60
        record |= {"cpu_minutes": round(minutes, 2), "rows": rows,
                   "comparisons": comparisons(rows, asked)}  # fmt: skip
        write_json(path, record)


main()
