import copy

import numpy as np
import pytest
import torch
from test_evaluator import evaluator, made
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.runtime import exact_kernels, integer_answer, prepared
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize, uniform

pytestmark = pytest.mark.skipif(
    not exact_kernels(), reason="the 8-bit kernels of ONNX Runtime saturate on this CPU"
)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    images = torch.randn(12, 3, 32, 32)
    model = build("resnet20", classes=10)
    with torch.no_grad():
        model.train()(images)
    graph = trace(model.eval(), images[:1])
    clips = calibrate(graph, [images], "max")
    return graph, clips, images, prepared(quantize(graph, uniform(graph, 8, 8), clips), images[:1])


@pytest.mark.parametrize("bits", [(8, 8), (3, 4), (2, 2)])
def test_the_answer_is_that_of_the_integers_and_the_network_stays_as_it_is(resnet, bits):
    graph, clips, images, lowering = resnet
    network = quantize(graph, uniform(graph, *bits), clips)
    before = copy.deepcopy(network.state_dict())
    answered = integer_answer(lowering, network)(images)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    convert_to_integers(network)
    integers = simulate(lower(lowering, network), images.numpy())
    assert integers.exact and np.array_equal(integers.logits, answered.numpy())


def test_a_network_with_a_float_layer_is_left_to_floating_point(resnet):
    graph, clips, _, lowering = resnet
    policy = uniform(graph, 8, 8) | {graph.layers[-1].name: Bits(FLOAT, FLOAT)}
    assert integer_answer(lowering, quantize(graph, policy, clips)) is None
    assert integer_answer(lowering, graph.traced) is None


class Sinh(nn.Module):
    """Computes something that ONNX has an operator for, but ONNX Runtime no kernel."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.sinh(self.first(x).double()).float())


def test_a_network_that_onnx_runtime_does_not_load_is_left_to_floating_point():
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    graph = trace(Sinh().eval(), inputs[:1])
    network = quantize(graph, uniform(graph, 8, 8), calibrate(graph, [inputs], "max"))
    lowering = prepared(network, inputs[:1])
    assert lowering is not None and integer_answer(lowering, network) is None


def test_a_batch_norm_without_a_layer_of_its_own_has_the_statistics_of_its_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    images = torch.randn(16, 3, 8, 8)
    graph = trace(model.eval(), images)
    clips = calibrate(graph, [images], "max")
    lowering = prepared(quantize(graph, uniform(graph, 8, 8), clips), images[:1])
    other = quantize(graph, uniform(graph, 8, 8), clips)
    norm = other.get_submodule("2")
    norm.running_mean.uniform_(0.1, 0.3)
    norm.weight.data.uniform_(0.5, 1.5)
    with torch.no_grad():
        expected = other(images)
    apart = (integer_answer(lowering, other)(images) - expected).norm()
    assert apart < 0.02 * (expected - expected.mean(0)).norm()


def test_a_score_of_the_file_is_nearly_that_of_the_network():
    cheap = evaluator(train_images=40, val_images=100)
    graph, clips = made()
    network = quantize(graph, uniform(graph, 4, 4), clips)
    found, floating = cheap.integer_score(network), cheap.score(network)
    assert found.accuracy == pytest.approx(floating.accuracy, abs=0.03)
    assert found.loss == pytest.approx(floating.loss, rel=0.03)
    assert cheap.integer_score(graph.traced) == cheap.score(graph.traced)
