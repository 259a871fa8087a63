"""A converted network and its file answer alike, to the last bit, whatever is float between."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from haq.allocation.policy import Bits
from haq.formats import checkpoint
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.quantization.integer_forward import compute_exactly, is_exact


class Block(nn.Module):
    """LayerNorm, fused attention, GELU: a block of a vision transformer."""

    def __init__(self, causal=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.fc1, self.fc2 = nn.Linear(24, 48), nn.Linear(48, 24)
        self.causal = causal

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(x.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Eager(Block):
    """Attention written out: products, a scale, a softmax."""

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 9, 24) * 0.1)
        self.blocks = nn.Sequential(block, block.__class__())
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


class Dense(nn.Module):
    """BatchNorm and ReLU in front of convolutions, whose results are put together."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1, bias=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        first = self.stem(x)
        more = self.conv1(functional.relu(self.norm1(first)))
        x = self.conv2(functional.relu(self.norm2(torch.cat([first, more], 1))))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(c, 8, 3, padding=1, bias=False) for c in (3, 8))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = functional.relu(self.norm1(self.one(x)))
        return self.out(functional.relu(x + self.norm2(self.two(x))))


NETWORKS = {
    "vision transformer": lambda: Transformer(Block()),
    "causal attention": lambda: Transformer(Block(causal=True)),
    "attention written out": lambda: Transformer(Eager()),
    "BatchNorm before ReLU": Dense,
    "residual, a convolution last": Residual,
}


def subject(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    images = torch.randn(24, 3, 12, 12)
    graph = trace(model, images[:2])
    return model, graph, calibrate(graph, [images], "max"), images


def converted(graph, clips, weight, act):
    policy = {x.name: Bits(weight, 8 if x.reads_input else act) for x in graph.layers}
    network = quantize(graph, policy, clips)
    convert_to_integers(network)
    return network, policy


@pytest.mark.parametrize("weight, act", [(7, 8), (4, 8), (4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_answers_as_the_network_to_the_last_bit(name, weight, act):
    _, graph, clips, images = subject(name)
    network, _ = converted(graph, clips, weight, act)
    file = lower(template(stand_in(graph)[0], images[:2]), network)
    [answers] = opened(file.SerializeToString()).run(["logits"], {"images": images.numpy()})
    np.testing.assert_array_equal(answers, network(images).detach().numpy())


@pytest.mark.parametrize("name", ["vision transformer", "BatchNorm before ReLU"])
def test_no_float_norm_and_no_float_product_with_weights_is_left_in_the_file(name):
    _, graph, clips, images = subject(name)
    network, _ = converted(graph, clips, 4, 8)
    file = lower(template(network, images[:2]), network)
    kinds = [node.op_type for node in file.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Gemm") + kinds.count("Conv") + kinds.count("ConvInteger") == len(
        graph.layers
    )


def test_a_checkpoint_of_a_converted_network_computes_with_integers_too(tmp_path):
    model, graph, clips, images = subject("vision transformer")
    network, policy = converted(graph, clips, 4, 8)
    path = tmp_path / "network.safetensors"
    checkpoint.save(path, network, policy, checkpoint.Origin(model="own", shape=(3, 12, 12)))
    loaded = checkpoint.load(path, model)
    assert is_exact(loaded)
    assert torch.equal(loaded(images), network(images))


def test_computing_exactly_changes_no_parameter_and_little_of_the_answers():
    _, graph, clips, images = subject("vision transformer")
    network = quantize(graph, {x.name: Bits(8, 8) for x in graph.layers}, clips)
    before, plain = {k: v.clone() for k, v in network.state_dict().items()}, network(images)
    compute_exactly(network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    torch.testing.assert_close(
        network(images), plain, rtol=0, atol=0.1 * float(plain.detach().std())
    )
