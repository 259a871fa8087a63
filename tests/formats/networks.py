"""Small networks of the kinds that people export, quantized without a search."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from haq.allocation.policy import Bits, readers
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize

SHAPE = (3, 12, 12)


class Segmenter(nn.Module):
    """The last layer is a convolution, as in U-Nets and heads."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.skip = nn.Conv2d(3, 8, 1)
        self.out = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x):
        deep = functional.relu(self.norm(self.down(x)))
        deep = functional.interpolate(deep, scale_factor=2, mode="nearest")
        return self.out(torch.cat([deep, functional.relu(self.skip(x))], 1))


class Heads(nn.Module):
    """Two results, one of them that of a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.boxes = nn.Conv2d(16, 5, 1, bias=False)
        self.each = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        return {"boxes": torch.sigmoid(self.boxes(x)), "each": self.each(x).flatten(1)}


class Padded(nn.Module):
    """Pads otherwise than with zeros, and pools without keeping axes."""

    def __init__(self, mode):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode)
        self.two = nn.Conv2d(8, 8, 3, padding=(2, 1), padding_mode=mode)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.two(functional.relu(self.one(x))))
        return self.last(x.mean((2, 3)))


class Pooled(nn.Module):
    """Averages, concatenates and goes on in integers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.three = nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([functional.relu(self.one(x)), self.two(x)], 1)
        x = functional.relu(self.three(functional.avg_pool2d(x, 2)))
        return self.last(functional.avg_pool2d(x, 3, 2, 1).mean((2, 3)))


class Attention(nn.Module):
    """Attention over three axes, a LayerNorm, a GELU, a parameter on its own, a lone BatchNorm."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.lone = nn.LayerNorm(16), nn.BatchNorm2d(16)
        self.scale = nn.Parameter(torch.rand(16))
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = self.lone(functional.silu(self.patches(x)))
        x = x.flatten(2).transpose(1, 2)  # (N, positions, 16)
        y = self.norm(x)
        y = functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        return self.last(functional.gelu((x + y * self.scale).mean(1)))


class Tied(nn.Module):
    """Two convolutions with one weight, each with a BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.two.weight = self.one.weight
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.norm1(self.one(functional.relu(self.stem(x)))))
        return self.last(functional.relu(self.norm2(self.two(x))).mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise convolution, one with two filters a channel, and grouped ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.each = nn.Conv2d(8, 8, 3, groups=8)
        self.twice = nn.Conv2d(8, 16, 3, groups=8)
        self.groups = nn.Conv2d(16, 8, 3, groups=4)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.each(functional.relu(self.stem(x))))
        x = functional.relu(self.groups(functional.relu(self.twice(x))))
        return self.last(functional.max_pool2d(x, 2).mean((2, 3)))


class Upsampled(nn.Module):
    """Convolutions that stay float, with BatchNorms behind them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.up, self.norm = nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)
        self.rows, self.norm_of_rows = nn.Conv1d(8, 8, 3, bias=False), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.up(functional.relu(self.stem(x)))))
        return self.last(functional.relu(self.norm_of_rows(self.rows(x.mean(3)))).mean(2))


NETWORKS = {
    "segmenter": Segmenter,
    "heads": Heads,
    "reflect": lambda: Padded("reflect"),
    "replicate": lambda: Padded("replicate"),
    "circular": lambda: Padded("circular"),
    "pooled": Pooled,
    "attention": Attention,
    "tied": Tied,
    "depthwise": Depthwise,
    "upsampled": Upsampled,
}


class Case:
    """A network with statistics, its clips and its template."""

    def __init__(self, name, images=24):
        torch.manual_seed(0)
        self.model, self.images = NETWORKS[name](), torch.randn(images, *SHAPE)
        with torch.no_grad():
            self.model.train()(self.images)
        self.graph = trace(self.model.eval(), self.images[:2])
        self.clips = calibrate(self.graph, [self.images], "max")
        self.template = template(self.network(self.policy(8, 8)), self.images[:2])

    def policy(self, weight, act):
        """Return these bits everywhere; the network's input has 8."""
        inputs = {layer.name for layer in self.graph.layers if layer.reads_input}
        return {
            name: Bits(weight, act if inputs.isdisjoint(group) else 8)
            for name, group in readers(self.graph.layers).items()
        }

    def network(self, policy):
        network = quantize(self.graph, policy, self.clips)
        convert_to_integers(network)
        return network

    def file(self, policy, **options):
        return lower(self.template, self.network(policy), **options)

    def answers(self, network):
        """Return the first result of a network for the images, as a float64 one gives it."""
        with torch.no_grad():
            result = network.double()(self.images.double())
        first = next(iter(result.values())) if isinstance(result, dict) else result
        return first.numpy()


def error(answers, expected):
    """Return the norm of the difference as a share of the spread of what is expected."""
    return float(np.linalg.norm(answers - expected) / np.linalg.norm(expected - expected.mean(0)))
