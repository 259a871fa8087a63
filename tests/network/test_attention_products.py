"""Products of two activations are counted among the multiply-accumulates, and stay float."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from haq.network.graph import trace

WORDS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """One head over 5 places with 8 features, its products spelled in one of several ways."""

    def __init__(self, spelling):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.spelling = spelling

    def forward(self, x):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.spelling == "fused":
            return functional.scaled_dot_product_attention(query, key, value)
        if self.spelling == "einsum":
            weights = torch.einsum("nid,njd->nij", query, key).softmax(-1)
            return torch.einsum("nij,njd->nid", weights, value)
        return (query @ key.transpose(1, 2)).softmax(-1) @ value


@pytest.mark.parametrize("spelling", ["fused", "matmul", "einsum"])
def test_attention_multiplies_each_place_with_each_twice(spelling):
    graph = trace(Attention(spelling), WORDS)
    assert graph.float_macs == 2 * 5 * 5 * 8
    assert [layer.macs for layer in graph.layers] == [5 * 8 * 8] * 3


def test_the_heads_of_attention_share_its_features():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    assert trace(Heads(), WORDS).float_macs == 2 * 5 * 5 * 8


def test_a_product_with_weights_is_none_of_activations():
    assert trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), WORDS).float_macs == 0
