"""Large networks with few weights left against small dense ones: at equal weights, at equal bytes.

python results/benchmarks/pruning.py --data cifar10:DIR

Writes results/reference/pruning.json after every network and goes on from there. All networks
of a comparison are trained from the start for the same epochs of the same images; the large ones
lose weights on the way (cubic schedule, three quarters of the steps), by ours or, at equal weights,
by ``torch.nn.utils.prune.l1_unstructured`` at the same steps. Bytes are those of the checkpoint
at 8-bit weights: codes in the cheapest format, scales, biases and all that stays float. The share
of zeros at equal bytes is that of the cost formula, and missing where nothing would be left; the
file's own bytes, and the formats of its layers, stand in the rows. Scores are of validation images,
of the network with 8-bit weights.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from scipy.stats import t as student_t
from torch import nn
from torch.nn.utils import prune

from haq.allocation.costs import size_bytes
from haq.allocation.policy import FLOAT, Bits
from haq.compression.filters import remove
from haq.compression.magnitude import Pruner, schedule_over
from haq.compression.widths import kept_places, lost_channels, widths_of
from haq.datasets import load
from haq.formats import checkpoint
from haq.models import build
from haq.network.graph import trace
from haq.network.layers import edges
from haq.quantization.calibration import Clips, calibrate_weights
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json
from haq.runs.samples import Part
from haq.training.numerics import in_channels_last
from haq.training.scoring import score
from haq.training.train import train

BITS = 8

BY_TORCH = "large, equal weights, torch.nn.utils.prune"


@dataclass(frozen=True)
class Subject:
    """What is trained, and how.

    Attributes:
        data: As ``haq.datasets.load`` takes it.
        large: Makes the network that loses weights.
        small: Makes the one that begins with few.
        images: Training images an epoch, at most.
        epochs: Of each network.
        lr: Highest learning rate.
        seeds: Networks of each kind.
        more: Whether torch.nn.utils.prune and the large dense network take part.
    """

    data: str
    large: object
    small: object
    images: int
    epochs: int
    lr: float
    seeds: int
    more: bool = True


def mlp(hidden):
    """Return what makes a network with one hidden layer for digits."""
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )


def mobilenet(width):
    """Return what makes a MobileNetV1 for images of 32 x 32."""
    return lambda: build("mobilenet_v1", 10, width, 32)


def resnet(share):
    """Return what makes a ResNet-20 with a share of its channels."""

    def make():
        sample = torch.zeros(2, 3, 32, 32)
        traced = trace(build("resnet20", 10).eval(), sample).traced
        if share < 1:
            known = widths_of(traced, sample, (1.0, share))
            lost = lost_channels(known, {}, {group.name: share for group in known.groups})
            traced = remove(traced, sample, kept_places(known.channels, lost))
        for module in traced.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return traced

    return make


class TorchPruner:
    """The steps of a schedule by torch.nn.utils.prune, as a constraint of a training."""

    def __init__(self, model, shares, schedule):
        self.parts, self.schedule = [model.get_submodule(name) for name in shares], schedule

    def _prune(self, share):
        for part in self.parts:
            if not hasattr(part, "weight_mask"):  # it cannot prune weights in channels_last
                part.weight.data = part.weight.data.contiguous()
            gone = int((part.weight_mask == 0).sum()) if hasattr(part, "weight_mask") else 0
            more = round(share * part.weight.numel()) - gone
            if more > 0:
                prune.l1_unstructured(part, "weight", amount=more)

    def before_step(self, step):
        """Prune where the schedule says so."""
        if self.schedule.updates_at(step):
            self._prune(self.schedule.at(step))

    def before_update(self):
        """Masks are PyTorch's."""

    def apply(self):
        """Masks are PyTorch's."""

    def finish(self):
        """Reach the last sparsity, and take the masks into the weights."""
        self._prune(self.schedule.final)
        for part in self.parts:
            prune.remove(part, "weight")


def subjects(asked):
    """Return the comparisons by name."""
    return {
        "digits, mlp of 128 and of 4 hidden units": Subject(
            "digits", mlp(128), mlp(4), 1078, 15, 0.1, 5
        ),
        "digits, mlp of 128 and of 16 hidden units": Subject(
            "digits", mlp(128), mlp(16), 1078, 15, 0.1, 5
        ),
        "CIFAR-10 (JPEG), ResNet-20 whole and with half its channels": Subject(
            asked.data, resnet(1.0), resnet(0.5), 2 * asked.images, 3, 0.1, asked.seeds
        ),
        "CIFAR-10 (JPEG), MobileNetV1 of width 1 and 0.5": Subject(
            asked.data, mobilenet(1.0), mobilenet(0.5), asked.images, 3, 0.1, 1, more=False
        ),
    }  # fmt: skip


def sparse_layers(graph):
    """Return the layers that lose weights: all but depthwise ones and, of many, the ends."""
    ends = edges(graph.layers) if len(graph.layers) > 2 else ()
    return [x for x in graph.layers if x.kind != "depthwise" and x.name not in ends]


def size(graph, share):
    """Return the bytes of a network whose layers lose a share of their weights."""
    chosen = {layer.name for layer in sparse_layers(graph)}
    layers = [
        replace(layer, zeros=round(share * layer.weights)) if layer.name in chosen else layer
        for layer in graph.layers
    ]
    return sum(size_bytes(layer, BITS) for layer in layers) + 4 * sum(
        graph.float_parameters.values()
    )


def share_at_bytes(graph, limit):
    """Return the least share at which a network takes no more bytes than the limit."""
    low, high = 0.0, 0.999
    if size(graph, high) > limit:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if size(graph, middle) > limit else (low, middle)
    return high


def share_at_weights(graph, count):
    """Return the share at which so many weights of a network are left."""
    every = sum(layer.weights for layer in graph.layers)
    return (every - count) / sum(layer.weights for layer in sparse_layers(graph))


def trained(subject, data, make, share, seed, sample, pruner_of):
    """Return a network trained from the start, and the layers that lost weights."""
    torch.manual_seed(seed)
    graph = trace(make(), sample)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    part = Part(data.train, order[: subject.images])
    shares = {layer.name: share for layer in sparse_layers(graph)} if share else {}
    steps = subject.epochs * (len(part) // 64)
    pruner = pruner_of(graph.traced, shares, schedule_over(share, steps)) if shares else None
    train(graph.traced, part, epochs=subject.epochs, lr=subject.lr, seed=seed, batch=64,
          constraint=pruner)  # fmt: skip
    if pruner:
        pruner.finish()
    return graph.traced, shares


def row(subject, data, make, share, seed, pruner_of):
    """Return what one network is worth and what it takes."""
    started = time.process_time()
    sample, _ = data.train.batch(torch.arange(2))
    network, shares = trained(subject, data, make, share, seed, sample, pruner_of)
    graph = trace(network, sample)
    policy = {layer.name: Bits(BITS, FLOAT) for layer in graph.layers}
    coded = quantize(graph, policy, Clips(calibrate_weights(graph, "max"), {}))
    convert_to_integers(coded)
    in_channels_last(coded)
    chain = ({"transform": "sparsity", "layers": shares},) if shares else ()
    origin = checkpoint.Origin(model="own", shape=tuple(sample.shape[1:]), transforms=chain)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        content = checkpoint.save(path, coded, policy, origin)
        tensors = load_file(path)
    return {
        "share_of_zeros": share, "seed": seed,
        "weights": sum(int((network.get_parameter(f"{x.name}.weight") != 0).sum())
                       for x in graph.layers),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "bytes_of_formula": size(graph, 0.0) if not shares else size(trace(network, sample), share),
        "formats": dict(Counter(kind for kind, _ in content.codings.values())),
        "val_accuracy": score(coded, data.val).accuracy,
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def summary(rows, name):
    """Return the differences of the large networks from the small one, paired by seed."""
    own = [one for one in rows if one["subject"] == name]
    small = {one["seed"]: one["val_accuracy"] for one in own if one["network"] == "small, dense"}
    result = {}
    for kind in ("large, equal weights", "large, equal bytes", BY_TORCH):
        gains = [
            one["val_accuracy"] - small[one["seed"]]
            for one in own
            if one["network"] == kind and one["seed"] in small
        ]
        if gains:
            half = None
            if len(gains) > 1:
                error = statistics.stdev(gains) / len(gains) ** 0.5
                half = float(student_t.ppf(0.975, len(gains) - 1)) * error
            result[kind] = {"gain": statistics.mean(gains), "half_interval": half}
    return result


def runs_of(subject, data):
    """Yield the networks of a comparison, seed by seed."""
    sample, _ = data.train.batch(torch.arange(2))
    large, small = (trace(make(), sample) for make in (subject.large, subject.small))
    weights = sum(layer.weights for layer in small.layers)
    at_weights = share_at_weights(large, weights)
    at_bytes = share_at_bytes(large, size(small, 0.0))
    for seed in range(subject.seeds):
        yield "small, dense", subject.small, 0.0, seed, None
        yield "large, equal weights", subject.large, at_weights, seed, Pruner
        if subject.more:
            yield BY_TORCH, subject.large, at_weights, seed, TorchPruner
        if at_bytes is not None:
            yield "large, equal bytes", subject.large, at_bytes, seed, Pruner
    if subject.more:
        yield "large, dense", subject.large, 0.0, 0, None


def main():
    """Run what is missing and write the record after every network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2000, help="Of MobileNet; twice of ResNet.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=6, help="CPU minutes it may take.")
    parser.add_argument("--out", default="pruning")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = REFERENCE / f"{asked.out}.json"
    record = {"what": __doc__.splitlines()[0], "bits": BITS, "images": asked.images}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(before.get(key) == value for key, value in record.items())
    rows, spent = (before["rows"], 60 * before["cpu_minutes"]) if same else ([], 0.0)
    record |= {"rows": rows, **script_provenance()}
    for name, subject in subjects(asked).items():
        data = load(subject.data)
        for network, make, share, seed, pruner_of in runs_of(subject, data):
            key = {"subject": name, "network": network, "seed": seed}
            known = any(key.items() <= one.items() for one in rows)
            if known or spent + time.process_time() > 60 * asked.minutes:
                continue
            rows.append(key | row(subject, data, make, share, seed, pruner_of))
            print(rows[-1], flush=True)
            record["differences"] = {one: summary(rows, one) for one in subjects(asked)}
            record["cpu_minutes"] = round((spent + time.process_time()) / 60, 2)
            write_json(path, record)


main()
