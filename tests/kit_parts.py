"""A kit of a small network, and a board whose costs are known."""

import json

import numpy as np
import torch
from torch import nn

from haq.allocation.policy import Bits
from haq.hw_profiles.measured import crossings
from haq.network.graph import trace
from haq.runs.kit.read import MEASURED, contents_of
from haq.runs.profiling.subject import Subject, placeholder_clips

WIDTHS = (2, 4, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.c(self.b(self.a(x).relu()).relu()).relu()
        return self.fc(self.d(x).relu().mean((2, 3)))


def subject(model=None, size=8):
    torch.manual_seed(0)
    sample = torch.zeros(1, 3, size, size)
    graph = trace(model or Net(), sample)
    return Subject("net", graph, placeholder_clips(graph), sample)


def board(contents, file):
    """A device of our own: a start, edges of a layer alone, prices for bits and their changes."""
    about = contents.files[file]

    def inside(shape, bits):
        weight, act = bits
        taps = np.prod(shape.kernel) * shape.c_in // shape.groups
        price = 3 if weight == 32 else (2 + weight) / 10 * (8 + act) / 16
        return 0.01 * shape.c_out * np.prod(shape.out_size) * taps * price

    if "shape" in about:
        shape = contents.shapes[about["shape"]]
        values = shape.c_in * np.prod(shape.in_size) + shape.c_out * np.prod(shape.out_size)
        edges = 0 if about["bits"][0] == 32 else 0.02 * values
        return 5 + contents.batch * (edges + inside(shape, about["bits"]))
    policy = {name: Bits(*bits) for name, bits in about["policy"].items()}
    parts = [(part, bits) for name, bits in policy.items() for part in contents.layers[name]]
    into, back = crossings(contents.tensors, policy)
    layers = sum(part.calls * inside(contents.shapes[part.shape], bits[:2]) for part, bits in parts)
    return 5 + contents.batch * (layers + 0.03 * into + 0.01 * back)


def write_rows(folder, times=board, change=lambda rows: rows, rounds=3):
    contents = contents_of(folder)
    rows = []
    for number in range(rounds):
        order = [contents.reference, *contents.files, contents.reference]
        rows += [{"round": number, "place": place, "file": file, "us": float(times(contents, file))}
                 for place, file in enumerate(order)]  # fmt: skip
    lines = [{"device": {"cpu": "a board", "threads": 1, "command": "x"}}, *change(rows)]
    (folder / MEASURED).write_text("".join(json.dumps(line) + "\n" for line in lines))
