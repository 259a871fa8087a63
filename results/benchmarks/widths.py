"""Bits and channels in one search against bits alone, ResNet-20 at 3 bits of weights.

python results/benchmarks/widths.py ROLE WEIGHTS.safetensors --data cifar10:DIR

ROLE "choose" compares ways of choosing channels by the divergence from the float network on
validation images that it never saw. ROLE "test" takes the way that is best there, with bits alone
at 3 bits on average and at a fifth less, and gives the figures of the test images. All networks of
a role are fine-tuned alike. ROLE "latency" measures the files of "test" in turns, ROLE "kernels"
those of networks with fewer channels inside the blocks of one stage, not trained. Each row goes to
results/reference/widths.json as it ends, and rows that stand there are left out.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from narrow_networks import LR, Study, answers, converted, named

from haq.allocation.policy import Bits
from haq.distillation.kd import divergence
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

parser = argparse.ArgumentParser()
parser.add_argument("role", choices=("choose", "test", "latency", "kernels"))
parser.add_argument("weights")
parser.add_argument("--data", required=True)
parser.add_argument("--images", type=int, default=20_000, help="Of an epoch.")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--rows", nargs="+", help="Names of rows; all without it.")
parser.add_argument("--folder", type=Path, default=Path("results/widths"))
parser.add_argument("--out", type=Path, default=REFERENCE / "widths.json")
asked = parser.parse_args()
torch.set_num_threads(1)

PART = 0.8
"""Of the size of bits alone."""

LESS = "bits alone, a fifth less"

COARSE, FINE = (1.0, 0.75, 0.5, 0.25), (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)

WAYS = {
    "multiples of 16": (COARSE, 16, 1.0),
    "multiples of 16, counted a third": (COARSE, 16, 1 / 3),
    "multiples of 16, counted three times": (COARSE, 16, 3.0),
    "eighths, counted a third": (FINE, 1, 1 / 3),
    "quarters": (COARSE, 1, 1.0),
}
"""How channels are chosen: the shares that may stay, the multiple that their number is of, and how
much of the damage that taking them does to the untrained network counts beside that of bits."""


def record():
    """Return what stands in the record."""
    empty = {"what": "ResNet-20, CIFAR-10 (JPEG), 8-bit activations", "rows": []}
    return json.loads(asked.out.read_text()) if asked.out.exists() else empty


def add(row):
    """Add a row to the record."""
    known = record()
    known |= {"lr": LR, "seed": 0}
    known["rows"].append(row)
    write_json(asked.out, known | script_provenance())


def is_wanted(name):
    """Return whether a row is asked for, and not there."""
    rows = [(row["role"], row["name"], row["tuned_on"]) for row in record()["rows"]]
    tuned_on = [asked.images, asked.epochs]
    return (not asked.rows or name in asked.rows) and (asked.role, name, tuned_on) not in rows


def folder_of(role):
    """Return where the networks of a role are kept."""
    return asked.folder / f"{role}-{asked.images}x{asked.epochs}"


def apart(study, model, count=2500):
    """Return how far a network is from the float one on validation images."""
    parts = study.data.val.batch(torch.arange(count))[0].split(250)
    with torch.no_grad():
        pairs = [(model.eval()(part), study.graph.traced(part)) for part in parts]
    return float(divergence(*(torch.cat(side) for side in zip(*pairs, strict=True))))


def fitted(study, name, policy, size, channels=()):
    """Fine-tune the network of a policy, and write its row."""
    model = study.network(policy, *channels)
    split = study.data.test if asked.role == "test" else study.data.val
    before = answers(model, split, 2000)
    seconds = study.tuned(model, asked.images, asked.epochs)
    right = (answers(model, split) == split.labels).to(torch.uint8)
    folder = folder_of(asked.role)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(right, folder / f"{name}.pt")
    file = file_of(study, model)
    (folder / f"{name}.onnx").write_bytes(file)
    row = {
        "role": asked.role, "name": name, "size_bytes": size,
        "accuracy": float(right.double().mean()),
        "accuracy_untuned": float((before == split.labels[:2000]).double().mean()),
        "images": len(right), "tuned_on": [asked.images, asked.epochs],
        "tuning_cpu_s": seconds, "file_bytes": len(file),
        "weights": sum(p.numel() for p in model.parameters() if p.dim() > 1),
        "policy": named(policy),
    }  # fmt: skip
    if asked.role == "choose":
        row["divergence"] = apart(study, model)
    add(row)
    print({key: value for key, value in row.items() if key != "policy"}, flush=True)


def paired(right, base):
    """Return the difference in accuracy from the network of bits alone, and its standard error."""
    gained, lost = int((right > base).sum()), int((right < base).sum())
    error = math.sqrt(max(gained + lost - (gained - lost) ** 2 / len(right), 0)) / len(right)
    return {"against_bits_alone": (gained - lost) / len(right), "standard_error": error}


def ways():
    """Return the ways of choosing channels that a role takes."""
    rows = [row for row in record()["rows"] if row["role"] == "choose" and row["name"] in WAYS]
    if asked.role == "choose" or not rows:
        return WAYS
    best = min(rows, key=lambda row: row["divergence"])["name"]
    return {best: WAYS[best]}


def chosen(study, name):
    """Return the policy of a row and its size, worked out once for a float network."""
    file = asked.folder / f"policies-{asked.role}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if name not in known:
        policy, size = _chosen(study, name)
        known[name] = [{layer: list(one.row()) for layer, one in policy.items()}, size]
        asked.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    policy, size = known[name]
    return {layer: Bits(*one) for layer, one in policy.items()}, size


def _chosen(study, name):
    if name == "bits alone":
        return study.bits("avg_weight_bits", 3.0)
    limit = PART * chosen(study, "bits alone")[1]
    return study.widths(limit, *WAYS[name]) if name in WAYS else study.bits("size", limit)


def compare():
    """Write the rows of a role."""
    study = Study(asked.weights, asked.data)
    for name in ("bits alone", *ways(), LESS):
        if is_wanted(name):
            fitted(study, name, *chosen(study, name), WAYS.get(name, ())[:2])
    pair_up()


def pair_up():
    """Compare rows with bits alone that ended before these did."""
    known, base = record(), folder_of(asked.role) / "bits alone.pt"
    for row in known["rows"]:
        file = folder_of(asked.role) / f"{row['name']}.pt"
        mine = (row["role"], row["tuned_on"]) == (asked.role, [asked.images, asked.epochs])
        if mine and base.exists() and file.exists():
            row |= paired(torch.load(file), torch.load(base))
    write_json(asked.out, known)


def file_of(study, model):
    """Return the file of a quantized network, for CPUs with VNNI."""
    twin = converted(model)
    return lower(template(twin, study.sample), twin, cpu="vnni").SerializeToString()


def latency():
    """Measure the files of the test role in turns, and write how long each takes."""
    files = sorted(folder_of("test").glob("*.onnx"))
    measure("latency_us", {file.stem: file.read_bytes() for file in files})


KERNELS = (
    ("layer1", 0.75), ("layer1", 0.5), ("layer2", 0.75), ("layer2", 0.5), ("layer3", 0.875),
    ("layer3", 0.75), ("layer3", 0.5),
)  # fmt: skip
"""Stages and the shares of channels that stay inside their blocks."""


def kernels():
    """Measure what fewer channels are worth in each stage, all layers at 3 bits."""
    study = Study(asked.weights, asked.data)
    plain = {layer.name: Bits(3, 8) for layer in study.graph.layers}
    files = {"whole": file_of(study, study.network(plain))}
    for stage, share in KERNELS:
        shares = (1.0, share)
        inner = [group.name for group in study.channels(shares).groups if len(group.layers) == 1]
        narrow = {name: plain[name].with_keep(share) for name in inner if name.startswith(stage)}
        count = round(share * len(study.graph.traced.get_parameter(f"{stage}.0.conv1.weight")))
        network = study.network(plain | narrow, shares)
        files[f"{stage}: {count} channels"] = file_of(study, network)
    measure("kernels_us", files)


def measure(name, files):
    """Measure files in turns and put the latencies into the record."""
    setup = onnx_runtime.Setup()
    sessions = {key: onnx_runtime.session(file, setup) for key, file in files.items()}
    known = record()
    known[name] = {
        key: {"value": round(one.us, 1), "low": round(one.low, 1), "high": round(one.high, 1)}
        for key, one in onnx_runtime.measure(sessions, setup, rounds=60).items()
    }
    write_json(asked.out, known)
    print(known[name])


{"latency": latency, "kernels": kernels}.get(asked.role, compare)()
