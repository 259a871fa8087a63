"""Codes in groups as files hold them, against ONNX Runtime's own kernels."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.nn import functional

from haq.allocation.policy import Bits
from haq.formats.onnx.groups import group_rows, lower_group_linear, packed
from haq.formats.onnx.planes import PLANES, planes_of
from haq.quantization.formats import GroupEmbedding, GroupLinear, set_grouped
from haq.quantization.groups import group_scales


class File:
    """What the writers of layers need of a file in the making."""

    def __init__(self):
        self.nodes, self.first, self.constants, self.grouped = [], [], {}, set()

    def constant(self, name, values):
        self.constants[name] = onnx.numpy_helper.from_array(np.asarray(values), name)
        return name

    def model(self, kind, shape, outputs):
        graph = helper.make_graph(
            [*self.first, *self.nodes], "one layer",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
            list(self.constants.values()),
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def codes_bytes(self):
        return sum(
            len(tensor.raw_data)
            for name, tensor in self.constants.items()
            if "plane_" in name or name.endswith("weight_codes")
        )


def answer(model, x, optimised=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


shapes = st.tuples(
    st.integers(2, 8), st.sampled_from([32, 64, 128]), st.integers(1, 200), st.integers(1, 40)
)


def layer(kind, bits, block, columns, rows, seed):
    torch.manual_seed(seed)
    module = kind(columns, rows) if kind is torch.nn.Linear else kind(rows, columns)
    weight = torch.randn(rows, columns) * torch.logspace(-3, 3, columns)
    module.weight.data = weight[:, torch.randperm(columns)]
    set_grouped(module, Bits(bits, 32, block), group_scales(module.weight, bits, block))
    return module


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31), st.booleans())
def test_a_linear_layer_in_groups_is_what_the_stock_kernel_computes(shape, seed, bias):
    bits, block, columns, rows = shape
    module = layer(torch.nn.Linear, bits, block, columns, rows, seed)
    if not bias:
        module.bias = None
    assert isinstance(module, GroupLinear)
    file = File()
    lower_group_linear(file, module, None, "x", "y", "one")
    x = np.random.default_rng(seed).standard_normal((3, columns)).astype(np.float32)
    given = answer(file.model(TensorProto.FLOAT, [3, columns], [3, rows]), x)
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x).double())
        size = functional.linear(torch.from_numpy(x).double().abs(), module.weight.abs()).max()
        size += 0 if module.bias is None else module.bias.abs().max()
    assert np.abs(given - expected.numpy()).max() <= 1e-5 * float(size) + 1e-12


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_rows_in_groups_are_those_of_the_stock_kernel_to_the_last_bit(shape, seed):
    bits, block, columns, rows = shape
    module = layer(torch.nn.Embedding, bits, block, columns, rows, seed)
    assert isinstance(module, GroupEmbedding)
    file = File()
    file.nodes += group_rows(file, "one", "one", "x", "y", module)
    x = np.arange(rows, dtype=np.int64)[::-1].copy()
    given = answer(file.model(TensorProto.INT64, [rows], [rows, columns]), x)
    with torch.no_grad():
        assert np.array_equal(given, module(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_file_holds_codes_at_their_own_size_and_the_kernel_gets_a_constant(bits, tmp_path):
    module = layer(torch.nn.Linear, bits, 32, 64, 24, 0)
    file = File()
    lower_group_linear(file, module, None, "x", "y", "one")
    assert file.codes_bytes() == 64 * 24 * bits // 8
    model = file.model(TensorProto.FLOAT, [1, 64], [1, 24])
    answer(model, np.zeros((1, 64), np.float32), tmp_path / "run.onnx")
    run = onnx.load(tmp_path / "run.onnx").graph
    assert [node.op_type for node in run.node] == (["MatMulNBits"] if bits <= 4 else ["Gemm"])


@pytest.mark.parametrize("bits, width", [(3, 4), (5, 8), (6, 8), (7, 8)])
def test_planes_hold_every_bit_of_every_code_once(bits, width):
    codes = np.arange(2**bits, dtype=np.uint8)
    slots = packed(codes, width)
    planes = planes_of(slots, bits, width)
    assert sum(len(plane) for plane in planes) * 8 == len(codes) * bits
    ones = sum(int(np.unpackbits(plane).sum()) for plane in planes)
    assert ones == int(np.unpackbits(codes).sum())
    assert sum(PLANES[bits]) == bits
