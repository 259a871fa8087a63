"""What a network can be handed over as is known before the first episode."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import haq
from haq import hw_profiles
from haq.errors import HaqError
from haq.models import build
from haq.runs.handover import tried
from haq.runs.job import parse_job
from haq.runs.plan import plan
from haq.runs.progress import Progress


class Bessel(nn.Module):
    """Computes something that ONNX has no operator for."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.special.i1(self.first(x)))


def test_a_network_that_cannot_be_exported_is_said_to_be_and_searched(tmp_path):
    seen: list[Progress] = []
    run = haq.search(Bessel(), torch.randn(80, 8), agent="ilp", budgets=["avg_weight_bits=6"],
                     pins={}, rounding_steps=0, threads=1, out=tmp_path / "run",
                     on_progress=seen.append)  # fmt: skip
    assert seen[0].stage == "plan"
    assert "the network will not be exported to ONNX: " in seen[0].note
    assert any("will not be exported" in note for note in run.summary["notes"])
    haq.export_checkpoint(run, tmp_path / "net.safetensors", Bessel())
    with pytest.raises(HaqError):
        haq.export_onnx(run, tmp_path / "net.onnx", Bessel())


def test_a_network_that_can_be_exported_has_its_template_ready():
    job = parse_job(model="digits_mlp", budgets=["avg_weight_bits=6"])
    planned = tried(plan(job, build("digits_mlp"), {"shape": [1, 8, 8]}))
    assert planned.template is not None
    assert not any("exported" in note for note in planned.notes)


class Branches(nn.Module):
    """A depthwise and a dense convolution read the same tensor."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.deep, self.dense = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.deep(x) + self.dense(x))).mean((2, 3))


def test_layers_of_other_kinds_that_read_one_tensor_can_be_planned(tmp_path):
    profile = json.loads(Path(hw_profiles.__file__).with_name("roofline-45nm.json").read_text())
    pairs = [[8, 7], [7, 8], [4, 8], [4, 4]]
    profile["bits"] = {"pairs": pairs, "kinds": {"depthwise": {"pairs": [*pairs, [8, 8]]}}}
    file = tmp_path / "kinds.json"
    file.write_text(json.dumps(profile))
    job = parse_job(model="own", target=str(file), budgets=["latency=100%w4a8"])
    table = plan(job, Branches(), {"shape": [3, 8, 8]}).table
    assert table.choices["deep"][-1] == (8, 8) and table.choices["dense"][-1] == (8, 7)
