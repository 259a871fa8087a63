"""Gates, poolings, norms of groups, transposed convolutions: a file answers as its network."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.comparison import compare
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize


class Excited(nn.Module):
    """Squeeze and excitation: features times a gate that depends on all of them."""

    def __init__(self, gate, act=functional.relu):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head, self.gate, self.act = nn.Linear(8, 10), gate, act

    def forward(self, x):
        x = self.act(self.stem(x))
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        x = x * self.gate(self.up(functional.relu(self.down(squeezed))))
        return self.head(functional.relu(self.last(x)).mean((2, 3)))


class Pooled(nn.Module):
    """Averages of windows, in the middle and at the end."""

    def __init__(self, pool):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = pool, nn.Linear(8, 10)

    def forward(self, x):
        x = functional.relu(self.last(self.pool(functional.relu(self.stem(x)))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class GatedLinear(nn.Module):
    """A feed-forward part with a gate, as in language models."""

    def __init__(self, gate):
        super().__init__()
        self.stem, self.one, self.other = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(32, 24)
        self.down, self.head, self.gate = nn.Linear(24, 32), nn.Linear(32, 10), gate

    def forward(self, x):
        x = self.stem(x.flatten(2))
        x = x + self.down(self.gate(self.one(x)) * self.other(x))
        return self.head(x.mean(1))


class Einsum(nn.Module):
    """Attention of windows, written as sums over named axes."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(12, 48), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2)).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        shares = torch.einsum("B H I D, B H J D -> B H I J", q, k).softmax(-1)
        x = torch.einsum("bhij,bhjd->bhid", shares, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(x).mean(1))


class Grouped(nn.Module):
    """Norms of groups of channels, with and without weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.plain = nn.GroupNorm(2, 8), nn.GroupNorm(1, 8, affine=False)
        self.head = nn.Linear(8, 10)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        return self.head(functional.silu(self.plain(self.last(x))).mean((2, 3)))


class Resized(nn.Module):
    """Feature maps resampled to the size of others, in the middle and at the end."""

    def __init__(self, **more):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.mix, self.more = nn.Conv2d(16, 8, 1), more

    def forward(self, x):
        first = functional.relu(self.one(x))
        second = functional.relu(self.two(functional.max_pool2d(first, 2)))
        second = functional.interpolate(second, mode="bilinear", **self.more)
        return self.mix(torch.cat([first, second], 1))


class Spread(nn.Module):
    """Transposed convolutions, in the middle and at the end, with a skewed activation before."""

    def __init__(self, groups=1, norm=False):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = nn.ConvTranspose2d(8, 4, 3, 1, 2, dilation=2)
        if norm:
            nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = functional.silu(self.down(x))
        return self.last(functional.relu(self.norm(self.up(x))))


NETWORKS = {
    "sigmoid gate": lambda: Excited(torch.sigmoid),
    "hardsigmoid gate": lambda: Excited(functional.hardsigmoid, functional.hardswish),
    "tanh gate, SiLU": lambda: Excited(torch.tanh, functional.silu),
    "average pooling": lambda: Pooled(nn.AvgPool2d(2)),
    "padded average pooling": lambda: Pooled(nn.AvgPool2d(3, 2, 1)),
    "average pooling to a size": lambda: Pooled(nn.AdaptiveAvgPool2d(3)),
    "SwiGLU": lambda: GatedLinear(functional.silu),
    "GEGLU": lambda: GatedLinear(functional.gelu),
    "GEGLU of a hyperbolic tangent": lambda: GatedLinear(
        partial(functional.gelu, approximate="tanh")
    ),
    "GLU": lambda: GatedLinear(torch.sigmoid),
    "hardswish times a tensor": lambda: GatedLinear(functional.hardswish),
    "einsum": Einsum,
    "group norm": Grouped,
    "resampling to a size": lambda: Resized(size=(12, 12)),
    "resampling by a factor": lambda: Resized(scale_factor=4.0),
    "resampling with corners": lambda: Resized(size=(12, 12), align_corners=True),
    "transposed convolutions": Spread,
    "transposed convolution of groups": lambda: Spread(groups=4),
    "transposed convolution with BatchNorm": lambda: Spread(norm=True),
}


def subject(name, weight, act):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    rows = isinstance(model, GatedLinear | Einsum)
    images = torch.randn(24, 9, 12) if rows else torch.randn(24, 3, 12, 12)
    graph = trace(model, images[:2])
    clips = calibrate(graph, [images], "max")
    policy = {
        x.name: Bits(weight, FLOAT if x.weights_alone else 8 if x.reads_input else act)
        for x in graph.layers
    }
    network = quantize(graph, policy, clips)
    convert_to_integers(network)
    return graph, network, images


@pytest.mark.parametrize("weight, act", [(7, 8), (4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_answers_as_the_network_to_the_last_bit(name, weight, act):
    graph, network, images = subject(name, weight, act)
    exported = template(stand_in(graph)[0], images[:2])
    assert not exported.untranslated
    file = lower(exported, network)
    [answers] = opened(file.SerializeToString()).run(["logits"], {"images": images.numpy()})
    np.testing.assert_array_equal(answers, network(images).detach().numpy())


@pytest.mark.parametrize("name", ["sigmoid gate", "transposed convolutions", "group norm", "GEGLU"])
def test_numpy_works_out_the_same_file(name):
    graph, network, images = subject(name, 7, 8)
    file = lower(template(stand_in(graph)[0], images[:2]), network)
    assert compare(file, images[:8].numpy()).right
