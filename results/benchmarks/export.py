"""How far exported files agree with the network they come from, and how fast they are.

python results/benchmarks/export.py --model resnet20 --weights W.safetensors --data cifar10:DIR

Writes results/reference/export-MODEL.json, a row for each policy: top-1 agreement with PyTorch and
accuracy on test images, logits equal to the integers worked out in numpy, size, and the latency
beside the float network and ONNX Runtime's quantize_static, measured in one interleaved run.
"""

import argparse
import random

import numpy as np
import torch

from haq.allocation.policy import FLOAT, Bits, readers
from haq.datasets import load
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime, timing
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize, uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs import onnx_summary
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.handover import check_kernels
from haq.runs.places import Places

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--width", type=float, default=1.0)
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--simulated", type=int, default=1000, help="images worked out in numpy")
asked = parser.parse_args()

torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model(asked.model, data, asked.width, seed=0)
load_weights(model, asked.weights)
graph = trace(model.eval(), torch.zeros(1, *data.shape))
clips = calibrate(graph, calibration_batches(data, 512, seed=0), "kl")
statistics = torch.cat(list(calibration_batches(data, 256, seed=0)))
network_of = corrected(Places(graph, clips), statistics)
draw = random.Random(0)


def mixed(floats):
    """Return 2 to 8 bits by chance, and some float layers where asked for."""
    groups = dict.fromkeys(readers(graph.layers).values())
    acts = {group: draw.randint(2, 8) for group in groups}
    policy = {}
    for layer in graph.layers:
        group = readers(graph.layers)[layer.name]
        policy[layer.name] = Bits(draw.randint(2, 8), 8 if layer.reads_input else acts[group])
    for group in groups if floats else ():
        if draw.random() < 0.3:
            policy |= dict.fromkeys(group, Bits(FLOAT, FLOAT))
    return policy


policies = {
    "w8a8": uniform(graph, 8, 8),
    "w4a4": uniform(graph, 4, 4),
    "w2a4": uniform(graph, 2, 4),
    "2 to 8 bits": mixed(floats=False),
    "2 to 8 bits, some float": mixed(floats=True),
}
floats = dict.fromkeys(policies["w8a8"], Bits(FLOAT, FLOAT))
sample = torch.zeros(1, *data.shape)
made = template(quantize(graph, policies["w8a8"], clips), sample)
float_file = lower(made, quantize(graph, floats, clips))
setup = Setup()
references = {
    "fp32": onnx_runtime.session(float_file.SerializeToString(), setup),
    "quantize_static": onnx_runtime.session(onnx_summary.static(float_file, data), setup),
}
images, _ = data.test.batch(torch.arange(asked.simulated))
provenance = script_provenance()
rows = []
for name, policy in policies.items():
    network = network_of(policy)
    convert_to_integers(network)
    file = lower(made, network)
    row = {"policy": name, "bytes": file.ByteSize()}
    row["kernels"] = dict(check_kernels(file, policy))
    row |= onnx_summary.answers(file, network, data)
    session = onnx_runtime.session(file.SerializeToString(), setup)
    worked_out = simulate(file, images.numpy()).logits
    run = onnx_runtime.answers(session, images.numpy())
    row |= {
        "simulated_images": len(images),
        "images_equal_to_the_last_bit": int((worked_out == run).all(1).sum()),
        "largest_difference_of_range": float(np.abs(worked_out - run).max() / np.ptp(run)),
    }
    times = onnx_runtime.measure({"this": session, **references}, setup, rounds=60)
    row["latency_us"] = {what: round(timing.us, 1) for what, timing in times.items()}
    rows.append(row)
    print(row)
    results.write_json(
        REFERENCE / f"export-{asked.model}.json",
        {
            "what": "Exported files: agreement with PyTorch, exactness and latency.",
            "model": asked.model,
            "width": asked.width,
            "data": data.name,
            "quantized": "clips by KL, statistics corrected on 256 images, no fine-tuning",
            "latency": f"{setup.clock}, one thread, one image, p{timing.QUANTILE}",
            "rows": rows,
            **provenance,
        },
    )
