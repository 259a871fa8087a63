"""ONNX Runtime's own operators in numpy, beside ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from haq.formats.onnx.contrib import CONTRIB_RULES

CONTRIB = "com.microsoft"


def in_onnx_runtime(kind, given, attributes):
    names = [f"x{place}" if value is not None else "" for place, value in enumerate(given)]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in zip(names, given, strict=True) if value is not None
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], "node", domain=CONTRIB, **attributes)], "one", inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    sets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {name: value for name, value in zip(names, given, strict=True) if name}
    return session.run(None, feeds)[0]


def in_numpy(kind, given, attributes):
    return CONTRIB_RULES[kind](attributes, given)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("level, allowed", [(1, 1e-5), (4, 2e-2)])  # the last as CPUs have it
def test_products_of_groups_are_those_of_onnx_runtime(bits, level, allowed):
    random = np.random.default_rng(bits)
    x = random.normal(size=(3, 2, 70)).astype(np.float32)  # of three blocks, the last in part
    packed = random.integers(0, 256, (5, 3, 32 * bits // 8), dtype=np.uint8)
    scales = random.uniform(0.1, 1, (5, 3)).astype(np.float32)
    bias = random.normal(size=5).astype(np.float32)
    about = {"K": 70, "N": 5, "bits": bits, "block_size": 32, "accuracy_level": level}
    given = [x, packed, scales, None, None, bias]
    theirs = in_onnx_runtime("MatMulNBits", given, about)
    ours = in_numpy("MatMulNBits", given, about)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= allowed * np.ptp(theirs)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_of_groups_are_those_of_onnx_runtime(bits):
    random = np.random.default_rng(bits)
    packed = random.integers(0, 256, (6, 64 * bits // 8), dtype=np.uint8)
    scales = random.uniform(0.1, 1, (6, 2)).astype(np.float32)
    about = {"bits": bits, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    given = [packed, np.array([[0, 5], [2, 2]]), scales]
    theirs = in_onnx_runtime("GatherBlockQuantized", given, about)
    assert np.array_equal(in_numpy("GatherBlockQuantized", given, about), theirs)


def test_products_of_codes_are_those_of_onnx_runtime():
    random = np.random.default_rng(1)
    x = random.integers(0, 256, (2, 3, 9), dtype=np.uint8)
    weight = random.integers(-64, 64, (9, 4), dtype=np.int8)
    scales = random.uniform(0.1, 1, 4).astype(np.float32)
    one, zero = np.array(0.5, np.float32), np.array(128, np.uint8)
    given = [x, weight, one, scales, zero, np.array(0, np.int8)]
    theirs = in_onnx_runtime("MatMulIntegerToFloat", given, {})
    assert np.allclose(in_numpy("MatMulIntegerToFloat", given, {}), theirs, rtol=1e-6)
