"""Accuracy right after quantization, without any fine-tuning, by clipping method and bit-width.

python results/benchmarks/calibration.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/calibration-resnet20.json. First and last layer have 8 bits; accuracies are
of validation images, in float32.
"""

import argparse
import time

import torch

from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.clipping import CLIPPING
from haq.quantization.fake_quant import quantize, uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches
from haq.runs.float_network import fresh_model
from haq.runs.samples import Part, freeze
from haq.training.scoring import score

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--images", type=int, default=2500)
parser.add_argument("--threads", type=int, default=1)
asked = parser.parse_args()

torch.set_num_threads(asked.threads)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
graph = trace(model, torch.zeros(1, *data.shape))
validation = freeze(Part(data.val, torch.arange(asked.images)))
record = {
    "what": __doc__.splitlines()[0],
    "model": asked.model,
    "data": data.name,
    "calibration_images": 512,
    "validation_images": asked.images,
    "float": score(model, validation).accuracy,
    "accuracy": {"weights only": {}, "weights and activations": {}},
    "seconds": {},
    **script_provenance(),
}
for method in CLIPPING:
    started = time.process_time()
    clips = calibrate(graph, calibration_batches(data, 512, seed=0), method)
    record["seconds"][method] = round(time.process_time() - started, 2)
    for what, row in record["accuracy"].items():
        row[method] = {}
        for bits in range(8, 1, -1):
            policy = uniform(graph, bits, 8 if what == "weights only" else bits)
            row[method][bits] = score(quantize(graph, policy, clips), validation).accuracy
        print(method, what, row[method], flush=True)
    results.write_json(REFERENCE / f"calibration-{asked.model}.json", record)
