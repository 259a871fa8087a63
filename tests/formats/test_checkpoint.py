"""A quantized network as a file: its bits, that it comes back exactly, and what is refused."""

import json
import math
import os
import resource
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import haq
from haq.allocation.costs import size_bytes
from haq.allocation.policy import Bits
from haq.errors import CheckpointError, HaqError
from haq.formats.checkpoint import Origin, about, save
from haq.formats.packing import pack, unpack
from haq.models import MODELS, build
from haq.network.graph import inventory, trace
from haq.quantization.bn_folding import fold_norms
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize, uniform
from haq.quantization.quantizer import BITS, levels

GOLDEN = Path(__file__).parents[1] / "golden"
MIX = (3, 8, 2, 5, 4, 7, 6)


def clips_of(graph, per_channel=True):
    """Return some clips for every tensor: a search for good ones would take long."""
    weights = {}
    for layer in graph.layers:
        rows = graph.traced.get_parameter(f"{layer.name}.weight").detach().abs().flatten(1)
        top = rows.amax(1) if per_channel else rows.amax().view(1)
        weights[layer.name] = {bits: top * (0.5 + bits / 16) for bits in BITS}
    acts = {point.tensor: {bits: torch.tensor(1.7) for bits in BITS} for point in graph.points}
    return Clips(weights, acts)


def mix_of(graph):
    """Return a policy with all bit-widths in it."""
    weights = {layer.name: MIX[i % len(MIX)] for i, layer in enumerate(graph.layers)}
    return {layer.name: Bits(weights[layer.name], weights[layer.reads]) for layer in graph.layers}


def scrambled(model):
    """Give every BatchNorm something to do; return the model."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.track_running_stats:
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 2)
            if part.affine:
                part.weight.data.normal_()
                part.bias.data.normal_()
    return model


def quantized(model, shape, policy=mix_of, per_channel=True):
    graph = trace(scrambled(model), torch.zeros(1, *shape))
    bits = policy(graph)
    return quantize(graph, bits, clips_of(graph, per_channel)), bits


def named(name, layout=torch.channels_last, **changes):
    """Return a quantized network of the registry, its policy and what is to be said about it."""
    torch.manual_seed(0)
    spec = MODELS[name]
    size = spec.size if name.startswith("digits") else 32
    shape = (spec.channels, size, size)
    model = build(name, classes=5, size=size).to(memory_format=layout)
    return *quantized(model, shape, **changes), Origin(model=name, shape=shape, classes=5)


def same(one, other, shape, images=3):
    x = torch.randn(images, *shape)
    with torch.no_grad():
        return torch.equal(one(x), other(x))


# What comes back


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_network_gives_the_same_logits_to_the_last_bit(name, tmp_path):
    network, policy, origin = named(name)
    save(tmp_path / "it.safetensors", network, policy, origin)
    assert same(haq.load(tmp_path / "it.safetensors"), network, origin.shape)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_order_of_sums_comes_back_with_the_layout(layout, tmp_path):
    network, policy, origin = named("resnet20", layout)
    content = save(tmp_path / "it.safetensors", network, policy, origin)
    assert content.layout == str(layout).removeprefix("torch.").removesuffix("_format")
    loaded = haq.load(tmp_path / "it.safetensors")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert loaded.get_submodule(name).weight.stride() == module.weight.stride()


def test_one_scale_a_layer(tmp_path):
    network, policy, origin = named("digits_cnn", per_channel=False)
    content = save(tmp_path / "it.safetensors", network, policy, origin)
    assert {row.scales for row in content.layers} == {1}
    assert same(haq.load(tmp_path / "it.safetensors"), network, origin.shape)


@pytest.mark.parametrize("policy", [(32, 32), (32, 4), (4, 32)])
def test_layers_left_in_float(policy, tmp_path):
    def edges_float(graph):
        return {layer.name: Bits(4, 4) for layer in graph.layers} | {
            name: Bits(*policy) for name in (graph.layers[0].name, graph.layers[-1].name)
        }

    network, bits, origin = named("digits_cnn", policy=edges_float)
    save(tmp_path / "it.safetensors", network, bits, origin)
    assert same(haq.load(tmp_path / "it.safetensors"), network, origin.shape)


class Odd(nn.Module):
    """What the models of the registry do not have."""

    def __init__(self, last=6):
        super().__init__()
        self.before = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 6, 3, bias=True)
        self.norm = nn.BatchNorm2d(6, affine=False, eps=1e-2)
        self.plain = nn.BatchNorm2d(6, track_running_stats=False)
        self.again = nn.Linear(6, 6)
        self.flat = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, last)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(self.before(x))))
        x = self.plain(x).mean((2, 3)) * self.scale + self.shift
        x = self.flat(self.again(torch.relu(self.again(x))))
        return self.head(torch.relu(x))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    torch.manual_seed(1)
    network, policy = quantized(Odd(), (2, 7, 7))
    path = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    save(path, network, policy, Origin(model="Odd", shape=(2, 7, 7)))
    return path, network


def test_a_module_of_ones_own_comes_back_into_its_like(odd):
    path, network = odd
    mine = Odd().train()
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    loaded = haq.load(path, mine)
    assert same(loaded, network, (2, 7, 7))
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())
    assert mine.training


def test_a_loaded_network_is_in_evaluation_mode_and_off_the_meta_device(odd):
    loaded = haq.load(odd[0], Odd())
    assert not any(part.training for part in loaded.modules())
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}


def test_a_module_can_be_named_by_the_caller(odd, tmp_path, monkeypatch):
    (tmp_path / "mine_for_loading.py").write_text("from tests_odd import Odd as make\n")
    monkeypatch.setitem(sys.modules, "tests_odd", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    assert same(haq.load(odd[0], "mine_for_loading:make"), odd[1], (2, 7, 7))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)

    def forward(self, x):
        y = self.stem(x)
        return {"sum": y + 1, "parts": (y, x)}


def test_a_network_of_several_results(tmp_path):
    network, policy = quantized(Two(), (4,))
    save(tmp_path / "it.safetensors", network, policy, Origin(model="Two", shape=(4,)))
    loaded, x = haq.load(tmp_path / "it.safetensors", Two()), torch.randn(3, 4)
    assert torch.equal(loaded(x)["parts"][0], network(x)["parts"][0])


def test_loading_draws_no_random_numbers(valid):
    before = torch.random.get_rng_state()
    haq.load(valid)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_network_saved_again_is_the_same_file(tmp_path):
    network, policy, origin = named("digits_cnn")
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    save(once, network, policy, origin)
    save(twice, haq.load(once), policy, origin)
    assert once.read_bytes() == twice.read_bytes()


def test_saving_leaves_the_network_as_it_is(tmp_path):
    network, policy, origin = named("digits_cnn")
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    save(tmp_path / "it.safetensors", network, policy, origin)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.get_submodule("bn1").eps == 1e-5


def test_what_is_said_of_the_network_is_kept(tmp_path):
    network, policy, origin = named("digits_mlp")
    told = origin.model_copy(
        update={
            "data": "digits", "mean": (0.25,), "std": (0.5,), "versions": {"haq": "0.1.0"},
            "accuracy": {"final_test_accuracy": 0.9},
        }
    )  # fmt: skip
    written = save(tmp_path / "it.safetensors", network, policy, told)
    read = about(tmp_path / "it.safetensors")
    assert read == written
    assert read.model_dump().items() >= told.model_dump().items()
    assert {row.name: Bits(row.weight_bits, row.act_bits) for row in read.layers} == policy
    assert [row.shape for row in read.layers] == [(64, 64), (48, 64), (32, 48), (5, 32)]


# What is in the file


@given(st.data(), st.sampled_from(BITS))
def test_unpacking_gives_the_codes_back(data, bits):
    low, high = levels(bits, signed=True)
    given_codes = data.draw(st.lists(st.integers(low, high), max_size=70))
    packed = pack(torch.tensor(given_codes, dtype=torch.int8), bits)
    assert len(packed) == math.ceil(len(given_codes) * bits / 8)
    assert unpack(packed, bits, len(given_codes)).tolist() == given_codes


@pytest.mark.parametrize("bits, codes, packed", [
    (2, [1, -1, 0, 1, 1], "4d 01"),  # 01 00 11 01 | 01
    (3, [-3, 0, 1, 2, 3], "45 34"),  # 01 000 101 | 0 011 010 0
    (4, [7, -7, 1], "97 01"),
    (5, [15, -15], "2f 02"),  # 001 01111 | 10001 split: 10001 << 5 = 0x220
    (8, [127, -127, 0, -1], "7f 81 00 ff"),
])  # fmt: skip
def test_packing_by_hand(bits, codes, packed):
    assert pack(torch.tensor(codes, dtype=torch.int8), bits) == bytes.fromhex(packed)


@pytest.mark.parametrize("bits, data, message", [
    (4, "08", "a code is -8, the lowest of 4 bits is -7"),
    (4, "17", "the last byte is not filled up with zeros"),
    (4, "0700", "1 codes of 4 bits are not 2 bytes"),
    (2, "02", "a code is -2, the lowest of 2 bits is -1"),
])  # fmt: skip
def test_what_pack_does_not_write_is_not_unpacked(bits, data, message):
    with pytest.raises(ValueError, match=message):
        unpack(bytes.fromhex(data), bits, 1)


def read_by_the_book(path):
    """Return the weights of each layer, as the header of checkpoint.py says: no code of it."""
    with safe_open(path, "np") as file:
        rows = json.loads(file.metadata()["haq"])["layers"]
        codes, scales = file.get_tensor("codes"), file.get_tensor("scales")
    weights = {}
    for name, shape, bits, _, count in rows:
        size = math.prod(shape) * bits
        number = int.from_bytes(codes[: -(-size // 8)].tobytes(), "little")
        digits = [number >> at & (2**bits - 1) for at in range(0, size, bits)]
        values = [digit - 2**bits if digit >> (bits - 1) else digit for digit in digits]
        step = scales[:count].reshape(-1, *[1] * (len(shape) - 1))
        weights[name] = np.array(values, np.float32).reshape(shape) * step
        codes, scales = codes[-(-size // 8) :], scales[count:]
    assert len(codes) == len(scales) == 0
    return weights


def test_others_can_read_the_weights_with_safetensors_alone(tmp_path):
    network, policy, origin = named("digits_cnn")
    save(tmp_path / "it.safetensors", network, policy, origin)
    loaded = haq.load(tmp_path / "it.safetensors")
    weights = read_by_the_book(tmp_path / "it.safetensors")
    assert weights.keys() == policy.keys()
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(weight), loaded.get_parameter(f"{name}.weight"))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_file_is_as_large_as_the_cost_called_size_says(name, bits, tmp_path):
    network, policy, origin = named(name, policy=lambda graph: uniform(graph, bits, 4))
    exact, folded = tmp_path / "exact.safetensors", tmp_path / "folded.safetensors"
    save(exact, network, policy, origin)
    fold_norms(network)
    content = save(folded, network, policy, origin)
    shape = torch.zeros(1, *origin.shape)
    size = sum(
        size_bytes(layer, policy[layer.name].weight)
        for layer in inventory(build(name, 5, size=32), shape)
    )
    assert size <= os.path.getsize(folded) <= size + 4000
    # The multipliers, one a channel of all layers but the head, are all that was left out.
    channels = sum(row.scales for row in content.layers) - 5
    assert os.path.getsize(exact) - os.path.getsize(folded) == pytest.approx(4 * channels, abs=64)


def test_folded_norms_come_back_exactly_too(tmp_path):
    network, policy, origin = named("resnet20")
    fold_norms(network)
    save(tmp_path / "it.safetensors", network, policy, origin)
    assert parts(tmp_path / "it.safetensors")[0]["multipliers"]["shape"] == [0]
    assert same(haq.load(tmp_path / "it.safetensors"), network, origin.shape)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


def tiny():
    """Return a network that a person can work out: 3 bits, steps 0.5 and 0.25, inputs in 1/4."""
    model = Tiny()
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[1.5, -0.6], [0.2, 9.0]]))
        model.fc.bias.copy_(torch.tensor([1.0, -2.0]))
    graph = trace(model, torch.zeros(1, 2))
    acts = {point.tensor: {8: torch.tensor(127 / 4)} for point in graph.points}
    clips = Clips({"fc": {3: torch.tensor([1.5, 0.75])}}, acts)
    return quantize(graph, {"fc": Bits(3, 8)}, clips)


def test_the_published_file_is_still_written(tmp_path):
    # Its bytes by hand: codes 3, -1 and 1, 3 of 3 bits each: 11|001|111|011 = 0x67b; 2.0 = 40000000
    # in hexadecimal float32. To write it anew: copy what this test writes; but then FORMAT changes.
    save(tmp_path / "it.safetensors", tiny(), {"fc": Bits(3, 8)}, Origin(model="Tiny", shape=(2,)))
    header, body = parts(tmp_path / "it.safetensors")
    assert body == bytes.fromhex(
        "0000803e"  # act_scales: 1/4
        "0000803f 000000c0"  # biases: 1, -2
        "0000003f 0000803e"  # scales: 1/2, 1/4
        "7b06"  # codes
    )
    assert (header, body) == parts(GOLDEN / "checkpoint_tiny.safetensors")


def test_the_published_file_is_still_read():
    loaded = haq.load(GOLDEN / "checkpoint_tiny.safetensors", Tiny())
    # Weights (1.5, -0.5) and (0.25, 0.75); inputs 1.1 and -2 become 1 and -2.
    assert loaded(torch.tensor([[1.1, -2.0]])).tolist() == [[1 + 1.5 + 1, -2 + 0.25 - 1.5]]


# What is refused


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    network, policy, origin = named("digits_cnn")
    path = tmp_path_factory.mktemp("valid") / "it.safetensors"
    save(path, network, policy, origin)
    return path


@pytest.fixture
def broken(valid, tmp_path):
    """Return a function that writes the valid file with a change, and loads it."""

    def load(change=lambda header: None, metadata=None, tensors=None):
        header, body = parts(valid)
        fields = json.loads(header["__metadata__"]["haq"])
        (metadata or (lambda _: None))(fields)
        header["__metadata__"]["haq"] = json.dumps(fields)
        for name, values in (tensors or {}).items():
            begin, _ = header[name]["data_offsets"]
            body[begin : begin + len(values)] = values
        return haq.load(written(tmp_path, change(header) or header, body))

    return load


def parts(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def written(folder, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "it.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder / "it.safetensors"


def changed(name, **fields):
    return lambda header: header[name].update(fields)


def renamed(old, new):
    return lambda header: header.update({new: header.pop(old)})


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def test_the_valid_file_loads_when_written_by_hand(broken):
    assert isinstance(broken(), nn.Module)


@pytest.mark.parametrize("change, message", [
    (changed("codes", shape=[99]), r"tensor 'codes' takes bytes \[\d+, \d+\]; with its shape"),
    (changed("codes", shape=[2**62]), "tensor 'codes' takes bytes"),
    (changed("codes", shape=[-1]), "tensor 'codes' must have one dimension, a beginning and an"),
    (changed("codes", shape=[True]), "tensor 'codes' must have one dimension"),
    (changed("codes", shape=[2, 3]), "tensor 'codes' must have one dimension"),
    (changed("codes", shape="many"), "tensor 'codes' must have one dimension"),
    (changed("scales", data_offsets=[0, 616]), "tensor 'scales' takes bytes"),
    (changed("codes", data_offsets=[10**9, 10**9 + 6174]), "tensor 'codes' takes bytes"),
    (changed("scales", data_offsets=[0]), "tensor 'scales' must have one dimension, a beginning"),
    (changed("scales", dtype="F16"), "tensor 'scales' is 'F16', and must be F32"),
    (changed("scales", dtype="\x1b[31m"), r"tensor 'scales' is '\\x1b\[31m', and must be F32"),
    (changed("scales", color="red"), "tensor 'scales' has no dtype, shape and data_offsets"),
    (renamed("scales", "steps"), "its tensors must be codes, .*; scales is missing"),
    (lambda header: header.update(more={}), "its tensors must be codes, .*; 'more' is not one"),
    (lambda header: header.update(codes=[]), "tensor 'codes' has no dtype, shape and"),
    (lambda header: header.__delitem__("__metadata__"), "not a checkpoint of HAQ"),
    (lambda header: header.update(__metadata__={"haq": 3}),
     'not a checkpoint of HAQ: its metadata has no "haq"; haq'),
    (lambda header: header.update(__metadata__={"haq": "{"}), "its metadata is not JSON"),
    (lambda header: header.update(__metadata__={"haq": "[1]"}),
     "its metadata is not a JSON object"),
    (lambda header: header.update(__metadata__={"haq": '{"format": 1, "format": 2}'}),
     "'format' stands 2 times in its metadata"),
    (lambda header: [1, 2], "its header is not a JSON object"),
    (lambda header: b"GGUF", "its header is not JSON"),
    (lambda header: b"[" * 100_000, "its header is not JSON"),
    (lambda header: b'{"a": 1' + b"0" * 5000 + b"}", "its header is not JSON"),
    (lambda header: b'{"a": 1, "a": 2}', "'a' stands 2 times in its header"),
    (lambda header: b"\xff\xfe", "its header is not JSON"),
])  # fmt: skip
def test_a_header_that_is_wrong(broken, change, message):
    with pytest.raises(CheckpointError, match=f"it.safetensors: {message}"):
        broken(change)


def in_row(number, place, value):
    return lambda fields: fields["layers"][number].__setitem__(place, value)


def set_to(**values):
    return lambda fields: fields.update(values)


@pytest.mark.parametrize("change, message", [
    (set_to(format="haq-checkpoint/2"),
     "its format is 'haq-checkpoint/2', and this version of HAQ reads 'haq-checkpoint/1'; export"),
    (set_to(format=None), "its format is 'None'"),
    (set_to(classes="5"), "its metadata is wrong at 'classes': Input should be a valid integer"),
    (set_to(mean=[float("nan")]), "its metadata is wrong at 'mean.0': Input should be a finite"),
    (set_to(zero_point=1), "its metadata is wrong at 'zero_point'"),
    (set_to(layout="sparse"), "its metadata is wrong at 'layout'"),
    (set_to(surprise=1), "its metadata is wrong at 'surprise': Extra inputs are not permitted"),
    (set_to(layers=[]), "its metadata is wrong at 'layers'"),
    (lambda fields: fields.pop("shape"), "its metadata is wrong at 'shape': Field required"),
    (lambda fields: fields["layers"].pop(), "layer 'linear' of the model is not in it"),
    (lambda fields: fields["layers"].append(["late", [1, 1], 4, 4, 1]),
     "it has a layer 'late', and the model has not"),
    (lambda fields: fields["layers"].append(fields["layers"][0]), "its layers are not in the"),
    (lambda fields: fields["layers"].reverse(), "its layers are not in the model's order"),
    (in_row(0, 1, [16, 1, 3, 4]), "layer 'conv1' is 16x1x3x4 in it and 16x1x3x3 in the model"),
    (in_row(1, 2, 9), "policy: layer 'conv2' has 9-bit weights"),
    (in_row(1, 2, 1), "layer 'conv2' cannot have 1-bit weights"),
    (in_row(1, 2, 10**30), "policy: layer 'conv2' has 10+-bit weights"),
    (in_row(1, 3, 0), "policy: layer 'conv2' has 8-bit weights and 0-bit activations"),
    (in_row(1, 4, 7), "layer 'conv2' with 8-bit weights cannot have 7 scales"),
    (in_row(1, 2, 32), "layer 'conv2' with 32-bit weights cannot have 32 scales"),
    (in_row(1, 2, 7), "tensor 'codes' has 6174 values, and the model needs 5598"),
    (in_row(1, 4, 1), "tensor 'scales' has 149 values, and the model needs 118"),
    (set_to(model="resnet20"), "resnet20 does not take inputs of 1x8x8"),
    (set_to(model="digits_mlp"), "layer 'fc1' of the model is not in it"),
    (set_to(classes=6), "layer 'linear' is 5x64 in it and 6x64 in the model"),
    (set_to(classes=10**12), "a model cannot have 1000000000000 classes"),
    (set_to(width=2.0), "digits_cnn has no width 2"),
    (set_to(shape=[]), "digits_cnn does not take inputs of "),
    (set_to(shape=[1, 10**12, 10**12]), "digits_cnn does not take images of size"),
    (set_to(model="os:getcwd"), "it holds a network of 'os:getcwd', which is not imported because"),
    (set_to(model="\ud800"), "its metadata is wrong|it holds a network of"),
])  # fmt: skip
def test_metadata_that_is_wrong(broken, change, message):
    with pytest.raises(CheckpointError, match=f"it.safetensors: {message}"):
        broken(metadata=change)


@pytest.mark.parametrize("tensor, values, message", [
    ("scales", floats(math.nan), "a scale of conv1.weight is nan; scales are positive and finite"),
    ("scales", floats(1, math.inf), "a scale of conv1.weight is inf"),
    ("scales", floats(0), "a scale of conv1.weight is 0"),
    ("scales", floats(-0.25), "a scale of conv1.weight is -0.25"),
    ("scales", floats(3e38), "a scale of conv1.weight is not the step of any clip"),
    ("act_scales", floats(-1), "a scale of quantizers.x_read.clip is -1"),
    ("act_scales", floats(math.nan), "a scale of quantizers.x_read.clip is nan"),
    ("multipliers", floats(math.nan), "multipliers has a value in bn1.weight that is not a finite"),
    ("biases", floats(0, -math.inf), "biases has a value in bn1.bias that is not a finite number"),
    ("codes", b"\x04", "codes of layer 'conv1': a code is -4, the lowest of 3 bits is -3"),
])  # fmt: skip
def test_values_that_are_wrong(broken, tensor, values, message):
    with pytest.raises(CheckpointError, match=f"it.safetensors: {message}"):
        broken(tensors={tensor: values})


def test_floats_that_are_not_finite(odd, tmp_path):
    header, body = parts(odd[0])
    begin, _ = header["floats"]["data_offsets"]
    body[begin : begin + 4] = floats(math.nan)
    with pytest.raises(CheckpointError, match="floats has a value in .* that is not a finite"):
        haq.load(written(tmp_path, header, body), Odd())


def test_overlapping_tensors(valid, tmp_path):
    header, body = parts(valid)
    header["biases"]["data_offsets"] = header["multipliers"]["data_offsets"]
    header["biases"]["shape"] = header["multipliers"]["shape"]
    with pytest.raises(CheckpointError, match="takes bytes .* behind the one before it, it must"):
        haq.load(written(tmp_path, header, body))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_too_short_to_be_one(size, valid, tmp_path):
    (tmp_path / "it.safetensors").write_bytes(valid.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"not a safetensors file: it has {size} bytes"):
        haq.load(tmp_path / "it.safetensors")


@pytest.mark.parametrize("missing", [1, 2000, 4000])
def test_a_truncated_file(missing, valid, tmp_path):
    (tmp_path / "it.safetensors").write_bytes(valid.read_bytes()[:-missing])
    with pytest.raises(CheckpointError, match=r"it.safetensors: cut short: it.* \d+ are there"):
        haq.load(tmp_path / "it.safetensors")


def test_bytes_after_the_end(valid, tmp_path):
    (tmp_path / "it.safetensors").write_bytes(valid.read_bytes() + b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="4 bytes follow the last tensor"):
        haq.load(tmp_path / "it.safetensors")


@pytest.mark.parametrize("length, message", [
    (2**63, "its header is said to have 9223372036854775808 bytes, and none has more than"),
    (2**22 + 1, "its header is said to have 4194305 bytes, and none has more than"),
    (2**22, "cut short: its header is said to have 4194304 bytes, and 0 are there"),
])  # fmt: skip
def test_a_header_that_lies_about_its_length(length, message, tmp_path):
    (tmp_path / "it.safetensors").write_bytes(struct.pack("<Q", length))
    with pytest.raises(CheckpointError, match=message):
        haq.load(tmp_path / "it.safetensors")


def test_what_is_not_a_file_of_ours(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pth")
    for name, message in (
        ("none", "cannot read .*none: no such file or directory"),
        (".", "cannot read .*: it is not a file"),
        ("pipe", "cannot read .*pipe: it is not a file"),
        ("old.pth", "not a safetensors file of HAQ: its header is said to have"),
    ):
        with pytest.raises(CheckpointError, match=message):
            haq.load(tmp_path / name)


def test_float_weights_are_not_a_checkpoint(tmp_path):
    from haq.models.weights import save_weights

    save_weights(build("digits_mlp"), tmp_path / "float.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of HAQ: .* haq export writes one"):
        about(tmp_path / "float.safetensors")


def test_a_huge_file_is_not_read(valid, tmp_path):
    path = tmp_path / "it.safetensors"
    path.write_bytes(valid.read_bytes())
    os.truncate(path, 2**36)  # a hole: it takes no room on the disk
    with pytest.raises(CheckpointError, match="bytes follow the last tensor"):
        haq.load(path)


def test_a_small_file_of_a_huge_network_takes_no_memory(valid, tmp_path):
    # 20 GB of weights by the metadata; the tensors are those of a small network.
    with torch.device("meta"):
        graph = trace(build("mobilenet_v1", 100_000, 4.0, 32), torch.zeros(1, 3, 32, 32))
    rows = [
        [layer.name, list(graph.traced.get_parameter(f"{layer.name}.weight").shape), 4, 8, 1]
        for layer in graph.layers
    ]
    header, body = parts(valid)
    fields = json.loads(header["__metadata__"]["haq"])
    fields |= {"model": "mobilenet_v1", "width": 4.0, "classes": 100_000, "shape": [3, 32, 32]}
    header["__metadata__"]["haq"] = json.dumps(fields | {"layers": rows})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    with pytest.raises(CheckpointError, match=r"has \d+ values, and the model needs \d+"):
        haq.load(written(tmp_path, header, body))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_nothing_that_a_file_names_is_imported(broken, tmp_path, monkeypatch):
    (tmp_path / "named_in_a_file.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="not imported because a file says so; give haq.load"):
        broken(metadata=set_to(model="named_in_a_file:make"))


@pytest.mark.parametrize("model, message", [
    (Odd(last=7), "layer 'head' is 6x6 in it and 7x6 in the model"),
    (Tiny(), "does not run on a sample of 1x2x7x7"),
    ("haq.models:no_such_factory", "has no 'no_such_factory'"),
    ("resnet2", "unknown model 'resnet2'; did you mean 'resnet"),
])  # fmt: skip
def test_another_model_than_the_file_s(odd, model, message):
    with pytest.raises(CheckpointError, match=f"odd.safetensors: .*{message}"):
        haq.load(odd[0], model)


@pytest.mark.parametrize("shape", [[2**12, 2**12], [0, 7, 7], [2, -7, -7], []])
def test_an_input_no_network_of_ones_own_is_run_on(odd, shape, tmp_path):
    header, body = parts(odd[0])
    fields = json.loads(header["__metadata__"]["haq"]) | {"shape": shape}
    header["__metadata__"]["haq"] = json.dumps(fields)
    with pytest.raises(CheckpointError, match="inputs of .* are not taken"):
        haq.load(written(tmp_path, header, body), Odd())


@settings(max_examples=75)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_but_never_worse(valid, tmp_path_factory, data):
    content = bytearray(valid.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of the bytes are values: half of the changes are in the header.
        at = data.draw(st.integers(0, 1500) | st.integers(0, len(content)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "remove"])):
            case "set":
                content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=4))
            case "remove":
                del content[at : at + 2]
    refused_or_a_network(tmp_path_factory.getbasetemp() / "mutant.safetensors", bytes(content))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=75)
@given(st.data(), ANYTHING, st.booleans())
def test_whatever_stands_in_the_header_is_refused_or_read(
    valid, tmp_path_factory, data, value, inside
):
    header, body = parts(valid)
    fields = json.loads(header["__metadata__"]["haq"])
    place = fields if inside else header
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0, -1]))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    if inside:
        header["__metadata__"]["haq"] = json.dumps(fields)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + body
    refused_or_a_network(tmp_path_factory.getbasetemp() / "mutant.safetensors", content)


def refused_or_a_network(path, content):
    path.write_bytes(content)
    try:
        loaded = haq.load(path)
    except HaqError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        with torch.no_grad():
            assert loaded(torch.ones(1, 1, 8, 8)).shape == (1, 5)


# What is not written


def spoilt(change):
    network, policy, origin = named("digits_mlp")
    change(network)
    return network, policy, origin


def with_nan(name):
    return lambda network: network.get_parameter(name).data.view(-1)[0].fill_(math.nan)


@pytest.mark.parametrize("change, message", [
    (lambda network: network.double(), "fc1.weight is torch.float64; only parameters in float32"),
    (with_nan("fc1.weight"), "fc1.weight has values that are not finite numbers"),
    (with_nan("fc2.bias"), "fc2.bias has values that are not finite numbers"),
    (lambda network: network.register_buffer("far", torch.tensor([math.nan]).double()),
     "far has values that are not finite numbers"),
])  # fmt: skip
def test_a_network_that_is_not_kept(change, message, tmp_path):
    (tmp_path / "it.safetensors").write_text("older")
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "it.safetensors", *spoilt(change))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_weights_in_two_layouts_come_back_exactly_or_are_not_kept(tmp_path):
    torch.manual_seed(0)
    model = build("resnet20", classes=5)
    model.layer2.to(memory_format=torch.channels_last)
    network, policy = quantized(model, (3, 32, 32))
    origin = Origin(model="resnet20", shape=(3, 32, 32), classes=5)
    try:  # which of the two depends on the processor
        save(tmp_path / "it.safetensors", network, policy, origin)
    except CheckpointError as error:
        assert "bring all its weights to one memory format first" in str(error)
    else:
        assert same(haq.load(tmp_path / "it.safetensors"), network, (3, 32, 32), images=2)


def test_an_input_that_the_network_does_not_take(tmp_path):
    network, policy, origin = named("digits_mlp")
    with pytest.raises(CheckpointError, match="the network does not run on inputs of 1x9x9"):
        other = origin.model_copy(update={"shape": (1, 9, 9)})
        save(tmp_path / "it.safetensors", network, policy, other)


def test_a_policy_that_is_not_the_network_s(tmp_path):
    network, policy, origin = named("digits_mlp")
    with pytest.raises(ValueError, match="layer 'fc1' has 3 bits, not 4"):
        save(tmp_path / "it.safetensors", network, policy | {"fc1": Bits(4, 3)}, origin)


def test_where_nothing_can_be_written(tmp_path):
    network, policy, origin = named("digits_mlp")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="the name must end in .safetensors"):
        save(tmp_path / "it.pth", network, policy, origin)
    with pytest.raises(CheckpointError, match="cannot write .*it.safetensors: "):
        save(tmp_path / "file" / "it.safetensors", network, policy, origin)
