"""What the defaults of fine-tuning reach: test accuracy of the files after one epoch.

python results/benchmarks/finetuning_goals.py --weights W.safetensors --data cifar10:DIR

Policies of integer programming (ilp), and uniform bits lowered to fit, with the first and the last
layer at 8 bits and 4-bit activations. The network after the epoch is handed over where that did it
good by validation images (``haq.runs.judge.better``), else the one with corrected statistics. The
rounding is learned in 600 steps on the same images; of fewer than 20000 images nothing else is.
Test accuracies are those of the file in ONNX Runtime; they choose nothing. Rows are added to
results/reference/finetuning-goals.json; those that stand there are left out. Its rows of the
defaults before (up to 3 bits 300 steps on images that are augmented once, then the epoch; above,
and at 45 000 images, the epoch alone) are of commit 12909a2.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from haq.allocation.budgets import fit, solve, uniform_policy
from haq.allocation.sensitivities import objective, widths
from haq.datasets import load
from haq.formats.onnx.runtime import prepared
from haq.models.weights import load_weights
from haq.quantization.calibration import calibrate
from haq.quantization.second_order import second_order
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import Evaluator, Recipe, corrected
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json
from haq.runs.job import parse_job
from haq.runs.judge import Judge, better
from haq.runs.places import Places
from haq.runs.plan import images_of, plan
from haq.training.scoring import score_answers

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--cases", nargs="+", default=["ilp:2.25:5000", "ilp:3:5000", "ilp:4:5000",
                    "ilp:6:5000", "uniform:3:5000", "uniform:2.25:5000", "ilp:2.25:45000",
                    "ilp:3:45000"], help="AGENT:BITS:IMAGES")  # fmt: skip
parser.add_argument("--minutes", type=float, default=15, help="Of CPU.")
parser.add_argument("--out", type=Path, default=REFERENCE / "finetuning-goals.json")


class Goals:
    """The float network and what is made of it once."""

    def __init__(self, asked):
        """Read data and weights; calibrate."""
        self.data = load(asked.data)
        self.model = fresh_model("resnet20", self.data, width=1.0, seed=0)
        load_weights(self.model, asked.weights)
        self.model.eval()
        self.graph = self.plan(3).graph
        self.clips = calibrate(self.graph, calibration_batches(self.data, 512, 0), "kl")
        self.places = Places(self.graph, self.clips)
        self.evaluators = {}
        self.lowering = prepared(
            corrected(self.places, self.evaluator(5000).plain)(self.policy("ilp", 4)),
            self.data.test.batch(torch.arange(2))[0],
        )

    def plan(self, bits):
        """Return the plan of a search at mean bits of the weights."""
        job = parse_job(
            model="resnet20", data="cifar10", budgets=(f"avg_weight_bits={bits:g}",), act_bits=4,
            agent="ilp", evaluation="cheap",
        )  # fmt: skip
        return plan(job, self.model, images_of(self.data))

    def policy(self, agent, bits):
        """Return the policy of an agent."""
        planned = self.plan(bits)
        if agent == "uniform":
            start = uniform_policy(planned.table, math.ceil(bits))
            return fit(start, planned.table, planned.budgets)
        images, asked = sensitivity_images(self.data, 0), widths(planned.table.choices)
        damage = second_order(self.graph, self.clips, images, asked)
        return solve(objective(damage, planned.table), planned.table, planned.budgets)

    def evaluator(self, images):
        """Return what fine-tunes with so many images."""
        if images not in self.evaluators:
            recipe = Recipe(train_images=images, rounding_steps=600)
            self.evaluators = {images: Evaluator(self.graph, self.clips, self.data, recipe, 0)}
        return self.evaluators[images]

    def test(self, network):
        """Return the test accuracy of a network's file; of the float network's itself."""
        evaluator = next(iter(self.evaluators.values()))
        evaluator._template = self.lowering
        answer = evaluator.integer_answer(network)
        assert answer is not None
        return score_answers(answer, self.data.test).accuracy

    def row(self, agent, bits, images):
        """Return the row of a case."""
        evaluator, policy = self.evaluator(images), self.policy(agent, bits)
        started = time.process_time()
        evaluator.prepare(tuning=True)
        prepared_in = time.process_time() - started
        untrained = corrected(self.places, evaluator.plain)(policy)
        started = time.process_time()
        tuned = evaluator.tuned(policy)
        seconds = time.process_time() - started
        judge = Judge(evaluator)
        before, after = judge.judged(untrained), judge.judged(tuned)
        kept = better(after, before)
        test = self.test(tuned if kept else untrained)
        return {
            "agent": agent, "bits": bits, "act_bits": 4, "images": images, "defaults": "now",
            "rounding_steps": evaluator.recipe.rounding_steps,
            "handed_over_tuned": kept, "test_accuracy": test,
            "judged_accuracy": [before.accuracy, after.accuracy],
            "judged_divergence": [before.divergence, after.divergence],
            "epoch_seconds": round(seconds, 1), "preparation_seconds": round(prepared_in, 1),
        }  # fmt: skip


def main(asked):
    """Add the rows that are missing."""
    torch.set_num_threads(1)
    record = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
    goals = Goals(asked)
    for case in asked.cases:
        agent, bits, images = case.split(":")
        key = {"agent": agent, "bits": float(bits), "images": int(images), "defaults": "now"}
        if any(key.items() <= row.items() for row in record["rows"]):
            continue
        if time.process_time() > 60 * asked.minutes:
            break
        row = goals.row(agent, float(bits), int(images))
        record = {
            "what": __doc__.splitlines()[0], "model": "resnet20", "data": goals.data.name,
            "weights": Path(asked.weights).name, "seed": 0, "rows": [*record["rows"], row],
            **script_provenance(),
        }  # fmt: skip
        write_json(asked.out, record)
        print(row, flush=True)


if __name__ == "__main__":
    main(parser.parse_args())
