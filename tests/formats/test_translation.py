"""Each operation is written as ONNX that ONNX Runtime computes as torch does, at any batch size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from haq.allocation.policy import Bits
from haq.formats.onnx.lower import FLOAT32, lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.network.graph import trace
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize


def assigned(x, place, value):
    """Return a tensor with a value assigned to a place in it."""
    x = x.clone()
    x[place] = value
    return x


OPERATIONS = {
    "add a number": lambda x: x + 2, "subtract from": lambda x: 1 - x,
    "scaled sum": lambda x: torch.add(x, x * x, alpha=3), "divide": lambda x: x / (x.abs() + 1),
    "floor": lambda x: torch.div(x, 0.3, rounding_mode="floor"), "power": lambda x: x.abs() ** 1.5,
    "square": lambda x: x**2, "compare": lambda x: (x > 0.1).float() * x,
    "not equal": lambda x: (x != 0).float(), "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked": lambda x: x.masked_fill(x < 0, -1.0), "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp below": lambda x: x.clamp(min=0.1), "maximum": lambda x: torch.maximum(x, -x),
    "logical": lambda x: ((x > 0) & (x < 1) | ~(x > -1)).float(),
    "relu6": f.relu6, "silu": f.silu, "gelu": f.gelu, "tanh gelu": lambda x: f.gelu(
        x, approximate="tanh"), "hardswish": f.hardswish, "hardsigmoid": f.hardsigmoid,
    "mish": f.mish, "elu": f.elu, "leaky": lambda x: f.leaky_relu(x, 0.2), "softplus": f.softplus,
    "softmax": lambda x: x.softmax(-1), "log softmax": lambda x: x.log_softmax(1),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(), "sine": torch.sin, "exp": torch.exp,
    "glu": lambda x: f.glu(x, 1), "reshape": lambda x: x.reshape(x.shape[0], 4, -1),
    "view by size": lambda x: x.view(x.size(0), x.size(1) // 2, 2, -1),
    "flatten": lambda x: x.flatten(2), "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, -1), "unsqueeze": lambda x: x.unsqueeze(-2),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1), "movedim": lambda x: x.movedim(1, -1),
    "stack": lambda x: torch.stack([x, x * 2], 1), "cat": lambda x: torch.cat([x, -x], -1),
    "chunk": lambda x: x.chunk(2, 1)[1], "split": lambda x: x.split([1, 3], 1)[1],
    "unbind": lambda x: x.unbind(1)[2], "select": lambda x: x[:, 0], "last": lambda x: x[:, -1],
    "slice": lambda x: x[:, 1:, ::2], "index": lambda x: x[:, [2, 0, 1]],
    "pixels": lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 3])],
    "repeat": lambda x: x.repeat(1, 2, 1, 1), "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "flip": lambda x: x.flip(-1), "roll": lambda x: x.roll((1, -2), (2, 3)),
    "pad": lambda x: f.pad(x, (1, 2, 0, 1), value=0.5),
    "reflect": lambda x: f.pad(x, (1, 1, 1, 1), mode="reflect"),
    "shuffle": lambda x: f.pixel_shuffle(x, 2),
    "unshuffle": lambda x: f.pixel_unshuffle(x, 2), "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1), "largest": lambda x: x.amax(-1), "norm": lambda x: x.norm(dim=1),
    "variance": lambda x: x.var(1), "deviation": lambda x: x.std(-1, unbiased=False),
    "maximum of": lambda x: x.max(1)[0], "cumulated": lambda x: x.cumsum(1),
    "max pool": lambda x: f.max_pool2d(x, 3, 2, 1), "pool": lambda x: f.avg_pool2d(x, 2, 1, 1),
    "pool up": lambda x: f.avg_pool2d(x, 3, 2, ceil_mode=True),
    "one pixel": lambda x: f.adaptive_avg_pool2d(x, 1),
    "few": lambda x: f.adaptive_avg_pool2d(x, 3),
    "unequal": lambda x: f.adaptive_avg_pool2d(x, 5), "most": lambda x: f.adaptive_max_pool2d(x, 1),
    "pool 1d": lambda x: f.max_pool1d(x.flatten(2), 2), "nearest": lambda x: f.interpolate(
        x, scale_factor=2), "bilinear": lambda x: f.interpolate(x, (9, 12), mode="bilinear"),
    "corners": lambda x: f.interpolate(x, (9, 12), mode="bilinear", align_corners=True),
    "cubic": lambda x: f.interpolate(x, scale_factor=2, mode="bicubic"),
    "matmul": lambda x: x @ x.transpose(-1, -2), "einsum": lambda x: torch.einsum(
        "nchw,nchv->ncwv", x, x), "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1]),
    "attention": lambda x: f.scaled_dot_product_attention(x, x * 2, x + 1),
    "masked attention": lambda x: f.scaled_dot_product_attention(x, x, x, torch.ones(6, 6).tril()),
    "layer norm": lambda x: f.layer_norm(x, (6,)), "group norm": lambda x: f.group_norm(x, 2),
    "instance norm": f.instance_norm, "arange": lambda x: x + torch.arange(x.shape[-1]),
    "triangle": lambda x: x.tril(), "zeros": lambda x: torch.cat([x, torch.zeros_like(x)], 1),
    "ones": lambda x: x + x.new_ones(x.shape[0], 1, 1, 1), "type": lambda x: x.to(torch.int64) + 1,
    "points of each": lambda x: x[torch.arange(x.shape[0])[:, None], torch.tensor([0, 2])],
    "differences": lambda x: x.diff(dim=1, prepend=x[:, :1]),
    "assign from the end": lambda x: assigned(x, (slice(None), slice(None), slice(-4, -1)), 2.0),
    "assign every other": lambda x: assigned(x, (..., slice(1, None, 2)), x[..., :3]),
    "assign to all": lambda x: assigned(x, (slice(None), slice(1, 3), slice(0, None)), 0.5),
    "assign to one": lambda x: assigned(x, (slice(None), -1), x[:, 0] * 2),
    "windows": lambda x: f.unfold(x, (2, 3), dilation=(2, 1), padding=1, stride=2),
    "largest three": lambda x: x.topk(3, -1)[0], "least two": lambda x: x.topk(2, 1, False)[0],
    "sorted": lambda x: x.sort(-1, descending=True)[0],
    "places in order": lambda x: x.argsort(-1).float(),
    "randomised": lambda x: f.rrelu(x, 0.1, 0.3), "selu": f.selu, "celu": lambda x: f.celu(x, 0.5),
    "hard shrink": f.hardshrink, "soft shrink": lambda x: f.softshrink(x, 0.2),
    "threshold": lambda x: f.threshold(x, 0.1, -2.0),
    "channel shuffle": lambda x: f.channel_shuffle(x, 2),
    "distances": lambda x: torch.cdist(x, x + 1), "cosine": lambda x: f.cosine_similarity(
        x, x * x, dim=1),
    "normalised": lambda x: f.normalize(x, dim=1), "grid": lambda x: f.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "any axes": lambda x: torch.einsum("...hw,...hv->...wv", x, x), "products of pairs": lambda x:
        f.bilinear(x, x, torch.arange(72.0).reshape(2, 6, 6) / 72),
    "volumes": lambda x: f.interpolate(x[:, None], scale_factor=2),
    "between volumes": lambda x: f.interpolate(x[:, None], scale_factor=2, mode="trilinear"),
    "between values": lambda x: f.interpolate(x.flatten(2), 50, mode="linear"),
    "fewer heads": lambda x: f.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True),
    "zero in place": lambda x: assigned(x, slice(None), x)[:, 1:].zero_() + x[:, 1:],
}  # fmt: skip


class Through(nn.Module):
    """A layer before an operation, so that there is something to quantize."""

    def __init__(self, operation):
        super().__init__()
        self.layer, self.operation = nn.Conv2d(4, 4, 1), operation

    def forward(self, x):
        return self.operation(self.layer(x))


def written(operation):
    torch.manual_seed(0)
    images = torch.randn(3, 4, 6, 6)
    model = Through(operation).eval()
    graph = trace(model, images)
    network = quantize(graph, {"layer": Bits(32, 32)}, Clips({}, {}))
    return model, template(network, images), network


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_written_as_what_it_computes(name, monkeypatch):
    monkeypatch.setattr("haq.formats.onnx.template._by_torch", None)  # by our rules alone
    model, exported, network = written(OPERATIONS[name])
    images = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    session = opened(lower(exported, network).SerializeToString())
    [answers] = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answers), model(images), rtol=1e-4, atol=1e-5)


def test_an_operation_without_a_rule_is_left_to_torch():
    model, exported, network = written(lambda x: torch.cosh(x))
    assert exported.float32.startswith("aten.cosh.default has no rule of translation, so torch's")
    file = lower(exported, network)
    assert {entry.key: entry.value for entry in file.metadata_props}[FLOAT32] == exported.float32
    images = torch.randn(5, 4, 6, 6)
    [answers] = opened(lower(exported, network).SerializeToString()).run(
        None, {"images": images.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(answers), model(images).detach())
