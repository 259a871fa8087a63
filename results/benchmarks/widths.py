"""Bits and channels in one search against bits alone, ResNet-20 at 3 bits of weights.

python results/benchmarks/widths.py ROLE WEIGHTS.safetensors --data cifar10:DIR

ROLE "untuned" has the networks before they are fine-tuned, on 5 000 validation images. ROLE
"choose" compares ways of choosing on these, for a float network that never saw them. ROLE "test"
takes the way that is best there, or all of them where none was compared, and gives the figures of
the test images, with bits alone at 3 bits on average and at a fifth less. All are fine-tuned alike.
ROLE "latency" measures the files of "untuned" in turns: those of "test" have the same operations.
Each row goes to results/reference/widths.json as it ends, and rows that stand there are left out.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from narrow_networks import LR, Study, answers, converted, named

from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

parser = argparse.ArgumentParser()
parser.add_argument("role", choices=("untuned", "choose", "test", "latency"))
parser.add_argument("weights")
parser.add_argument("--data", required=True)
parser.add_argument("--images", type=int, default=20_000, help="Of an epoch.")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--folder", type=Path, default=Path("results/widths"))
parser.add_argument("--out", type=Path, default=REFERENCE / "widths.json")
asked = parser.parse_args()
torch.set_num_threads(1)

PART = 0.8
"""Of the size of bits alone."""

COARSE, FINE = (1.0, 0.75, 0.5, 0.25), (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)

WAYS = {
    "channels in eighths, counted a third": (FINE, 1 / 3),
    "channels in quarters": (COARSE, 1.0),
}
"""How channels are chosen: the shares that may stay, and how much of the damage that taking them
does to the untrained network counts beside that of bits."""


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


def has(role, name):
    """Return whether a row is there."""
    return any((row["role"], row["name"]) == (role, name) for row in record()["rows"])


def fitted(study, name, policy, size, shares=None):
    """Fine-tune the network of a policy, and write its row."""
    if has(asked.role, name):
        return
    model = study.network(policy, shares)
    split = study.data.test if asked.role == "test" else study.data.val
    before = answers(model, split, 2000)
    epochs = 0 if asked.role == "untuned" else asked.epochs
    seconds = study.tuned(model, asked.images, epochs)
    right = (answers(model, split) == split.labels).to(torch.uint8)
    asked.folder.mkdir(parents=True, exist_ok=True)
    torch.save(right, asked.folder / f"{asked.role}-{name}.pt")
    twin = converted(model)
    file = lower(template(twin, study.sample), twin, cpu="vnni").SerializeToString()
    (asked.folder / f"{asked.role}-{name}.onnx").write_bytes(file)
    row = {
        "role": asked.role, "name": name, "size_bytes": size,
        "accuracy": float(right.double().mean()),
        "accuracy_untuned": float((before == split.labels[:2000]).double().mean()),
        "images": len(right), "tuned_on": [asked.images, epochs],
        "tuning_cpu_s": seconds, "file_bytes": len(file),
        "weights": sum(p.numel() for p in model.parameters() if p.dim() > 1),
        "policy": named(policy),
    }  # fmt: skip
    reference = asked.folder / f"{asked.role}-bits alone.pt"
    if reference.exists():
        base = torch.load(reference)
        gained, lost = int((right > base).sum()), int((right < base).sum())
        error = math.sqrt(max(gained + lost - (gained - lost) ** 2 / len(right), 0)) / len(right)
        row |= {"against_bits_alone": (gained - lost) / len(right), "standard_error": error}
    add(row)
    print({key: value for key, value in row.items() if key != "policy"}, flush=True)


def compare():
    """Write the rows of a role."""
    study = Study(asked.weights, asked.data)
    policy, size = study.bits("avg_weight_bits", 3.0)
    if asked.role != "choose":
        fitted(study, "bits alone", policy, size)
        fitted(study, "bits alone, a fifth less", *study.bits("size", PART * size))
    ways = WAYS
    if asked.role == "untuned":
        ways = {"channels in quarters": WAYS["channels in quarters"]}
    if asked.role == "test":
        rows = [row for row in record()["rows"] if row["role"] == "choose" and row["name"] in WAYS]
        if rows:
            best = max(rows, key=lambda row: row["accuracy"])["name"]
            ways = {best: WAYS[best]}
    for name, (shares, counted) in ways.items():
        policy, less = study.widths(PART * size, shares, counted)
        fitted(study, name, policy, less, shares)


def latency():
    """Measure the files of the test role in turns, and write how long each takes."""
    setup = onnx_runtime.Setup()
    files = sorted(asked.folder.glob("untuned-*.onnx"))
    sessions = {
        file.stem.removeprefix("untuned-"): onnx_runtime.session(file.read_bytes(), setup)
        for file in files
    }
    timings = onnx_runtime.measure(sessions, setup, rounds=60)
    known = record()
    known["latency_us"] = {
        name: {"value": round(one.us, 1), "low": round(one.low, 1), "high": round(one.high, 1)}
        for name, one in timings.items()
    }
    write_json(asked.out, known)
    print(known["latency_us"])


latency() if asked.role == "latency" else compare()
