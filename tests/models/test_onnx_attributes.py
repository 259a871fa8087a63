"""Attributes of windows, axes and matrices in ONNX files, drawn at random, against ONNX Runtime."""

import numpy as np
import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_files import Given, array, both, model_of, values_of

from haq.errors import ModelError

quick = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip


def check(operator, operands, attributes):
    """Compare with ONNX Runtime, unless one of the two refuses: what is refused is not wrong."""
    model = model_of(operator, operands, attributes)
    try:
        answers, wanted = both(model, values_of(operands, 3))
    except (ModelError, onnxruntime.InvalidArgument, onnxruntime.RuntimeException) as error:
        assert "node" in str(error)  # says which
        return
    for answer, right in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer, right, rtol=1e-4, atol=1e-5)


@st.composite
def windows(draw, axes=2, transposed=False, dilated=True):
    """Draw what operators with windows have in common, and the kernel."""
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    more = {
        "strides": draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
        "kernel_shape": kernel,
    }
    if dilated:
        more["dilations"] = draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))
    auto = "NOTSET" if transposed else draw(
        st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    )  # fmt: skip
    if auto == "NOTSET":
        most = [k - 1 for k in kernel]
        more["pads"] = [draw(st.integers(0, m)) for m in (*most, *most)]
    else:
        more["auto_pad"] = auto
    return more


@quick
@given(more=windows(), groups=st.sampled_from([1, 2, 4]), bias=st.booleans())
def test_convolutions(more, groups, bias):
    weight = array(8, 4 // groups, *more["kernel_shape"])
    operands = [Given((4, 7, 6)), weight, *([array(8, seed=2)] if bias else [])]
    check("Conv", operands, {**more, "group": groups})


@quick
@given(
    more=windows(transposed=True), groups=st.sampled_from([1, 2]), bias=st.booleans(),
    added=st.lists(st.integers(0, 1), min_size=2, max_size=2),
)  # fmt: skip
def test_transposed_convolutions(more, groups, bias, added):
    extra = [min(a, s - 1) for a, s in zip(added, more["strides"], strict=True)]
    weight = array(4, 6 // groups, *more["kernel_shape"])
    operands = [Given((4, 5, 4)), weight, *([array(6, seed=2)] if bias else [])]
    check("ConvTranspose", operands, {**more, "group": groups, "output_padding": extra})


@quick
@given(more=windows(), ceil=st.integers(0, 1))
def test_max_pools(more, ceil):
    check("MaxPool", [Given((2, 7, 6))], {**more, "ceil_mode": ceil})


@quick
@given(more=windows(dilated=False), ceil=st.integers(0, 1), counted=st.integers(0, 1))
def test_average_pools(more, ceil, counted):
    check("AveragePool", [Given((2, 7, 6))],
          {**more, "ceil_mode": ceil, "count_include_pad": counted})  # fmt: skip


@quick
@given(
    turned=st.integers(0, 1), alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.0, 3.0]), bias=st.sampled_from([None, (5,), (1,), (1, 5), ()]),
)  # fmt: skip
def test_matrices(turned, alpha, beta, bias):
    weight = array(5, 4) if turned else array(4, 5)
    operands = [Given((4,)), weight, *([] if bias is None else [array(*bias, seed=2)])]
    check("Gemm", operands, {"transB": turned, "alpha": alpha, "beta": beta})


@quick
@given(
    axes=st.lists(st.sampled_from([1, 2, 3, -1, -2, -3]), min_size=1, max_size=3),
    keep=st.integers(0, 1), operator=st.sampled_from(["ReduceMean", "ReduceSum", "ReduceMax"]),
)  # fmt: skip
def test_reductions(axes, keep, operator):
    chosen = list({axis % 4: axis for axis in axes}.values())
    check(operator, [Given((2, 3, 4)), np.array(chosen, np.int64)], {"keepdims": keep})


@quick
@given(
    operator=st.sampled_from(["Softmax", "LogSoftmax", "Concat", "Flatten"]),
    axis=st.sampled_from([1, 2, 3, -1, -2, -3]),
)  # fmt: skip
def test_axes(operator, axis):
    one = Given((2, 3, 4))
    check(operator, [one, one] if operator == "Concat" else [one], {"axis": axis})


@quick
@given(
    sizes=st.lists(st.integers(-1, 2), min_size=4, max_size=4),
    mode=st.sampled_from(["constant", "reflect", "edge"]), value=st.sampled_from([None, 0.0, 2.0]),
)  # fmt: skip
def test_pads(sizes, mode, value):
    ends = [0, 0, *sizes[:2], 0, 0, *sizes[2:]]
    operands = [Given((2, 5, 6)), np.array(ends, np.int64)]
    operands += [] if value is None or mode != "constant" else [np.float32(value)]
    check("Pad", operands, {"mode": mode})


@quick
@given(
    start=st.integers(-8, 8), end=st.integers(-8, 8), step=st.sampled_from([1, 2, -1, -2]),
    axis=st.sampled_from([1, 2, -1]),
)  # fmt: skip
def test_slices(start, end, step, axis):
    ints = [np.array([value], np.int64) for value in (start, end, axis, step)]
    check("Slice", [Given((5, 6)), *ints], {})
