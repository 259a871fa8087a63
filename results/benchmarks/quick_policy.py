"""How soon a policy is there, from loaded weights and data, without labels.

python results/benchmarks/quick_policy.py --weights W.safetensors --data cifar10:DIR

CPU seconds of haq.quick_policy on one thread, at 3.88 bits on average and others, in a process of
its own; "first" is the first call of the process, which also loads what torch.export is made of.
The accuracy is that of the policy with corrected statistics (256 training images without labels),
nothing trained, on all test images. Writes results/reference/quick-policy.json.
"""

import argparse
import resource
import time

import torch

import haq
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as runs
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import corrected
from haq.runs.float_network import fresh_model
from haq.runs.places import Places
from haq.training.scoring import score

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--bits", type=float, nargs="+", default=[3.88, 3, 2.25])
asked = parser.parse_args()

torch.set_num_threads(1)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
model.eval()
chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:64]
inputs = data.train.batch(chosen)[0]
policies, seconds = {}, {}
for bits in asked.bits:
    times = []
    for _ in range(3):
        started = time.process_time()
        policies[bits] = haq.quick_policy(model, inputs, f"avg_weight_bits={bits}")
        times.append(time.process_time() - started)
    seconds[bits] = times
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

graph = trace(model, inputs[:1])
clips = calibrate(graph, calibration_batches(data, 512, 0))
network = corrected(Places(graph, clips), torch.cat(list(calibration_batches(data, 256, 0))))
table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
rows = []
for bits, policy in policies.items():
    row = {
        "avg_weight_bits": total(table, policy, "avg_weight_bits"),
        "cpu_seconds": round(min(seconds[bits]), 2),
        "test_accuracy": score(network(policy), data.test, quick=True).accuracy,
    }
    rows.append(row)
    print(row, flush=True)
first = seconds[asked.bits[0]][0]
record = {
    "what": __doc__.splitlines()[0], "model": asked.model, "inputs": len(inputs), "threads": 1,
    "first_cpu_seconds": round(first, 2), "peak_memory_mb": peak, "rows": rows,
    **script_provenance(),
}  # fmt: skip
runs.write_json(REFERENCE / "quick-policy.json", record)
