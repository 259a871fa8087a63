"""Where the time of one episode goes.

python results/benchmarks/episode.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/episode-resnet20.json: CPU seconds, of which inside the
network's forward and backward passes, quantizers included.
"""

import argparse
import time

import torch
from passes import counted

from haq.datasets import load
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.float_network import fresh_model

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--threads", type=int, default=1)
asked = parser.parse_args()

torch.set_num_threads(asked.threads)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
graph = trace(model, torch.zeros(1, *data.shape))
clips = calibrate(graph, calibration_batches(data, 512, seed=0), "max")
evaluator = Evaluator(graph, clips, data, Recipe(), seed=0)
policy = uniform(graph, 3, 4)
evaluator.score(evaluator.tuned(policy))  # the first one also warms up

wall, cpu = time.perf_counter(), time.process_time()
with counted() as spent:
    evaluator.score(evaluator.tuned(policy))
cpu = time.process_time() - cpu
record = {
    "what": __doc__.splitlines()[0],
    "model": asked.model,
    "data": data.name,
    "train_images": evaluator.recipe.train_images,
    "val_images": evaluator.recipe.val_images,
    "threads": asked.threads,
    "wall_seconds": round(time.perf_counter() - wall, 2),
    "cpu_seconds": round(cpu, 2),
    "forward_seconds": round(spent["forward"], 2),
    "backward_seconds": round(spent["backward"], 2),
    "share_in_the_network": round(sum(spent.values()) / cpu, 4),
    **script_provenance(),
}
results.write_json(REFERENCE / f"episode-{asked.model}.json", record)
print(record)
