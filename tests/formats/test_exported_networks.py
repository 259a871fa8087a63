"""Networks of many kinds as files: their answers, their kernels, and what is refused in time."""

import numpy as np
import onnx
import pytest
import torch
from networks import NETWORKS, Case, error
from onnx import TensorProto
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.errors import ModelError
from haq.formats.onnx.comparison import compare
from haq.formats.onnx.export import check_exportable
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.kernels import INTEGER, Origins
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.network.graph import trace
from haq.quantization.fake_quant import quantize
from haq.quantization.folding import has_integer_kernel


@pytest.fixture(scope="module")
def case():
    cases = {}

    def get(name):
        if name not in cases:
            cases[name] = Case(name)
        return cases[name]

    return get


every_network = pytest.mark.parametrize("name", NETWORKS)


def kernels(file, layers):
    graph = onnx_runtime.opened(file.SerializeToString(), Setup()).graph
    return Origins(file.graph, graph, layers).kernels, [node.op_type for node in graph.node]


@every_network
@pytest.mark.parametrize("bits", [(8, 8), (3, 5)])
def test_a_file_answers_as_its_network_to_the_last_digits(case, name, bits):
    subject = case(name)
    policy = subject.policy(*bits)
    file = subject.file(policy)
    onnx.checker.check_model(file, full_check=True)
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    found = onnx_runtime.answers(session, subject.images.numpy())
    # Float64 puts next to no value on the other side of a boundary.
    assert error(found, subject.answers(subject.network(policy))) < 2e-3


@every_network
def test_every_layer_runs_in_an_integer_kernel(case, name):
    subject = case(name)
    policy = subject.policy(4, 6)
    used, _ = kernels(subject.file(policy), list(policy))
    for layer, names in used.items():
        integer = has_integer_kernel(subject.graph.traced.get_submodule(layer))
        assert names and (INTEGER if integer else {"ConvTranspose"}).issuperset(names)


@pytest.mark.parametrize("name, layers", [("segmenter", {"out"}), ("heads", {"each"})])
def test_convolutions_that_no_quantizer_follows_give_floats_from_integers(case, name, layers):
    subject = case(name)
    file = subject.file(subject.policy(4, 8))
    assert {n.name for n in file.graph.node if n.op_type == "ConvInteger"} == layers
    stored = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert all(stored[f"{layer}.weight_codes"] == TensorProto.INT4 for layer in layers)


def test_pooling_without_keeping_axes_is_an_integer_kernel(case):
    subject = case("tied")
    _, operators = kernels(subject.file(subject.policy(8, 8)), ["stem", "one", "two", "last"])
    assert "QLinearGlobalAveragePool" in operators
    assert not {"ReduceMean", "GlobalAveragePool"} & set(operators)


def test_padding_moves_codes(case):
    subject = case("reflect")
    file = subject.file(subject.policy(4, 4))
    [one, two] = [node for node in file.graph.node if node.op_type == "Pad"]
    makers = {output: node.op_type for node in file.graph.node for output in node.output}
    # Bytes saturate by themselves; codes of 4 bits are clipped.
    assert (makers[one.input[0]], makers[two.input[0]]) == ("QuantizeLinear", "Clip")


def test_what_stays_float_is_that_of_the_network_at_hand(case):
    subject = case("attention")
    other = subject.network(subject.policy(8, 8))
    with torch.no_grad():
        for name in ("scale", "norm.weight", "norm.bias", "lone.bias", "lone.running_mean"):
            value = dict([*other.named_parameters(), *other.named_buffers()])[name]
            value.add_(torch.linspace(-0.5, 0.5, 16))
    anew = lower(template(other, subject.images[:2]), other)
    again = lower(subject.template, other)
    values = [
        {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}
        for file in (anew, again)
    ]
    assert values[0].keys() == values[1].keys() >= {"scale", "norm.weight", "norm.bias"}
    assert all(np.array_equal(value, values[1][name]) for name, value in values[0].items())
    session = onnx_runtime.session(again.SerializeToString(), Setup())
    found = onnx_runtime.answers(session, subject.images.numpy())
    assert error(found, subject.answers(other)) < 2e-3


class Folding(nn.Module):
    """A factor of a float operator that is computed from parameters alone."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.gain, self.direction = nn.Parameter(torch.ones(1)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        return self.fc(torch.tanh(x * (self.direction * self.gain / self.direction.norm())))


def test_a_constant_that_another_network_has_otherwise_is_not_taken_for_its_own():
    torch.manual_seed(0)
    graph = trace(Folding().eval(), torch.randn(2, 6))
    exported = check_exportable(graph, torch.randn(2, 6))
    network = quantize(graph, {"fc": Bits(FLOAT, FLOAT)}, None)
    images = torch.randn(8, 6)
    network.get_parameter("gain").data.fill_(3.0)
    try:
        file = lower(exported, network)
    except ModelError as error:
        assert "has changed since the network was exported to ONNX" in str(error)
    else:
        session = onnx_runtime.session(file.SerializeToString(), Setup())
        found = onnx_runtime.answers(session, images.numpy())
        with torch.no_grad():
            assert abs(found - network(images).numpy()).max() < 1e-5


def test_a_layer_of_quantized_weights_and_float_activations_behind_integers_is_float(case):
    subject = case("pooled")
    policy = subject.policy(4, 8) | {"three": Bits(4, FLOAT)}
    network = subject.network(policy)
    file = lower(subject.template, network, floats=["three"])
    used, _ = kernels(file, list(policy))
    assert not INTEGER.intersection(used["three"]) and used["three"]
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    found = onnx_runtime.answers(session, subject.images.numpy())
    assert error(found, subject.answers(network)) < 2e-3


@every_network
def test_one_export_serves_the_plan_and_all_that_follows(case, name):
    subject = case(name)
    exported = check_exportable(subject.graph, subject.images[:2])
    policy = subject.policy(3, 6)
    own, other = (lower(made, subject.network(policy)) for made in (exported, subject.template))
    assert own.SerializeToString() == other.SerializeToString()


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.linalg.eigvalsh(self.fc(x)[:, None] * torch.eye(4))


def test_what_torch_cannot_export_is_said_of_the_float_network():
    graph = trace(Unknown().eval(), torch.randn(2, 4))
    with pytest.raises(ModelError, match="cannot be exported to ONNX: .*eig") as caught:
        check_exportable(graph, torch.randn(2, 4))
    assert len(str(caught.value).splitlines()) == 1


# What ONNX Runtime computes


@pytest.mark.parametrize("name", ["segmenter", "attention", "pooled"])
def test_a_comparison_is_right_where_floats_stand_between_integers(case, name):
    subject = case(name)
    comparison = compare(subject.file(subject.policy(7, 8)), subject.images.numpy())
    assert comparison.right and comparison.wrong == ()
    assert comparison.images == len(subject.images)
    assert not comparison.exact


@pytest.mark.skipif(exact_kernels(), reason="the 8-bit kernels are exact on this CPU")
@pytest.mark.parametrize("name", ["segmenter", "attention", "pooled"])
def test_a_comparison_finds_saturation_behind_float_operators(case, name):
    subject = case(name)
    comparison = compare(subject.file(subject.policy(8, 8), cpu="vnni"), subject.images.numpy())
    assert not comparison.right and comparison.wrong
