"""Gates, poolings, norms of groups, transposed convolutions: a file answers as its network."""

import numpy as np
import pytest
import torch
from islands import NETWORKS, converted, network_and_inputs

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.comparison import compare
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import answered, opened
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.models.onnx.load import load_onnx
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize


def subject(name, weight, act):
    model, images = network_and_inputs(name)
    graph = trace(model, images[:2])
    network = converted(graph, calibrate(graph, [images], "max"), weight, act)
    return graph, network, images


@pytest.mark.parametrize("weight, act", [(7, 8), (4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_answers_as_the_network_to_the_last_bit(name, weight, act):
    graph, network, images = subject(name, weight, act)
    exported = template(stand_in(graph)[0], images[:2])
    assert not exported.untranslated
    file = lower(exported, network)
    [answers] = opened(file.SerializeToString()).run(["logits"], {"images": images.numpy()})
    np.testing.assert_array_equal(answers, network(images).detach().numpy())


def test_a_file_holds_nothing_that_nobody_reads():
    graph, network, images = subject("attention", 7, 8)
    file = lower(template(stand_in(graph)[0], images[:2]), network)
    read = {name for node in file.graph.node for name in node.input}
    read |= {value.name for value in file.graph.output}
    assert all(set(node.output) & read for node in file.graph.node)
    assert {one.name for one in file.graph.initializer} <= read


@pytest.mark.parametrize("name", ["sigmoid gate", "transposed convolutions", "group norm", "GEGLU"])
def test_numpy_works_out_the_same_file(name):
    graph, network, images = subject(name, 7, 8)
    file = lower(template(stand_in(graph)[0], images[:2]), network)
    assert compare(file, images[:8].numpy()).right


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """Return a function from a name to the network's float ONNX file, and inputs."""

    def written(name):
        model, images = network_and_inputs(name)
        graph = trace(model, images[:2])
        floats = quantize(
            graph, {x.name: Bits(FLOAT, FLOAT) for x in graph.layers},
            calibrate(graph, [images], "max"),
        )  # fmt: skip
        path = tmp_path_factory.mktemp("files") / "net.onnx"
        path.write_bytes(lower(template(floats, images[:2]), floats).SerializeToString())
        return path, images

    return written


@pytest.mark.parametrize("weight, act", [(7, 8), (4, 4)])
@pytest.mark.parametrize(
    "name", ["sigmoid gate", "SwiGLU", "attention", "einsum", "transposed convolutions"]
)
def test_the_file_of_an_onnx_network_answers_as_the_network(name, weight, act, float_file):
    path, images = float_file(name)
    network = load_onnx(path)
    graph = trace(network, images[:2])
    quantized = converted(graph, calibrate(graph, [images], "max"), weight, act)
    file = lower(template(stand_in(graph)[0], images[:2]), quantized)
    names = {node.name for node in network.origin.model().graph.node if node.op_type != "Constant"}
    assert len(names - {node.name for node in file.graph.node}) <= len(graph.layers)  # their biases
    with torch.no_grad():
        wanted = quantized(images).numpy()
    np.testing.assert_array_equal(answered(opened(file.SerializeToString()), images), wanted)
