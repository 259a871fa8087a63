"""Whole networks in ONNX Runtime on a GPU: float32, float16, and what becomes of int8.

python results/benchmarks/gpu.py --model resnet20 --provider cuda --out whole.json

gpu.sh calls it. The networks are interleaved, after 50 warm-ups each; the card's clocks and what
holds it back are taken before and after. The CUDA provider has no kernels for integer convolutions:
which operators run the quantized layers is written down, and their latency is no int8 latency.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from haq.hw_profiles.measure import card, onnx_runtime
from haq.hw_profiles.measure.network import opened
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.reports.reference.publish import script_provenance
from haq.runs.folder import write_json
from haq.runs.profiling.policies import references
from haq.runs.profiling.subject import lowering, subject

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--provider", default="cuda")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rounds", type=int, default=60)
parser.add_argument("--out", type=Path, required=True)
asked = parser.parse_args()

onnx_runtime.check_provider(asked.provider)
setup = Setup(asked.provider, batch=asked.batch)
network = subject(asked.model, size=None if asked.model.startswith("digits") else 32)
layers = network.graph.layers
policies = references(layers, [layer.name for layer in layers])
half = replace(setup, floats="float16")
models = {
    "float32": lowering(network, setup=setup)(policies["fp32"]),
    "float16": lowering(network, setup=half)(policies["fp32"]),
    "w7a8": lowering(network, setup=setup)(policies["w7a8"]),
}
before = card.state()
sessions = {name: onnx_runtime.session(model, setup) for name, model in models.items()}
timings = onnx_runtime.measure(sessions, setup, asked.rounds, seconds=30)
names = [layer.name for layer in layers]
quantized = opened(models["w7a8"], setup, names)
write_json(
    asked.out,
    {
        "what": "Whole networks in ONNX Runtime on a GPU",
        "model": asked.model, "batch": asked.batch, "options": setup.options,
        "networks": {name: timing._asdict() for name, timing in timings.items()},
        "not_in_integer_kernels": dict(quantized.misplaced(policies["w7a8"])),
        "card_before": before, "card_after": card.state(), **script_provenance(),
    },
)  # fmt: skip
for name, timing in timings.items():
    print(f"{name}: {timing.us:,.1f} us ({timing.low:,.1f} to {timing.high:,.1f})")
