"""Channels that are removed: the network without them is the network that does not read them."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from haq.compression.channels import channels_of
from haq.compression.filters import keep_largest, kept_count, prunable, remove
from haq.errors import HaqError
from haq.models import build
from haq.network.graph import trace


class Residual(nn.Module):
    """A sum of two paths, behind it a concatenation, a depthwise layer and a head on a map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.bn = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.left, self.right = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 7, 3, padding=1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.gate = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12 * 16, 4)

    def forward(self, x):
        x = torch.sigmoid(self.stem(x))  # does not leave zero at zero
        x = x + self.outer(torch.relu(self.bn(self.inner(x))))
        x = torch.cat([self.left(x), torch.relu(self.right(x))], 1)
        x = torch.nn.functional.silu(self.deep(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(torch.nn.functional.max_pool2d(x, 2).flatten(1))


SHAPES = {"digits_cnn": (1, 8, 8), "digits_mlp": (1, 8, 8), "resnet20": (3, 16, 16),
          "mobilenet_v2": (3, 32, 32)}  # fmt: skip


@cache
def captured(name):
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3, 8, 8))
    model = Residual() if name == "residual" else build(name, size=32 if "mobile" in name else None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # norms that change something
            module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.uniform_(module.bias, -0.1, 0.1)
    sample = torch.randn(2, *shape)
    return trace(model.eval(), sample).traced, sample


def unread(traced, sample, keep):
    """Return the network in which nothing reads the channels that would be removed."""
    channels, twin = channels_of(traced, sample), copy.deepcopy(traced)
    gone = set()
    for name, places in keep.items():
        numbers = channels.outputs[name]
        left = [at for at in range(len(numbers)) if at not in places]
        gone |= set(channels.groups(numbers[left]).tolist())
    for name, numbers in channels.inputs.items():
        off = torch.tensor([group in gone for group in channels.groups(numbers).tolist()])
        module = twin.get_submodule(name)
        with torch.no_grad():
            if name not in channels.depthwise:
                module.weight[:, off] = 0
    return twin


CASES = [("residual", 0.25), ("residual", 0.75), *((name, 0.5) for name in SHAPES)]


@pytest.mark.parametrize("name, share", CASES)
def test_the_pruned_network_is_the_one_that_does_not_read_its_channels(name, share):
    traced, sample = captured(name)
    keep = keep_largest(traced, sample, {f.name: share for f in prunable(traced, sample)})
    pruned = remove(traced, sample, keep)
    inputs = torch.randn(3, *sample.shape[1:])
    expected = unread(traced, sample, keep)(inputs)
    torch.testing.assert_close(pruned(inputs), expected, rtol=1e-4, atol=1e-5)
    assert sum(map(torch.numel, pruned.parameters())) < sum(map(torch.numel, traced.parameters()))
    assert pruned.state_dict().keys() == traced.state_dict().keys()


@pytest.mark.parametrize("name", ["residual", "digits_cnn"])
def test_the_pruned_network_is_a_network_like_any_other(name):
    traced, sample = captured(name)
    keep = keep_largest(traced, sample, {f.name: 0.5 for f in prunable(traced, sample)})
    pruned = remove(traced, sample, keep)
    again = trace(pruned, sample)
    sizes = {layer.name: (layer.c_out, layer.weights) for layer in again.layers}
    assert all(
        sizes[name] == (len(m.weight), m.weight.numel()) for name, m in pruned.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    )  # fmt: skip


def test_channels_that_meet_go_together():
    traced, sample = captured("residual")
    sizes = {
        family.name: (family.layers, len(family.groups)) for family in prunable(traced, sample)
    }
    assert sizes == {
        "stem": (("stem", "outer"), 8), "inner": (("inner",), 6), "left": (("left", "gate"), 5),
        "right": (("right", "gate"), 7),
    }  # fmt: skip
    pruned = remove(traced, sample, {"left": [0, 4], "inner": [1], "outer": [0, 1, 2]})
    shapes = {name: tuple(m.weight.shape) for name, m in pruned.named_modules()
              if isinstance(m, nn.Conv2d | nn.Linear)}  # fmt: skip
    assert shapes == {
        "stem": (3, 3, 3, 3), "inner": (1, 3, 3, 3), "outer": (3, 1, 1, 1), "left": (2, 3, 1, 1),
        "right": (7, 3, 3, 3), "deep": (9, 1, 3, 3), "gate": (9, 9, 1, 1), "head": (4, 9 * 16),
    }  # fmt: skip


def test_the_shortcut_that_adds_channels_of_zeros_adds_fewer():
    traced, sample = captured("resnet20")
    (stream,) = (f for f in prunable(traced, sample) if f.name == "layer2.0.conv2")
    keep = keep_largest(traced, sample, {stream.name: 0.5})
    pruned = remove(traced, sample, keep)
    assert tuple(pruned.get_submodule("layer2.1.conv1").weight.shape[:2]) == (32, 24)
    pads = [node.args[1] for node in pruned.graph.nodes if "pad" in node.name]
    assert sum(pads[0][4:6]) == 8 and sum(traced_pad(traced)) == 16


def traced_pad(traced):
    return next(node.args[1][4:6] for node in traced.graph.nodes if "pad" in node.name)


def test_the_smallest_filters_go():
    traced, sample = copy.deepcopy(captured("digits_cnn"))
    with torch.no_grad():
        traced.get_submodule("conv1").weight[[2, 5, 11]] *= 1e-3
    (kept,) = keep_largest(traced, sample, {"conv1": 13 / 16}).values()
    assert kept == [at for at in range(16) if at not in (2, 5, 11)]


def test_what_cannot_be_removed_is_named_with_what_can():
    traced, sample = captured("digits_cnn")
    for shares, sentence in [
        ({"linear": 0.5}, "the channels of layer 'linear' cannot be removed: the output, or an"),
        ({"conv3": 0.5}, "'conv3' cannot be removed: it is depthwise, and has those of the layer"),
        ({"conv9": 0.5}, "unknown layer 'conv9'; did you mean 'conv"),
        ({"conv1": 0.01}, "keeping 0.01 of the 16 channels of layer 'conv1' would empty it; give"),
        ({"conv1": 0}, "a share of channels that stay is above 0 and at most 1, not 0"),
        ({"conv1": 1.5}, "not 1.5"),
    ]:
        with pytest.raises(HaqError) as error:
            keep_largest(traced, sample, shares)
        assert sentence in str(error.value)
    residual, images = captured("residual")
    with pytest.raises(HaqError, match="layers stem, outer have their channels in common"):
        keep_largest(residual, images, {"stem": 0.5, "outer": 0.25})


@pytest.mark.parametrize(
    "keep, sentence",
    [
        ({"linear": [0]}, "the channels of layer 'linear' cannot be removed"),
        ({"conv1": []}, "'conv1' has 16 channels: name those that stay, at least one"),
        ({"conv1": [16]}, "by their places 0 to 15"),
        ({"conv1": [1, 1]}, "each once"),
        ({"none": [1]}, "unknown layer 'none'"),
    ],
)
def test_channels_that_cannot_stay_are_refused(keep, sentence):
    traced, sample = captured("digits_cnn")
    with pytest.raises(HaqError, match=sentence):
        remove(traced, sample, keep)


def test_the_number_that_stays_is_the_nearest_one():
    assert [kept_count(share, 16, "a") for share in (1, 0.75, 0.5, 0.25)] == [16, 12, 8, 4]
    assert kept_count(1 / 32, 16, "a") == 1


class Shuffled(nn.Module):
    """Channels change places, as in ShuffleNet: what that mixes stays whole."""

    def __init__(self, split=False):
        super().__init__()
        self.split = split
        self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = self.one(x)
        if self.split:
            left, right = x.chunk(2, 1)
            x = torch.cat([right, left], 1)
        else:
            x = x.softmax(1)
        return self.head(torch.relu(self.two(x)).mean((2, 3)))


@pytest.mark.parametrize("split", [False, True])
def test_what_mixes_channels_keeps_those_before_it(split):
    sample = torch.randn(2, 3, 4, 4)
    traced = trace(Shuffled(split).eval(), sample).traced
    assert [family.name for family in prunable(traced, sample)] == ["two"]


def test_a_layer_that_is_called_twice_has_its_channels_once():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), shared, nn.ReLU(), shared, nn.Linear(6, 2))
    traced = trace(model.eval(), torch.randn(2, 4)).traced
    keep = keep_largest(traced, torch.randn(2, 4), {"0": 0.5})
    pruned = remove(traced, torch.randn(2, 4), keep)
    assert tuple(pruned.get_submodule("2").weight.shape) == (3, 3)
