"""What to do with ResNet-20 at 10, 20 and 40 kB: one table, the same weights and the same time.

python results/benchmarks/compression_table.py WEIGHTS.safetensors --data cifar10:DIR

Bits alone, bits and channels in one search, torch.nn.utils.prune (global, by magnitude) with 4-bit
weights, and a small dense network from fresh weights. Each is trained for as many CPU seconds, the
float network for a teacher, with 8-bit activations, and tested by its file in ONNX Runtime. Sizes
are codes, scales and biases; of sparse weights the codes are in the cheapest format of
``haq.allocation.sparse``. Each row goes to results/reference/compression-table.json as it ends, and
rows that stand there are left out.
"""

import argparse
import copy
import json
import time
from collections import Counter
from pathlib import Path

import torch
from narrow_networks import LR, Study, answers, named
from torch.nn.utils import prune

from haq.allocation.costs import size_bytes
from haq.allocation.policy import Bits
from haq.allocation.sparse import sparse_bits
from haq.compression.filters import remove
from haq.compression.widths import kept_places, lost_channels
from haq.network.graph import resized, trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.statistics import correct, statistics
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.evaluator import Recipe, fine_tune
from haq.runs.folder import write_json
from haq.runs.samples import Part
from haq.training.train import train

parser = argparse.ArgumentParser()
parser.add_argument("weights")
parser.add_argument("--data", required=True)
parser.add_argument("--seconds", type=float, default=40, help="Of training, CPU time.")
parser.add_argument("--sizes", type=float, nargs="+", default=[40, 20, 10], help="In kB.")
parser.add_argument("--counted", type=float, default=1 / 3, help="See widths.py.")
parser.add_argument("--out", type=Path, default=REFERENCE / "compression-table.json")
asked = parser.parse_args()
torch.set_num_threads(1)

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
TRIED = 320
"""Images on which the time of a training step is measured."""


def record():
    """Return what stands in the record."""
    empty = {"what": "ResNet-20, CIFAR-10 (JPEG), 8-bit activations", "rows": []}
    return json.loads(asked.out.read_text()) if asked.out.exists() else empty


def add(size, name, row):
    """Add a row to the record."""
    known = record() | {"seconds": asked.seconds, "lr": LR, "counted": asked.counted, "seed": 0}
    known["rows"].append({"kB": size, "name": name, **row})
    write_json(asked.out, known | script_provenance())
    print(size, name, {key: value for key, value in row.items() if key != "policy"}, flush=True)


def has(size, name):
    """Return whether a row is there."""
    return any((row["kB"], row["name"]) == (size, name) for row in record()["rows"])


def part(study, images):
    """Return so many training images, in one epoch where there are as many, and the epochs."""
    epochs = -(-images // len(study.data.train))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(study.data.train), generator=generator)[: images // epochs]
    return Part(study.data.train, chosen), epochs


def for_seconds(seconds, steps):
    """Return how many images a training takes that lasts so long; ``steps`` trains on some."""
    started = time.process_time()
    steps(TRIED)
    return max(TRIED, int(TRIED * seconds / (time.process_time() - started)))


def tuned(study, model, own, seconds):
    """Fine-tune a quantized network in place for so many seconds; return images and seconds."""

    def steps(images, network):
        split, epochs = part(study, images)
        fine_tune(network, study.graph, split, epochs=epochs, recipe=Recipe(lr=LR), seed=0, own=own)

    images = for_seconds(seconds, lambda count: steps(count, copy.deepcopy(model)))
    started = time.process_time()
    steps(images, model)
    return {"tuned_on": images, "cpu_s": round(time.process_time() - started, 1)}


def tested(study, model, policy, size, more):
    """Return the row of a network."""
    split = study.data.test
    accuracy = float((answers(model, split) == split.labels).double().mean())
    return {"size_bytes": size, "accuracy": accuracy, **more, "policy": named(policy)}


def bits_alone(study, limit):
    """Return the row of the best bits."""
    best = study.bits("size", limit)
    if best is None:
        least, _ = study.bits("size", 1e9)
        least = sum(size_bytes(x, min(c.weight for c in study.choices[x.name])) for x in
                    study.graph.layers)  # fmt: skip
        return {"refused": f"the least that 2 bits need is {least} bytes"}
    policy, size = best
    model = study.network(policy)
    return tested(study, model, policy, size, tuned(study, model, study.graph, asked.seconds))


def bits_and_channels(study, limit):
    """Return the row of the best bits and channels."""
    best = study.widths(limit, SHARES, counted=asked.counted)
    if best is None:
        return {"refused": "no bits and channels keep it"}
    policy, size = best
    model = study.network(policy, SHARES)
    return tested(study, model, policy, size, tuned(study, model, None, asked.seconds))


def sparse_size(graph, model, policy):
    """Return the bytes of a network with zeros, and the formats of its layers' codes."""
    size, formats = 0, Counter()
    for layer in graph.layers:
        weight, bits = model.get_parameter(f"{layer.name}.weight"), policy[layer.name].weight
        sizes = sparse_bits(weight.numel(), int((weight == 0).sum()), bits)
        best = min(sizes, key=sizes.get)
        formats[best] += 1
        size += -(-int(sizes[best]) // 8) + 4 * layer.scales + 4 * layer.biases
    return size, dict(formats)


def pruned(study, limit):
    """Return the row of magnitude pruning by PyTorch, all layers together, at 4 bits."""
    policy = {layer.name: Bits(4, 8) for layer in study.graph.layers}
    ends = study.graph.layers[0].name, study.graph.layers[-1].name
    policy |= dict.fromkeys(ends, Bits(8, 8))
    low, high, best = 0.3, 0.998, None
    for _ in range(12):
        share = (low + high) / 2
        network = copy.deepcopy(study.graph.traced)
        modules = [(network.get_submodule(x.name), "weight") for x in study.graph.layers
                   if x.name not in ends]  # fmt: skip
        prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=share)
        for module, name in modules:
            prune.remove(module, name)
        size, formats = sparse_size(study.graph, network, policy)
        if size <= limit:
            best, high = (network, size, formats, share), share
        else:
            low = share
    if best is None:
        return {"refused": "not even without weights"}
    network, size, formats, share = best
    own = trace(network, study.sample)
    clips = calibrate(own, study.images.split(128))
    model = quantize(own, policy, clips)
    correct(model, own, statistics(own, study.images, clips), study.images)
    more = tuned(study, model, own, asked.seconds) | {"sparsity": round(share, 4)}
    return tested(study, model, policy, size, more | {"formats": formats})


def small_dense(study, limit):
    """Return the row of a network of the same kind with fewer channels, from fresh weights."""
    known, _ = study.channels(SHARES)
    policy = {layer.name: Bits(4, 8) for layer in study.graph.layers}
    policy |= dict.fromkeys((study.graph.layers[0].name, study.graph.layers[-1].name), Bits(8, 8))
    for share in torch.arange(1.0, 0.05, -0.0625).tolist():
        lost = lost_channels(known, {}, {group.name: share for group in known.groups})
        narrow = remove(study.graph.traced, study.sample, kept_places(known.channels, lost))
        own = resized(study.graph, narrow)
        size = sum(size_bytes(layer, policy[layer.name].weight) for layer in own.layers)
        if size <= limit:
            break
    torch.manual_seed(0)
    for module in narrow.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def steps(images, network):
        split, epochs = part(study, images)
        train(network, split, epochs=epochs, lr=0.1, seed=0, batch=64)

    images = for_seconds(asked.seconds * 0.7, lambda count: steps(count, copy.deepcopy(narrow)))
    started = time.process_time()
    steps(images, narrow)
    seconds = time.process_time() - started
    clips = calibrate(own, study.images.split(128))
    model = quantize(own, policy, clips)
    correct(model, own, statistics(own, study.images, clips), study.images)
    more = tuned(study, model, own, asked.seconds * 0.3) | {"trained_on": images, "share": share}
    more["cpu_s"] = round(more["cpu_s"] + seconds, 1)
    return tested(study, model, policy, size, more)


METHODS = {
    "bits alone": bits_alone, "bits and channels": bits_and_channels,
    "torch.nn.utils.prune, 4 bits": pruned, "small dense, 4 bits": small_dense,
}  # fmt: skip

whole = Study(asked.weights, asked.data)
whole.channels(SHARES)
for kilobytes in asked.sizes:
    for method, row_of in METHODS.items():
        if not has(kilobytes, method):
            add(kilobytes, method, row_of(whole, 1000 * kilobytes))
