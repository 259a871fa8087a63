"""Small networks with what stays float between layers: gates, poolings, norms, resampling."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from haq.allocation.policy import FLOAT, Bits
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


class Attention(nn.Module):
    """Attention of two heads, written out, between norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(12, 24), nn.LayerNorm(24)
        self.qkv, self.proj, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1)
        x = x + self.proj((shares @ v).transpose(1, 2).reshape(-1, 9, 24))
        return self.head(x.mean(1))


class Shifted(Attention):
    """Attention under a mask whose windows are numbered in place, as those of Swin are."""

    def forward(self, x):
        x = self.stem(x)
        windows = x.new_zeros(3, 3)
        for number, rows in enumerate([slice(0, -1), slice(-1, None)]):
            windows[rows, 0:-1], windows[rows, -1:] = 2 * number, 2 * number + 1
        apart = windows.flatten().unsqueeze(0) - windows.flatten().unsqueeze(1)
        mask = apart.masked_fill(apart != 0, -100.0)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1) / 12**0.5 + mask).softmax(-1)
        x = x + self.proj((shares @ v).transpose(1, 2).reshape(-1, 9, 24))
        return self.head(x.mean(1))


class Masked(Attention):
    """Fused attention under a mask of booleans, and a norm of a sum that is not rounded."""

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(-1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        seen = torch.ones(9, 9, dtype=torch.bool).tril(2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm(x + self.proj(mixed.transpose(1, 2).reshape(-1, 9, 24)))
        return self.head(x.mean(1))


class Causal(Attention):
    """Fused attention of each row to those before it."""

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head((x + self.proj(mixed.transpose(1, 2).reshape(-1, 9, 24))).mean(1))


class Cosine(Attention):
    """Attention by the angles of queries and keys, with a mask and biases, as Swin V2 has it."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(9, 9))
        self.register_buffer("mask", torch.zeros(9, 9).masked_fill(torch.eye(9) > 0, -100.0))

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        scores = q @ k.transpose(-2, -1) * self.scale.clamp(max=4).exp() + self.bias
        shares = (scores + self.mask).softmax(-1)
        x = x + self.proj((shares @ v).transpose(1, 2).reshape(-1, 9, 24))
        return self.head(functional.normalize(x, dim=-1).mean(1))


class Numbered(Attention):
    """Rows with positions, which are counted from flags as those of tokens are from a mask."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(10, 24)

    def forward(self, x):
        flags = (x.mean(-1) > 0).long()
        x = self.stem(x) + self.places((flags.cumsum(1) * flags).long())
        return self.head(self.proj(self.norm(x)).mean(1))


class Spreads(nn.Module):
    """Features beside the logarithms of their spreads, as in pooling of statistics."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2)
        parts = [x.logsumexp(-1), x.var(-1).log(), x.norm(dim=-1)]
        return self.head(torch.cat(parts, 1))


class Repeated(nn.Module):
    """A layer, with a BatchNorm or without, that is called three times, at two sizes."""

    def __init__(self, norm=False, kind=nn.Conv2d):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 8, 3, padding=1), kind(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8) if norm else nn.Identity(), nn.Linear(8, 10)
        if norm:
            nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = functional.relu(self.norm(self.layer(functional.relu(self.stem(x)))))
        x = functional.relu(self.norm(self.layer(functional.max_pool2d(x, 2))))
        return self.head(self.norm(self.layer(x)).mean((2, 3)))


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
    "attention": Attention,
    "attention of shifted windows": Shifted,
    "masked attention and the norm of a sum": Masked,
    "causal attention": Causal,
    "attention by angles": Cosine,
    "positions counted from flags": Numbered,
    "spreads": Spreads,
    "softplus times a tensor": lambda: GatedLinear(functional.softplus),
    "mish times a tensor": lambda: GatedLinear(functional.mish),
    "SELU times a tensor": lambda: GatedLinear(functional.selu),
    "CELU times a tensor": lambda: GatedLinear(partial(functional.celu, alpha=0.5)),
    "a layer called three times": Repeated,
    "a layer with BatchNorm called three times": lambda: Repeated(norm=True),
    "a transposed one called three times": lambda: Repeated(kind=nn.ConvTranspose2d),
    "einsum": Einsum,
    "group norm": Grouped,
    "resampling to a size": lambda: Resized(size=(12, 12)),
    "resampling by a factor": lambda: Resized(scale_factor=4.0),
    "resampling with corners": lambda: Resized(size=(12, 12), align_corners=True),
    "transposed convolutions": Spread,
    "transposed convolution of groups": lambda: Spread(groups=4),
    "transposed convolution with BatchNorm": lambda: Spread(norm=True),
}


def network_and_inputs(name):
    """Return a network of the table with inputs, the same ones each time."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    rows = isinstance(model, GatedLinear | Attention | Einsum)
    return model, torch.randn(24, 9, 12) if rows else torch.randn(24, 3, 12, 12)


def converted(graph, clips, weight, act):
    """Return the network with these bits, converted."""
    policy = {
        x.name: Bits(weight, FLOAT if x.weights_alone else 8 if x.reads_input else act)
        for x in graph.layers
    }
    network = quantize(graph, policy, clips)
    convert_to_integers(network)
    return network
