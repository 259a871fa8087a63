"""Which layers lose channels together, which channels go, and what it does to a network."""

import pytest
import torch
from torch import nn

from haq.allocation.policy import Bits
from haq.allocation.widths import narrowed_layers
from haq.compression.channel_scores import channel_scores
from haq.compression.filters import remove
from haq.compression.widths import (
    damage_of_channels,
    kept_places,
    lost_channels,
    widths_of,
    without,
)
from haq.models import build
from haq.network.graph import resized, trace
from haq.training.scoring import answers

SAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def captured(name="digits_cnn"):
    torch.manual_seed(0)
    return trace(build(name).eval(), SAMPLE)


def test_readers_are_those_of_the_channels_through_depthwise_layers():
    groups = widths_of(captured().traced, SAMPLE).groups
    known = {group.name: (group.layers, group.gone[0.5], group.depthwise) for group in groups}
    assert known == {
        "conv1": (("conv1",), {"conv2": 0.5}, frozenset()),
        "conv2": (("conv2",), {"conv3": 0.5, "conv4": 0.5}, {"conv3"}),
        "conv4": (("conv4",), {"linear": 0.5}, frozenset()),
    }


class Sums(nn.Module):
    """Two layers that add up, a third that reads the sum and what stays whole beside it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        y = torch.relu(self.a(x))
        y = y + self.b(y)
        return self.head(torch.cat([y.mean((2, 3)), x.mean((2, 3))], 1))


def test_layers_that_add_up_lose_the_same_channels():
    torch.manual_seed(0)
    graph = trace(Sums().eval(), SAMPLE)
    known = widths_of(graph.traced, SAMPLE)
    (group,) = known.groups
    assert group.layers == ("a", "b")
    assert group.gone[0.25] == {"b": 0.75, "head": pytest.approx(0.75 * 8 / 9)}
    scores = channel_scores(graph.traced, known.channels, IMAGES)
    narrow, places = without(graph.traced, known, scores, {"a": 0.25}, IMAGES, SAMPLE)
    assert places["a"] == places["b"] and len(places["a"]) == 2
    policy = {layer.name: Bits(4, 8) for layer in graph.layers}
    policy |= {name: Bits(4, 8, keep=0.25) for name in "ab"}
    left = resized(graph, narrow).layers
    assert left == narrowed_layers(graph.layers, known.groups, policy)
    assert [tuple(narrow.get_parameter(f"{n}.weight").shape) for n in ("a", "b", "head")] == [
        (2, 1, 3, 3), (2, 2, 3, 3), (3, 3),
    ]  # fmt: skip


def test_shares_that_empty_a_layer_or_change_nothing_are_left_out():
    traced = captured().traced
    assert widths_of(traced, SAMPLE, (1.0, 0.99, 0.5, 0.01)).groups[0].shares == (1.0, 0.5)
    assert widths_of(traced, SAMPLE, (1.0, 0.001)).groups == ()


def test_what_stays_is_a_multiple_of_what_was_asked_for():
    traced = captured().traced
    known = widths_of(traced, SAMPLE, (1.0, 0.75, 0.5, 0.25), multiple=16)
    shares = {group.name: group.shares for group in known.groups}
    assert shares == {"conv2": (1.0, 0.5), "conv4": (1.0, 0.75, 0.5, 0.25)}
    lost = lost_channels(known, {}, {"conv2": 0.5, "conv4": 0.75})
    assert {name: len(stay) for name, stay in kept_places(known.channels, lost).items()} == {
        "conv2": 16, "conv4": 48,
    }  # fmt: skip


def test_fewer_channels_do_more_and_a_channel_that_nobody_needs_does_nothing():
    graph = captured()
    with torch.no_grad():  # a quarter of conv1's filters has no effect
        graph.traced.get_submodule("conv1").weight[:4] *= 1e-6
        graph.traced.get_submodule("conv2").weight[:, :4] = 0
    known = widths_of(graph.traced, SAMPLE)
    scores = channel_scores(graph.traced, known.channels, IMAGES)
    lost = lost_channels(known, scores, {"conv1": 0.75})
    assert kept_places(known.channels, lost) == {"conv1": [*range(4, 16)]}
    damage = damage_of_channels(graph.traced, known, IMAGES, SAMPLE)["conv1"]
    assert damage[1.0] == 0 and 2 * damage[0.75] < damage[0.5] <= damage[0.25]


def test_a_channel_that_others_repeat_costs_nothing_once_its_readers_are_refitted():
    graph = captured()
    with torch.no_grad():  # the second half of conv1 repeats the first
        conv, norm = graph.traced.get_submodule("conv1"), graph.traced.get_submodule("bn1")
        conv.weight[8:] = conv.weight[:8]
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value[8:] = value[:8]
    known = widths_of(graph.traced, SAMPLE)
    keep = {"conv1": [*range(8)]}
    reference = answers(graph.traced, IMAGES)[0]
    torn = remove(graph.traced, SAMPLE, keep)
    scores = dict.fromkeys(range(1000), 0.0)  # of equals the first stay
    fitted, places = without(graph.traced, known, scores, {"conv1": 0.5}, IMAGES, SAMPLE)
    assert places == keep
    far = (answers(torn, IMAGES)[0] - reference).norm() / reference.norm()
    near = (answers(fitted, IMAGES)[0] - reference).norm() / reference.norm()
    assert near < 0.05 < far


def test_the_worth_of_a_channel_is_what_losing_it_changes():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)).eval()
    inputs = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    graph = trace(network, inputs[:2])
    known = widths_of(graph.traced, inputs[:2])
    scores = channel_scores(graph.traced, known.channels, inputs)
    with torch.no_grad():
        hidden, answer = network[1](network[0](inputs)), network(inputs)
    apart = (hidden - hidden.mean(0)) * network[2].weight[0]
    # One output that is no distribution: the squared error as a share of its variance, per part.
    by_hand = apart.square().mean(0) / answer.var(unbiased=False)
    (family,) = known.families["0"]
    given = torch.tensor([scores[group] for group in family.groups])
    torch.testing.assert_close(given, by_hand, rtol=0.35, atol=0)
