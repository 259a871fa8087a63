"""Codebooks beside linear codes, weights alone, at equal bytes: before and after fine-tuning.

python results/benchmarks/codebooks.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/codebooks.json after every row and goes on from there. The float network
must not have seen the validation images, of which all scores are. Activations stay float. A budget
is the bytes of linear codes of so many bits everywhere. "uniform" has as many bits everywhere;
"chosen" is the best sum of second-order sensitivities within the bytes. Before: statistics
corrected on 256 images. After: one epoch of distillation, from the network as it was rounded. The
rows "damping" tried by how much the gradient of a value is divided, on validation images too.
"""

import argparse
import json
import time
from itertools import product

import torch

from haq.allocation.budgets import Budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import CODEBOOK, Bits
from haq.allocation.schemes import Formats
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization import codebook
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.second_order import second_order
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import CORRECTED_ON, Evaluator, Recipe, corrected, fine_tune
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json
from haq.runs.places import Places
from haq.runs.samples import Part

SCHEMES = {"linear": ("weight-only", 0), "codebook": ("codebook", CODEBOOK)}
DAMPINGS = (0.0, 0.5, 1.0)


def arguments():
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--train-images", type=int, default=1500)
    parser.add_argument("--val-images", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--damping-images", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=6, help="CPU minutes it may take.")
    parser.add_argument("--out", default="codebooks")
    return parser.parse_args()


class Study:
    """One float network, its tables of costs and sensitivities for both kinds of codes."""

    def __init__(self, asked):
        self.data = load(asked.data)
        model = fresh_model(asked.model, self.data, width=1.0, seed=0)
        load_weights(model, asked.weights)
        self.graph = trace(model, next(calibration_batches(self.data, 2, 0)))
        self.clips = calibrate(self.graph, calibration_batches(self.data, 64, 0), "mse")
        recipe = Recipe(val_images=asked.val_images, agreement=True)
        self.scorer = Evaluator(self.graph, self.clips, self.data, recipe, 0)
        self.scorer.prepare(tuning=False)
        images = torch.cat([*calibration_batches(self.data, CORRECTED_ON, 0)])
        self.corrected = corrected(Places(self.graph, self.clips), images)
        self.floats = sum(self.graph.float_parameters.values())
        self.tables, self.losses = {}, {}
        for kind, (scheme, _) in SCHEMES.items():
            formats = Formats((scheme,))
            choices = permitted(self.graph.layers, None, act_bits=8, formats=formats)
            table = tabulate(self.graph.layers, choices, None, self.floats)
            known = second_order(
                self.graph, self.clips, sensitivity_images(self.data, 0), widths(choices)
            )
            self.tables[kind], self.losses[kind] = table, objective(known, table)

    def uniform(self, kind, bits):
        """Return the policy with equal bits everywhere."""
        block = SCHEMES[kind][1]
        return {layer.name: Bits(bits, 32, block) for layer in self.graph.layers}

    def chosen(self, kind, size):
        """Return the best policy within so many bytes by the sensitivities."""
        return solve(self.losses[kind], self.tables[kind], [Budget("size", size)])

    def size(self, kind, policy):
        """Return the bytes of a policy."""
        return total(self.tables[kind], policy, "size")

    def scored(self, network):
        """Return accuracy and divergence of a network."""
        score = self.scorer.score(network)
        return {"val_accuracy": score.accuracy, "divergence": score.loss}

    def tuned(self, policy, seed, images):
        """Return a network after one epoch of so many images."""
        network = quantize(self.graph, policy, self.clips)
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(seed))
        part = Part(self.data.train, order[:images])
        fine_tune(network, self.graph, part, epochs=1, recipe=Recipe(), seed=seed)
        return network


def damping_rows(study, asked):
    """Yield what other divisors of a value's gradient would do."""
    for damping, bits in product(DAMPINGS, asked.bits[:2]):
        key = {"what": "damping", "damping": damping, "bits": bits}

        def run(damping=damping, bits=bits):
            usual, codebook.DAMPING = codebook.DAMPING, damping
            network = study.tuned(study.uniform("codebook", bits), 100, asked.damping_images)
            codebook.DAMPING = usual
            return study.scored(network)

        yield key, run


def size_rows(study, asked):
    """Yield what both kinds of codes do within equal bytes."""
    for bits, how, kind in product(asked.bits, ("uniform", "chosen"), SCHEMES):
        size = study.size("linear", study.uniform("linear", bits))
        policy = study.uniform(kind, bits) if how == "uniform" else study.chosen(kind, size)
        key = {"what": "size", "budget_bits": bits, "budget_bytes": size, "how": how,
               "codes": kind}  # fmt: skip

        def run(kind=kind, policy=policy):
            after = [
                study.scored(study.tuned(policy, seed, asked.train_images))
                for seed in range(asked.seeds)
            ]
            return {
                "bytes": study.size(kind, policy),
                "policy": {name: bits.weight for name, bits in policy.items()},
                "before": study.scored(study.corrected(policy)), "after": after,
            }  # fmt: skip

        yield key, run


def main():
    """Run what is missing and write the record after every row."""
    asked = arguments()
    torch.set_num_threads(1)
    study, path = Study(asked), REFERENCE / f"{asked.out}.json"
    record = {
        "what": __doc__.splitlines()[0], "model": asked.model, "data": study.data.name,
        "train_images": asked.train_images, "val_images": len(study.scorer.validation),
        "seeds": asked.seeds, "float_bytes": 4 * (
            sum(layer.weights + layer.biases for layer in study.graph.layers) + study.floats
        ),
    }  # fmt: skip
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(before.get(name) == value for name, value in record.items())
    rows, spent = (before["rows"], 60 * before["cpu_minutes"]) if same else ([], 0.0)
    record |= {"float": study.scored(study.graph.traced), "rows": rows, **script_provenance()}
    for key, run in (*damping_rows(study, asked), *size_rows(study, asked)):
        if any(key.items() <= row.items() for row in rows):
            continue
        if spent + time.process_time() > 60 * asked.minutes:
            break
        rows.append(key | run())
        print(rows[-1], flush=True)
        record["cpu_minutes"] = round((spent + time.process_time()) / 60, 2)
        write_json(path, record)


main()
