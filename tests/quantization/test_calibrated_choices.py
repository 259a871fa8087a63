"""Calibration looks only at what some choice of the search rounds."""

import pytest
import torch
from torch import nn

from haq.allocation.choices import permitted
from haq.allocation.policy import Bits
from haq.allocation.schemes import Formats
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.statistics import statistics

INPUTS = torch.randint(40, (8, 5), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.wide, self.out = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.out(torch.relu(self.wide(self.words(x))))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return trace(Words().eval(), INPUTS)


def of_formats(graph, schemes, groups):
    return permitted(graph.layers, None, formats=Formats(schemes, groups))


def test_groups_with_float_activations_need_no_inputs_and_no_clips(graph):
    def batches():
        raise AssertionError("the network was run")
        yield INPUTS

    choices = of_formats(graph, ("weight-only", "dynamic"), (32,))
    clips = calibrate(graph, batches(), choices=choices)
    assert not clips.weights and not clips.acts
    network = quantize(graph, {name: pairs[0] for name, pairs in choices.items()}, clips)
    assert torch.isfinite(network(INPUTS)).all()
    assert statistics(graph, INPUTS, clips).keys() == statistics(graph, INPUTS).keys()


def test_one_scale_a_channel_needs_clips_of_weights_alone(graph):
    clips = calibrate(graph, [INPUTS], choices=of_formats(graph, ("weight-only",), (0, 64)))
    assert list(clips.weights) == ["words", "wide", "out"] and not clips.acts


def test_what_is_looked_at_has_the_clips_that_it_always_has(graph):
    choices = of_formats(graph, ("static",), ()) | {
        "wide": (Bits(4, 8),),
        "words": (Bits(4, 32, 32),),
    }
    some, whole = calibrate(graph, [INPUTS], choices=choices), calibrate(graph, [INPUTS])
    assert list(some.weights) == ["wide", "out"]
    for name, row in some.weights.items():
        assert all(torch.equal(row[bits], whole.weights[name][bits]) for bits in range(2, 9))
    assert some.acts == whole.acts and some.skews == whole.skews


def test_what_is_looked_at_is_counted(graph):
    counted = []
    choices = of_formats(graph, ("weight-only",), (0, 32)) | {"out": (Bits(4, 32, 32),)}
    calibrate(graph, [INPUTS], on_tensor=lambda *count: counted.append(count), choices=choices)
    assert counted == [(1, 2), (2, 2)]
