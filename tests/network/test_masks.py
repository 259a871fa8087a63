"""Masks share no grid with what they are added to, and need not be finite."""

import math

import pytest
import torch
from torch import nn

from haq.network.graph import trace
from haq.quantization.calibration import calibrate

ROWS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
FLAGS = (torch.arange(5) < torch.tensor([[5], [3], [4], [2]])).long()


class Attention(nn.Module):
    """One head; a subclass adds something to its scores."""

    def __init__(self, least=-100.0):
        super().__init__()
        self.qkv, self.head, self.least = nn.Linear(8, 24), nn.Linear(8, 4), least
        self.register_buffer("mask", torch.zeros(5, 5).masked_fill(~torch.ones(5, 5).tril().bool(),
                                                                   least))  # fmt: skip

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((self.added(q @ k.transpose(-2, -1)).softmax(-1) @ v).mean(1))

    def added(self, scores):
        return scores / 3 + self.mask


class Flagged(nn.Module):
    """A mask made of flags that the network is given, added to values that are not scores."""

    def __init__(self, shut):
        super().__init__()
        self.body, self.head, self.shut = nn.Linear(8, 6), nn.Linear(6, 4), shut

    def forward(self, x, flags):
        x = self.body(x) + self.shut(flags)[..., None]
        return self.head(x.amax(1))


def rounded(graph):
    return {point.tensor for point in graph.points}


@pytest.mark.parametrize("least", [-100.0, -1e4, -math.inf, torch.finfo(torch.float32).min])
def test_scores_and_their_masks_stay_float(least):
    graph = trace(Attention(least), ROWS)
    sums = {node.name for node in graph.traced.graph.nodes if node.name.startswith(("add", "div"))}
    assert len(sums) == 2 and rounded(graph).isdisjoint(sums | {"mask"})
    clips = calibrate(graph, [ROWS])
    assert all(float(each[8]) < 20 for each in clips.acts.values())


class Biased(Attention):
    """Scores with a bias that is learned, as one of relative positions, which is no mask."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5, 5))

    def added(self, scores):
        return scores + self.bias


def test_a_bias_of_scores_makes_no_sum_that_is_rounded():
    graph = trace(Biased(), ROWS)
    assert "add" in {node.name for node in graph.traced.graph.nodes}
    assert rounded(graph).isdisjoint({"add", "matmul", "bias"})


@pytest.mark.parametrize("shut", [
    lambda flags: (1 - flags.float()) * -1e4,
    lambda flags: (flags - 1.0) * 1e4,
    lambda flags: torch.zeros(flags.shape).masked_fill(flags == 0, -1e4),
    lambda flags: torch.where(flags == 0, -1e4, 0.0),
    lambda flags: (1 - flags.float()) * torch.finfo(torch.float32).min,
])  # fmt: skip
def test_a_mask_of_flags_is_no_operand_of_a_sum_that_is_rounded(shut):
    graph = trace(Flagged(shut), (ROWS, FLAGS))
    # The input, what leaves the first layer, and what the last one reads.
    assert [point.layers for point in graph.points] == [("body",), (), ("head",)]
    assert graph.points[1].tensor == "linear" or graph.points[1].source == "body"


def test_a_bias_of_the_network_s_own_is_an_operand_as_before():
    graph = trace(Flagged(lambda flags: flags * 2.0), (ROWS, FLAGS))
    assert len(graph.points) > 3
