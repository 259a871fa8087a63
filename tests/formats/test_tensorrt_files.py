"""Files as TensorRT reads them: int8 codes around zero between quantizers, floats in float16."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from haq.allocation.policy import Bits
from haq.formats.onnx.half import in_half
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x).relu()
        return self.fc((x + self.c(self.b(x).relu())).relu().mean((2, 3)))


FLOATS = Bits(32, 32)
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def files(policy):
    """Return the file of a policy for CPUs, and that for TensorRT."""
    torch.manual_seed(0)
    graph = trace(Net().eval(), IMAGES[:1])
    clips = calibrate(graph, [IMAGES], "max")
    exported = template(stand_in(graph)[0], IMAGES[:1])
    network = quantize(graph, policy, clips)
    convert_to_integers(network)
    return lower(exported, network), lower(exported, network, symmetric=True)


def answers(model):
    network = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return network.run(None, {network.get_inputs()[0].name: IMAGES.numpy()})[0]


def policies():
    for first, others in ((8, 7), (8, 4), (8, 8)):
        yield {name: Bits(w, first if name == "a" else others)
               for name, w in zip(("a", "b", "c", "fc"), (7, 4, 2, 8), strict=True)}  # fmt: skip
    yield {"a": FLOATS, "b": Bits(3, 7), "c": FLOATS, "fc": Bits(8, 7)}


@pytest.mark.parametrize("policy", list(policies()), ids=lambda p: "-".join(map(str, p.values())))
def test_codes_are_int8_around_zero_and_answers_are_the_same(policy):
    usual, symmetric = files(policy)
    onnx.checker.check_model(symmetric)
    constants = {one.name: one for one in symmetric.graph.initializer}
    operators = {node.op_type for node in symmetric.graph.node}
    known = "Conv Gemm Relu Add QuantizeLinear DequantizeLinear Clip GlobalAveragePool Flatten"
    assert operators <= {*known.split(), "ReduceMean", "Identity"}
    codes = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT64)
    assert {one.data_type for one in constants.values()} <= set(codes)
    for name, one in constants.items():
        if name.endswith("zero_point"):
            assert not numpy_helper.to_array(one).any()
    one, other = answers(usual), answers(symmetric)
    unsigned = any(bits.act == 8 for name, bits in policy.items() if name != "a")
    # Without negative values 8 bits become 7; else codes are the same, but for rounding.
    assert other == pytest.approx(one, abs=0.2 if unsigned else 0.05, rel=0.05)
    assert (one.argmax(1) == other.argmax(1)).mean() > 0.95


def test_a_layer_has_one_node_that_reads_int8_weights():
    policy = next(policies())
    _, symmetric = files(policy)
    by_output = {node.output[0]: node for node in symmetric.graph.node}
    constants = {one.name: numpy_helper.to_array(one) for one in symmetric.graph.initializer}
    for node in symmetric.graph.node:
        if node.name in policy:
            x, w = (by_output[name] for name in node.input[:2])
            assert x.op_type in ("DequantizeLinear", "Flatten", "GlobalAveragePool")
            assert w.op_type == "DequantizeLinear" and constants[w.input[0]].dtype == np.int8
    assert policy.keys() <= {node.name for node in symmetric.graph.node}


def test_floats_become_float16_but_for_the_ends_of_the_file():
    _, symmetric = files(next(policies()))
    half = in_half(symmetric)
    onnx.checker.check_model(half)
    kinds = {one.data_type for one in half.graph.initializer}
    assert TensorProto.FLOAT not in kinds and TensorProto.FLOAT16 in kinds
    ends = [*half.graph.input, *half.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 not in {one.data_type for one in symmetric.graph.initializer}
    one, other = answers(symmetric), answers(half)
    assert other == pytest.approx(one, abs=0.2, rel=0.05)
    scales = [numpy_helper.to_array(o) for o in half.graph.initializer if o.name.endswith("scale")]
    assert scales and all((scale > 0).all() for scale in scales)
