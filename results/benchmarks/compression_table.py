"""What to do with ResNet-20 at 10, 20 and 40 kB: one table, the same weights and the same time.

python results/benchmarks/compression_table.py WEIGHTS.safetensors --data cifar10:DIR

Bits alone; codebooks alone; each with channels in one search; gradual pruning, or low rank, and
then bits; torch.nn.utils.prune (global, by magnitude) with 4-bit weights; and a small dense network
from fresh weights. Each is trained for as many CPU seconds, the float network for a teacher, with
8-bit activations (codebooks: float ones), and tested by its file in ONNX Runtime. Sizes are codes,
scales, books and biases; of sparse weights the codes are in the cheapest format of
``haq.allocation.sparse``. Each row goes to results/reference/compression-table.json as it ends, and
rows that stand there are left out.
"""

import argparse
import copy
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from narrow_networks import LR, Study, answers, named
from torch.nn.utils import prune

from haq.allocation.costs import size_bytes
from haq.allocation.policy import Bits
from haq.allocation.schemes import Formats
from haq.allocation.sparse import sparse_bits
from haq.compression.filters import remove
from haq.compression.low_rank import factorised, plan_for
from haq.compression.magnitude import Pruner, schedule_over, smallest
from haq.compression.widths import kept_places, lost_channels
from haq.distillation.settings import distillation_of
from haq.errors import HaqError
from haq.network.graph import resized, trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.statistics import correct, statistics
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.evaluator import Recipe, fine_tune
from haq.runs.folder import write_json
from haq.runs.samples import Part
from haq.training.distilling import distilling
from haq.training.train import train

parser = argparse.ArgumentParser()
parser.add_argument("weights")
parser.add_argument("--data", required=True)
parser.add_argument("--seconds", type=float, default=25, help="Of training, CPU time.")
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
        least = sum(size_bytes(x, *min((c.weight, c.block) for c in study.choices[x.name])) for x in
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


def at_most(limit, size_of, low=0.0, high=0.999):
    """Return the least share whose size is within a limit; None where the largest is not."""
    if size_of(high) > limit:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(middle) > limit else (low, middle)
    return high


def same_bits(study, bits):
    """Return the policy of so many bits, and 8 in the first and the last layer."""
    policy = {layer.name: Bits(bits, 8) for layer in study.graph.layers}
    return policy | dict.fromkeys((study.graph.layers[0].name, study.graph.layers[-1].name),
                                  Bits(8, 8))  # fmt: skip


def gradual(study, limit):
    """Return the row of gradual pruning, for 3 bits, and the best bits for what is left."""
    inner = [layer.name for layer in study.graph.layers[1:-1]]
    weights = {name: study.graph.traced.get_parameter(f"{name}.weight") for name in inner}
    policy, count = same_bits(study, 3), sum(w.numel() for w in weights.values())

    def shares_for(share):
        """Return each layer's share of the smallest weights of all, .98 at most."""
        zeros = smallest(
            torch.cat([w.detach().flatten() for w in weights.values()]), round(share * count)
        )
        parts = zeros.split([w.numel() for w in weights.values()])
        return {
            name: min(0.98, float(part.double().mean()))
            for name, part in zip(weights, parts, strict=True)
        }

    def size_of(share):
        shares = shares_for(share)
        return sum(
            size_bytes(
                replace(x, zeros=round(shares.get(x.name, 0) * x.weights)), policy[x.name].weight
            )
            for x in study.graph.layers
        )

    share = at_most(limit, size_of)
    if share is None:
        return {"refused": "not even with .98 of the weights gone"}
    shares, network = shares_for(share), copy.deepcopy(study.graph.traced)
    taught = distilling(study.graph.traced, distillation_of({"kd": 0.9}))

    def steps(images, network):
        split, epochs = part(study, images)
        schedule = schedule_over(max(shares.values()), epochs * -(-len(split) // 64))
        pruner = Pruner(network, shares, schedule)
        train(network, split, epochs=epochs, lr=0.02, seed=0, batch=64, objective=taught,
              constraint=pruner)  # fmt: skip
        pruner.finish()

    images = for_seconds(asked.seconds * 0.6, lambda count: steps(count, copy.deepcopy(network)))
    started = time.process_time()
    steps(images, network)
    more = {"trained_on": images, "sparsity": round(share, 4)}
    return and_bits(study, network, limit, time.process_time() - started, 0.4, more)


def and_bits(study, network, limit, seconds, rest, more):
    """Return the row of the best bits of a network, trained for the rest of the time."""
    other = study.of(network)
    best = other.bits("size", limit)
    if best is None:
        return {"refused": "what is left does not fit at 2 bits"}
    policy, size = best
    model = other.network(policy)
    own = tuned(study, model, other.graph, asked.seconds * rest)
    own["cpu_s"] = round(own["cpu_s"] + seconds, 1)
    return tested(study, model, policy, size, own | more)


def low_rank(study, limit):
    """Return the row of the best ranks (K x 1, 1 x K) for 4 bits, and the best bits for them."""
    inner = [layer.name for layer in study.graph.layers[1:-1]]

    def with_energy(energy):
        network = copy.deepcopy(study.graph.traced)
        for name in inner:
            layer = network.get_submodule(name)
            try:
                plan = plan_for(name, layer, "separable", None, energy)
            except HaqError:  # it would not become smaller
                continue
            network.set_submodule(name, factorised(layer, plan))
        return network

    def size_of(share):
        graph = trace(with_energy(1 - share).eval(), study.sample)
        ends = graph.layers[0].name, graph.layers[-1].name
        return sum(size_bytes(x, 8 if x.name in ends else 4) for x in graph.layers)

    share = at_most(limit, size_of, low=0.01)
    if share is None:
        return {"refused": "not even ranks of 1 fit"}
    more = {"energy": round(1 - share, 4)}
    return and_bits(study, with_energy(1 - share), limit, 0.0, 1.0, more)


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
    policy, inner = same_bits(study, 4), [layer.name for layer in study.graph.layers[1:-1]]

    def without(share):
        network = copy.deepcopy(study.graph.traced)
        modules = [(network.get_submodule(name), "weight") for name in inner]
        prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=share)
        for module, name in modules:
            prune.remove(module, name)
        return network

    share = at_most(limit, lambda share: sparse_size(study.graph, without(share), policy)[0])
    if share is None:
        return {"refused": "not even without weights"}
    network = without(share)
    size, formats = sparse_size(study.graph, network, policy)
    own = trace(network, study.sample)
    clips = calibrate(own, study.images.split(128))
    model = quantize(own, policy, clips)
    correct(model, own, statistics(own, study.images, clips), study.images)
    more = tuned(study, model, own, asked.seconds) | {"sparsity": round(share, 4)}
    return tested(study, model, policy, size, more | {"formats": formats})


def small_dense(study, limit):
    """Return the row of a network of the same kind with fewer channels, from fresh weights."""
    known = study.channels(SHARES)
    policy = same_bits(study, 4)
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


linear = Study(asked.weights, asked.data)
books = Study(asked.weights, asked.data, formats=Formats(("codebook",)))

METHODS = {
    "bits alone": (bits_alone, linear), "codebooks alone": (bits_alone, books),
    "bits and channels": (bits_and_channels, linear),
    "codebooks and channels": (bits_and_channels, books),
    "gradual pruning, then bits": (gradual, linear), "low rank, then bits": (low_rank, linear),
    "torch.nn.utils.prune, 4 bits": (pruned, linear), "small dense, 4 bits": (small_dense, linear),
}  # fmt: skip

for kilobytes in asked.sizes:
    for method, (row_of, study) in METHODS.items():
        if not has(kilobytes, method):
            add(kilobytes, method, row_of(study, 1000 * kilobytes))
