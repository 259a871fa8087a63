"""Layers with codebooks: files in ONNX Runtime, checkpoints, packets."""

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import haq
from haq.allocation.costs import size_bytes
from haq.allocation.policy import CODEBOOK, Bits
from haq.errors import CheckpointError
from haq.formats import checkpoint
from haq.formats.onnx.comparison import compare
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize


class Kinds(nn.Module):
    """Convolutions of every kind, BatchNorms of either sign, a Linear."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.each = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.norm_up = nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.wide(x)))
        x = functional.relu(self.norm_up(self.up(self.each(x))))
        return self.out(x.mean((2, 3)))


class Tied(nn.Module):
    """A table of words that is the last layer's weight too, and an LSTM."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.mix = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.mix(self.words(x))[0])


INPUTS = {
    Kinds: (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)), None),
    Tied: (torch.arange(12).view(4, 3) % 20, 20),
}


class Subject:
    """A small network with codebooks, and what its files need."""

    def __init__(self, kind, bits):
        torch.manual_seed(0)
        self.kind, (self.inputs, self.tokens) = kind, INPUTS[kind]
        model = kind().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.normal_()
        self.graph = trace(model, self.inputs)
        self.policy = {layer.name: Bits(bits, 32, CODEBOOK) for layer in self.graph.layers}
        clips = calibrate(self.graph, [self.inputs], "max")
        self.network = quantize(self.graph, self.policy, clips)
        convert_to_integers(self.network)

    def answer(self, network):
        with torch.no_grad():
            return network(self.inputs)

    def save(self, path):
        origin = checkpoint.Origin(
            model="own", shape=tuple(self.inputs.shape[1:]), tokens=self.tokens
        )
        checkpoint.save(path, self.network, self.policy, origin)
        return path


every_kind = pytest.mark.parametrize("kind", [Kinds, Tied])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@every_kind
def test_the_file_answers_as_the_network(kind, bits):
    subject = Subject(kind, bits)
    file = lower(template(stand_in(subject.graph)[0], subject.inputs), subject.network)
    onnx.checker.check_model(file)
    session = opened(file.SerializeToString())
    answer = session.run(None, {session.get_inputs()[0].name: subject.inputs.numpy()})[0]
    expected = subject.answer(subject.network).numpy()
    assert np.abs(answer - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_file_without_codes_of_activations_is_compared():
    subject = Subject(Kinds, 3)
    file = lower(template(stand_in(subject.graph)[0], subject.inputs), subject.network)
    comparison = compare(file, subject.inputs.numpy())
    assert comparison.right and not comparison.exact and comparison.images == 4


def test_labels_are_packed_in_the_file():
    subject = Subject(Kinds, 4)
    file = lower(template(stand_in(subject.graph)[0], subject.inputs), subject.network)
    sizes = {tensor.name: len(tensor.raw_data) for tensor in file.graph.initializer}
    assert sizes["wide.weight_labels"] == 3 * 12 * 9 // 2
    assert sizes["wide.weight_book"] == 4 * 16
    assert max(sizes.values()) == sizes["wide.weight_labels"]


@pytest.mark.parametrize("bits", [2, 3, 8])
@every_kind
def test_a_checkpoint_gives_the_same_answers_bit_for_bit(kind, bits, tmp_path):
    subject = Subject(kind, bits)
    again = haq.load(subject.save(tmp_path / "books.safetensors"), model=kind())
    assert torch.equal(subject.answer(again), subject.answer(subject.network))


@every_kind
def test_a_checkpoint_has_the_bytes_that_the_costs_say(kind, tmp_path):
    subject = Subject(kind, 3)
    with safe_open(subject.save(tmp_path / "books.safetensors"), "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}
    layers = subject.graph.layers
    assert sizes["codes"] + sizes["books"] == sum(
        size_bytes(layer, 3, CODEBOOK) - 4 * layer.biases for layer in layers
    )
    assert sizes["books"] == len(layers) * 8 * 4


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors, about: tensors.update(books=tensors["books"][1:]), "tensor 'books' has"),
        (lambda tensors, about: tensors["books"].fill_(torch.nan), "not a finite number"),
        (lambda tensors, about: about["formats"].update(wide=[-2, ""]), "cannot have groups of -2"),
        (lambda tensors, about: about["layers"][0].__setitem__(2, 32), "cannot have a codebook of"),
        (lambda tensors, about: about["layers"][0].__setitem__(2, 60), "cannot have a codebook of"),
        (lambda tensors, about: about["layers"][0].__setitem__(4, 12), "cannot have 12 scales"),
        (lambda tensors, about: about["formats"].update(wide=[-1, "token"]), "leave dynamic out"),
    ],
)
def test_a_checkpoint_with_another_book_is_refused(change, message, tmp_path):
    path = Subject(Kinds, 3).save(tmp_path / "books.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        about = json.loads(file.metadata()["haq"])
    change(tensors, about)
    save_file(tensors, path, {"haq": json.dumps(about)})
    with pytest.raises(CheckpointError, match=message):
        haq.load(path, model=Kinds())
