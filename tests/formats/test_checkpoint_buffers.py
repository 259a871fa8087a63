"""A checkpoint keeps what is not float32 too, says at once what it cannot keep, and adds up."""

import json
import os
import struct
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import haq
from haq.allocation.costs import size_bytes
from haq.errors import CheckpointError
from haq.formats.checkpoint import Origin, check_savable, save
from haq.formats.stand_in import stand_in
from haq.network.graph import trace


class Counting(nn.Module):
    """Buffers of many types, some of which the forward reads."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("order", torch.arange(6))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("fine", torch.tensor([0.1], dtype=torch.float64))
        self.register_buffer(
            "short", torch.tensor([[0.5, 2.0, 1.0, 0.0, 4.0, 8.0]], dtype=torch.float16)
        )
        self.register_buffer("brief", torch.tensor([-300], dtype=torch.int16))
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x):
        x = x[:, self.order] * self.fine + self.short
        return (self.fc(x.float()) + self.steps) * self.mask * self.scale + self.brief


BUFFERS = ("order", "steps", "mask", "fine", "short", "brief", "scale")


def saved(model, shape, path):
    graph = trace(model.eval(), torch.zeros(2, *shape))
    network, policy = stand_in(graph)
    save(path, network, policy, Origin(model="mine", shape=shape))
    return network


@pytest.fixture
def counting(tmp_path):
    torch.manual_seed(0)
    model = Counting()
    model.order.copy_(torch.tensor([5, 3, 1, 0, 2, 4]))
    model.mask.copy_(torch.tensor([False, True, True]))
    model.steps.fill_(2**40)
    model.fine.fill_(1 / 3)
    path = tmp_path / "it.safetensors"
    return path, model, saved(model, (6,), path)


def test_buffers_of_every_type_come_back(counting):
    path, model, network = counting
    loaded = haq.load(path, Counting())
    for name in BUFFERS:
        value = loaded.get_buffer(name)
        floats = model.get_buffer(name).is_floating_point()  # capture brings them to float32
        assert value.dtype == (torch.float32 if floats else model.get_buffer(name).dtype)
        assert torch.equal(value, model.get_buffer(name).to(value.dtype))
    x = torch.randn(2, 6)
    assert torch.equal(loaded(x), network(x))


def test_a_file_without_such_buffers_has_no_tensor_for_them(tmp_path):
    saved(nn.Sequential(nn.Linear(2, 2)), (2,), tmp_path / "it.safetensors")
    content = (tmp_path / "it.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert "others" not in header


def test_a_truth_value_is_zero_or_one(counting):
    path, _, _ = counting
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    begin = 8 + length + header["others"]["data_offsets"][0]
    place = content.index(b"\0\1\1", begin)  # the mask
    content[place] = 2
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="others has a value in mask that is neither true"):
        haq.load(path, Counting())


class Masked(nn.Module):
    """Some answers are ruled out by a buffer."""

    def __init__(self, ruled_out=float("-inf")):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, ruled_out]))

    def forward(self, x):
        return (self.fc(x) + self.mask).softmax(-1)


def test_the_infinities_of_a_mask_come_back(tmp_path):
    network = saved(Masked(), (6,), tmp_path / "it.safetensors")
    loaded = haq.load(tmp_path / "it.safetensors", Masked(0.0))
    assert loaded.mask.tolist() == [0.0, 0.0, float("-inf")]
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), network(x))


def test_a_mask_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="mask has values that are not finite numbers"):
        saved(Masked(float("nan")), (6,), tmp_path / "it.safetensors")


class Others(nn.Module):
    """Some of the weights are in no layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.table = nn.Parameter(torch.randn(50, 8))
        self.norm = nn.LayerNorm(8)
        self.weights = nn.Parameter(torch.randn(17))
        self.register_buffer("count", torch.zeros(4, dtype=torch.int64))

    def forward(self, x):
        return self.fc(self.norm(x @ self.table)) * self.weights.sum() + self.count


def test_a_file_is_as_large_as_its_layers_and_all_that_stays_float(tmp_path):
    model = Others().eval()
    graph = trace(model, torch.zeros(2, 50))
    saved(model, (50,), tmp_path / "it.safetensors")
    layers = sum(size_bytes(layer, 8) for layer in graph.layers)
    floats = 4 * (8 + 8 + 17) + 8 * 4
    content = (tmp_path / "it.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    scales = 4 * len(graph.points)  # of the activations
    assert len(content) - 8 - length == layers + floats + scales
    assert os.path.getsize(tmp_path / "it.safetensors") == len(content)


@dataclass
class Detected:
    boxes: torch.Tensor
    scores: list[torch.Tensor]


def test_results_are_compared_wherever_they_stand(tmp_path):
    from haq.formats.checkpoint.write import _leaves

    one, two, three = torch.ones(1), torch.zeros(2), torch.ones(3)
    assert len(_leaves({"logits": one, "rest": (two, [three])})) == 3
    assert len(_leaves(Detected(one, [two, three]))) == 3
    assert len(_leaves(one)) == 1
    assert _leaves({"loss": None, "text": "hello"}) == []


def test_what_cannot_be_kept_is_said_of_the_float_network():
    graph = trace(nn.Sequential(nn.Linear(2, 2)), torch.zeros(2, 2))
    check_savable(graph, (2,))
    graph.traced.register_parameter("more", nn.Parameter(torch.ones(1).double()))
    with pytest.raises(CheckpointError, match="more is torch.float64; only parameters in float32"):
        check_savable(graph, (2,))
