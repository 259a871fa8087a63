"""Weights in groups and dynamic activations: files in ONNX Runtime, and checkpoints."""

import json
from collections import Counter

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
from haq.allocation.policy import Bits
from haq.errors import CheckpointError
from haq.formats import checkpoint
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.formats.packing import pack, unpack
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.quantization.groups import group_codes
from haq.runs.handover import check_kernels

TOKENS, FEATURES = 60, 64


class Words(nn.Module):
    """Embeddings, rows of odd lengths, a BatchNorm behind a layer, one layer without a bias."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(TOKENS, FEATURES)
        self.wide = nn.Linear(FEATURES, 150)
        self.deep = nn.Linear(150, 40, bias=False)
        self.narrow = nn.Linear(40, 30)
        self.norm = nn.BatchNorm1d(30)
        self.out = nn.Linear(30, 5)

    def forward(self, x):
        x = functional.gelu(self.wide(self.words(x)))
        x = functional.layer_norm(self.deep(x), (40,)).mean(1)
        return self.out(functional.relu(self.norm(self.narrow(x))))


class Tied(nn.Module):
    """The table of words is the last layer's weight too, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(TOKENS, FEATURES)
        self.mix = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, TOKENS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(functional.gelu(self.mix(self.words(x))))


class Subject:
    """A small network with what its files need."""

    def __init__(self, kind):
        torch.manual_seed(0)
        self.model = kind().eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.normal_()
        self.inputs = torch.randint(TOKENS, (16, 7))
        self.graph = trace(self.model, self.inputs)
        self.clips = calibrate(self.graph, [self.inputs], "max")
        self.template = template(stand_in(self.graph)[0], self.inputs)

    def network(self, bits):
        self.policy = {
            layer.name: bits if layer.kind == "linear" or not bits.dynamic
            else Bits(bits.weight, 32, bits.block)
            for layer in self.graph.layers
        }  # fmt: skip
        network = quantize(self.graph, self.policy, self.clips)
        convert_to_integers(network)
        return network

    def file(self, network):
        file = lower(self.template, network)
        onnx.checker.check_model(file)
        return file

    def answers(self, file):
        session = opened(file.SerializeToString())
        return session.run(None, {session.get_inputs()[0].name: self.inputs.numpy()})[0]


@pytest.fixture(scope="module")
def words():
    return Subject(Words)


@pytest.fixture(scope="module")
def tied():
    return Subject(Tied)


def apart(file, network, subject):
    with torch.no_grad():
        expected = network(subject.inputs).numpy()
    return float(np.abs(subject.answers(file) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("bits", range(2, 9))
def test_groups_with_float_activations_are_exact_in_onnx_runtime(words, bits, block):
    network = words.network(Bits(bits, 32, block))
    assert apart(words.file(network), network, words) < 1e-5


@pytest.mark.parametrize("dynamic", ["token", "tensor"])
@pytest.mark.parametrize("bits", [2, 4, 5, 7, 8])
def test_dynamic_activations_are_those_of_onnx_runtime(words, bits, dynamic):
    network = words.network(Bits(bits, 32, 0, dynamic))
    # A value on the border of two codes may fall on the other side: one code of 255.
    assert apart(words.file(network), network, words) < 5e-3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_with_dynamic_activations_are_near_on_every_cpu(words, bits):
    network = words.network(Bits(bits, 32, 32, "token"))
    # Kernels that do not round activations at this level are as far as 8 bits round.
    assert apart(words.file(network), network, words) < 2e-2


@pytest.mark.parametrize("bits", [Bits(3, 32, 32), Bits(8, 32, 64), Bits(7, 32, 0, "token")])
def test_a_tied_table_is_stored_once(tied, bits):
    network = tied.network(bits)
    file = tied.file(network)
    assert apart(file, network, tied) < 5e-3
    sizes = [len(tensor.raw_data) for tensor in file.graph.initializer if "codes" in tensor.name]
    width = bits.weight if bits.block else 8
    codes = (TOKENS * FEATURES + FEATURES * FEATURES) * width // 8  # the table and "mix"
    assert codes <= sum(sizes) < codes + 100  # and shapes


@pytest.mark.parametrize(
    "bits, operator",
    [
        (Bits(4, 32, 32), "MatMulNBits"),
        (Bits(5, 32, 32), "MatMul Gemm"),
        (Bits(8, 32, 64, "token"), "MatMulNBits"),
        (Bits(4, 32, 32, "token"), "MatMulNBits"),
        (Bits(7, 32, 0, "token"), "MatMulIntegerToFloat"),
        (Bits(7, 32, 0, "tensor"), "DynamicQuantizeMatMul"),
    ],
)
def test_layers_run_in_the_kernels_that_their_formats_claim(words, bits, operator):
    kernels = check_kernels(words.file(words.network(bits)), words.policy)
    assert sum(kernels[one] for one in operator.split()) >= 3


def test_codes_are_packed_and_scales_half_precision(words):
    file = words.file(words.network(Bits(4, 32, 32)))
    sizes = {tensor.name: len(tensor.raw_data) for tensor in file.graph.initializer}
    assert sizes["wide.weight_codes"] == 150 * 64 // 2
    assert sizes["wide.weight_scale.half"] == 2 * 150 * 2
    assert sizes["words.weight_codes"] == TOKENS * 64 // 2
    assert Counter(node.op_type for node in file.graph.node)["GatherBlockQuantized"] == 1


def test_eight_bits_on_both_sides_are_stored_so_that_no_kernel_saturates(words):
    file = words.file(words.network(Bits(8, 32, 0, "token")))
    kinds = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert kinds["wide.weight_codes"] == onnx.TensorProto.UINT8
    file = words.file(words.network(Bits(7, 32, 0, "token")))
    kinds = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert kinds["wide.weight_codes"] == onnx.TensorProto.INT8


# --- checkpoints -------------------------------------------------------------------------------


def saved(subject, bits, tmp_path):
    network = subject.network(bits)
    origin = checkpoint.Origin(model="own", shape=(7,), tokens=TOKENS)
    path = tmp_path / "words.safetensors"
    checkpoint.save(path, network, subject.policy, origin)
    return path, network


@pytest.mark.parametrize(
    "bits",
    [Bits(2, 32, 32), Bits(3, 32, 64), Bits(8, 32, 128, "token"), Bits(7, 32, 0, "tensor")],
)
@pytest.mark.parametrize("kind", ["words", "tied"])
def test_a_checkpoint_gives_the_same_answers_bit_for_bit(kind, bits, tmp_path, request):
    subject = request.getfixturevalue(kind)
    path, network = saved(subject, bits, tmp_path)
    again = haq.load(path, model=type(subject.model)())
    with torch.no_grad():
        assert torch.equal(again(subject.inputs), network(subject.inputs))


def test_a_checkpoint_has_the_bytes_that_the_costs_say(words, tmp_path):
    path, _ = saved(words, Bits(3, 32, 32), tmp_path)
    with safe_open(path, "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}
    costs = sum(size_bytes(layer, 3, 32) for layer in words.graph.layers)
    floats = 4 * sum(words.graph.float_parameters.values())
    norm = 4 * 30 * 2  # the BatchNorm is not folded: its multipliers, and biases beside the layer's
    assert sum(sizes.values()) == costs + floats + norm
    assert sizes["group_scales"] == 2 * (60 * 2 + 150 * 2 + 40 * 5 + 30 * 2 + 5)


def test_codes_and_scales_lie_as_the_format_says():
    weight = torch.tensor(
        [[-4.0, 3.0, 1.0, 0.0]]
    )  # the farthest is negative: codes -4..3 of 3 bits
    scales = torch.ones(1, 1)
    codes = group_codes(weight, scales, 3, 32)
    assert codes.tolist() == [[-4, 3, 1, 0]]
    # 100 | 011 | 001 | 000, the first code in the lowest bits: 0b000_001_011_100
    assert pack(codes, 3).hex() == "5c00"
    assert unpack(pack(codes, 3), 3, 4, lowest=-4).tolist() == [-4, 3, 1, 0]


@pytest.mark.parametrize(
    "formats, message",
    [
        ({"wide": [48, ""]}, "layer 'wide' cannot have groups of 48 weights"),
        ({"wide": [64, ""]}, "layer 'wide' with 3-bit weights cannot have 300 scales"),
        ({"none": [32, ""]}, "a format for layer 'none'"),
        ({"wide": [32, "row"]}, "its metadata is wrong at 'formats.wide"),
    ],
)
def test_a_checkpoint_with_other_formats_is_refused(words, formats, message, tmp_path):
    path, _ = saved(words, Bits(3, 32, 32), tmp_path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        content = json.loads(file.metadata()["haq"])
    content["formats"] |= formats
    save_file(tensors, path, {"haq": json.dumps(content)})
    with pytest.raises(CheckpointError, match=message):
        haq.load(path, model=Words())


class Attention(nn.Module):
    """Three layers that read one tensor."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(TOKENS, FEATURES)
        self.query, self.key, self.value = (nn.Linear(FEATURES, 32) for _ in range(3))

    def forward(self, x):
        x = functional.gelu(self.words(x))
        shares = functional.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 8, -1)
        return (shares @ self.value(x)).mean(1)


@pytest.mark.parametrize("dynamic", ["token", "tensor"])
def test_a_tensor_that_three_layers_read_is_rounded_once(dynamic):
    subject = Subject(Attention)
    network = subject.network(Bits(6, 32, 0, dynamic))
    file = subject.file(network)
    assert apart(file, network, subject) < 5e-3
    count = Counter(node.op_type for node in file.graph.node)
    assert count["DynamicQuantizeLinear" if dynamic == "tensor" else "QuantizeLinear"] == 1
    kernels = check_kernels(file, subject.policy)
    assert kernels["MatMulIntegerToFloat"] == 3
