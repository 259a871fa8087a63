"""Every kind of layer goes the whole way: search, checkpoint, ONNX file."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn

import haq
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.network.graph import trace
from haq.runs.api import search
from haq.runs.verify import verify


class Net(nn.Module):
    """A network written in one line: its forward, then its modules."""

    def __init__(self, body, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def tied(body, bias=False):
    net = Net(body, words=nn.Embedding(40, 16), mix=nn.Linear(16, 16),
              head=nn.Linear(16, 40, bias=bias))  # fmt: skip
    net.head.weight = net.words.weight
    return net


def with_places():
    def body(net, x):
        places = net.places[:, : x.shape[1]]
        return net.head(torch.relu(net.mix(net.words(x) + net.place(places))).mean(1))

    net = Net(body, words=nn.Embedding(40, 16, padding_idx=0), place=nn.Embedding(12, 16),
              mix=nn.Linear(16, 32), head=nn.Linear(32, 8))  # fmt: skip
    net.register_buffer("places", torch.arange(12)[None])
    return net


def noise(*shape):
    return lambda count: torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def tokens(count):
    return torch.randint(40, (count, 12), generator=torch.Generator().manual_seed(0))


class Case(NamedTuple):
    """A network of some kind.

    Attributes:
        build: Makes it, with random weights.
        inputs: From a count to inputs (count, ...).
        kinds: Of its layers, in order of execution.
    """

    build: Callable
    inputs: Callable
    kinds: tuple


class Recurrent(nn.Module):
    """An LSTM and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.first(x)[0][:, -1])


CASES = {
    "1-D convolutions": Case(
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 5, stride=2, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, groups=8, padding="same"),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 12, 1, groups=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(12, 8),
        ),
        noise(3, 20),
        ("conv", "depthwise", "conv", "grouped", "linear"),
    ),
    "3-D and transposed convolutions": Case(
        lambda: nn.Sequential(
            nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 6, (1, 3, 3)),
            nn.ReLU(),
            nn.ConvTranspose3d(6, 4, 3, stride=(1, 2, 2), groups=2, bias=False),
            nn.Flatten(2),
            nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1),
        ),
        noise(2, 3, 9, 9),
        ("conv", "conv", "transposed", "transposed"),
    ),
    "transposed 2-D convolutions in the middle and at the end": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 2, 2, stride=2, dilation=2),
        ),
        noise(3, 10, 10),
        ("conv", "transposed", "conv", "transposed"),
    ),
    "LSTM": Case(Recurrent, noise(5, 6), ("recurrent", "recurrent", "linear")),
    "embeddings of words and places": Case(
        with_places, tokens, ("embedding", "embedding", "linear", "linear")
    ),
    "a tied head, and a product with the transposed table": Case(
        lambda: tied(
            lambda net, x: (
                net.head(torch.relu(net.mix(net.words(x))).mean(1))
                + torch.relu(net.words(x)).mean(1) @ net.words.weight.T
            ),
            bias=True,
        ),
        tokens,
        ("linear", "linear", "linear"),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]


def test_a_kind_of_layer_goes_the_whole_way(case, tmp_path):
    model, inputs = case.build().eval(), case.inputs(40)
    run = search(
        model, inputs, agent="ilp", budgets=["avg_weight_bits=7"], pins={}, rounding_steps=2,
        threads=1, out=tmp_path / "run",
    )  # fmt: skip
    assert tuple(layer.kind for layer in trace(model, inputs[:2]).layers) == case.kinds
    with torch.no_grad():
        answer = run.model(inputs)
    haq.export_checkpoint(run, tmp_path / "net.safetensors", model=model)
    restored = haq.load(tmp_path / "net.safetensors", model=case.build())
    assert torch.equal(restored(inputs), answer)
    file = haq.export_onnx(run.folder, tmp_path / "net.onnx", model=model)
    result = verify(tmp_path / "net.onnx")
    assert result["equal_images"] == result["simulated_images"] or not result["all_integer"]
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    answers = onnx_runtime.answers(session, inputs.numpy())
    assert torch.allclose(torch.from_numpy(answers), answer, atol=0.02 * float(answer.std()))
