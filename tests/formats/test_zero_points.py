"""Files of networks whose activations are hardly ever negative: grids with a zero point."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import haq
from haq.allocation.policy import Bits
from haq.errors import CheckpointError
from haq.formats.checkpoint import Origin, save
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize


class Smooth(nn.Module):
    """Convolutions with Hardswish, SiLU and an addition."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.three = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.two.weight.mul_(5)  # so that SiLU is hardly ever negative

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.one(x)))
        x = x + nn.functional.silu(self.two(x))
        return self.head(torch.relu(self.three(x)).mean((2, 3)))


def smooth(bits):
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    graph = trace(Smooth().eval(), images[:1])
    clips = calibrate(graph, [images], "mse")
    assert {"hardswish", "silu"} <= clips.skews.keys()
    policy = {layer.name: Bits(4, 8 if layer.reads_input else bits) for layer in graph.layers}
    network = quantize(graph, policy, clips)
    convert_to_integers(network)
    return network, policy, images


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_onnx_runtime_answers_as_the_network_and_as_integers_say(bits):
    network, _, images = smooth(bits)
    file = lower(template(network, images[:1]), network)
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    run = onnx_runtime.answers(session, images.numpy())
    with torch.no_grad():
        expected = network(images).numpy()
    simulated, _ = simulate(file, images.numpy())
    # Float rounding now and then puts a value on the other side of a quantization boundary.
    for answers in (expected, simulated):
        assert np.median(abs(run - answers).max(1)) < 2e-2 * np.ptp(expected)


def test_no_code_is_higher_than_its_bits_need():
    network, _, images = smooth(4)
    file = lower(template(network, images[:1]), network)
    ends = {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}
    module = network.get_submodule("quantizers.hardswish_read")
    assert int(ends["hardswish_read.zero_point"]) == module.zero_point == module.skew < 4
    lowest, highest = (
        int(ends[name]) for node in file.graph.node if node.op_type == "Clip"
        for name in node.input[1:] if node.input[0] == "hardswish_read.quantized"
    )  # fmt: skip
    assert (lowest, highest) == (0, 15)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_loaded_network_answers_to_the_last_bit(bits, tmp_path):
    network, policy, images = smooth(bits)
    path = tmp_path / "it.safetensors"
    content = save(path, network, policy, Origin(model="own", shape=(3, 8, 8)))
    assert content.skews.keys() >= {"quantizers.hardswish_read"}
    loaded = haq.load(path, Smooth())
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(
    "name, skew, message",
    [
        ("quantizers.other_read", 3, "it has a quantizer 'quantizers.other_read', and the model"),
        ("quantizers.hardswish_read", -1, "'quantizers.hardswish_read' cannot have -1 negative"),
        ("quantizers.hardswish_read", 15, "cannot have 15 negative codes of 4 bits"),
    ],
)
def test_zero_points_that_cannot_be_are_refused(name, skew, message, tmp_path):
    network, policy, _ = smooth(4)
    network.get_submodule("quantizers.hardswish_read").skew = 1
    path = tmp_path / "it.safetensors"
    save(path, network, policy, Origin(model="own", shape=(3, 8, 8)))
    written = b'"quantizers.hardswish_read":1'
    data, other = path.read_bytes(), f'"{name}":{skew}'.encode()
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert written in text["__metadata__"]["haq"].encode()
    text["__metadata__"]["haq"] = text["__metadata__"]["haq"].replace(
        written.decode(), other.decode()
    )
    header = json.dumps(text).encode()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    with pytest.raises(CheckpointError, match=message):
        haq.load(path, Smooth())
