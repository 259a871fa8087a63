"""Every operator of the table, compared with ONNX Runtime."""

import numpy as np
import pytest
from onnx_files import Given, array, both, model_of, values_of

from haq.models.onnx.operators import OPERATORS

X, POSITIVE, IDS = Given((3, 4)), Given((3, 4), "positive"), Given((3,), "ids")
IMAGE, SERIES, VOLUME = Given((4, 6, 5)), Given((4, 7)), Given((2, 4, 5, 3))
BOOL = Given((3, 4), "bool")


def ints(*values):
    return np.array(values, np.int64)


UNARY = [
    "Abs", "Ceil", "Cos", "Dropout", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg",
    "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh",
]  # fmt: skip
BINARY = ["Add", "Div", "Mul", "Sub", "Max", "Min", "Sum", "Mean", "Pow"]
COMPARED = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
]  # fmt: skip

CASES = {
    **{name: [([X], {})] for name in UNARY},
    **{name: [([POSITIVE], {})] for name in ("Log", "Reciprocal", "Sqrt")},
    **{
        name: [
            ([POSITIVE, X], {}), ([POSITIVE, array(3, 4)], {}), ([POSITIVE, array(1)], {}),
            ([np.float32(0.7), POSITIVE], {}), ([POSITIVE, array(1, 1, 1, 1)], {}),
        ]
        for name in BINARY
    },
    **{name: [([X, X], {}), ([X, np.float32(0.1)], {})] for name in COMPARED},
    **{
        name: [
            ([X, ints(1)], {}), ([X, ints(-1, 1)], {"keepdims": 0}), ([IMAGE, ints(2, 3)], {}),
            ([X, None], {"noop_with_empty_axes": 1}),
        ]
        for name in REDUCTIONS
    },
    **{name: [([BOOL, BOOL], {})] for name in ("And", "Or", "Xor")},
    "Not": [([BOOL], {})],
    "ArgMax": [([X], {"axis": 1}), ([X], {"axis": -1, "keepdims": 0})],
    "ArgMin": [([X], {"axis": 1}), ([X], {"axis": -1, "keepdims": 0})],
    "AveragePool": [
        ([IMAGE], {"kernel_shape": [2, 3]}),
        ([IMAGE], {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
        ([IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ([IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "count_include_pad": 1}),
        ([SERIES], {"kernel_shape": [2], "ceil_mode": 1, "strides": [2]}),
    ],
    "BatchNormalization": [
        ([IMAGE, array(4), array(4, seed=2), array(4, seed=3), array(4, low=0.1)], {}),
        ([SERIES, array(4), array(4, seed=2), array(4, seed=3), array(4, low=0.1)],
         {"epsilon": 0.01}),
    ],
    "Cast": [
        ([X], {"to": 7}), ([X], {"to": 9}), ([IDS], {"to": 1}), ([IDS], {"to": 6}),
        ([BOOL], {"to": 1}),
    ],
    "Celu": [([X], {"alpha": 2.0})],
    "Clip": [
        ([X, np.float32(-0.5), np.float32(0.5)], {}), ([X, np.float32(0)], {}), ([X], {}),
        ([X, None, np.float32(0.25)], {}),
    ],
    "Concat": [([X, X], {"axis": 1}), ([X, X, X], {"axis": -1})],
    "Conv": [
        ([IMAGE, array(6, 4, 3, 3)], {}),
        ([IMAGE, array(6, 4, 3, 3), array(6)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
        ([IMAGE, array(4, 1, 3, 2)], {"group": 4, "dilations": [2, 1]}),
        ([IMAGE, array(6, 4, 3, 3)], {"pads": [0, 1, 2, 1]}),
        ([IMAGE, array(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ([IMAGE, array(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
        ([SERIES, array(6, 2, 3)], {"group": 2, "pads": [1, 1]}),
        ([VOLUME, array(3, 2, 2, 2, 2)], {}),
        ([SERIES, array(3, 4, 1)], {}),
    ],
    "ConvTranspose": [
        ([IMAGE, array(4, 3, 2, 2), array(3)], {"strides": [2, 2]}),
        ([IMAGE, array(4, 3, 3, 3)], {"pads": [1, 1, 1, 1], "output_padding": [1, 1],
                                      "strides": [2, 2]}),
        ([IMAGE, array(4, 1, 3, 3)], {"group": 4, "pads": [0, 1, 1, 0]}),
        ([SERIES, array(4, 2, 3)], {"strides": [2]}),
    ],
    "CumSum": [([X, np.array(1)], {}), ([X, ints(-1)], {})],
    "DepthToSpace": [([IMAGE], {"blocksize": 2}), ([IMAGE], {"blocksize": 2, "mode": "CRD"})],
    "Einsum": [([X, X], {"equation": "bij,bkj->bik"})],
    "Elu": [([X], {}), ([X], {"alpha": 0.5})],
    "Expand": [([Given((1, 4)), ints(1, 3, 4)], {}), ([X, ints(2, 1, 1, 1)], {})],
    "Flatten": [
        ([X], {}), ([X], {"axis": 2}), ([X], {"axis": -1}), ([X], {"axis": 3}), ([X], {"axis": 0}),
    ],
    "GRU": [
        ([Given((5, 3), axis=1), array(1, 12, 3), array(1, 12, 4), array(1, 24)],
         {"hidden_size": 4, "linear_before_reset": 1}, 2),
        ([Given((5, 3), axis=1), array(2, 12, 3), array(2, 12, 4)],
         {"hidden_size": 4, "linear_before_reset": 1, "direction": "bidirectional"}, 2),
    ],
    "Gather": [
        ([X, np.array(2)], {"axis": 1}), ([X, ints(0, 2, -1)], {"axis": 2}),
        ([X, ints(1, 2)], {"axis": 1}), ([X, ints(0, 1, 2, 0).reshape(2, 2)], {"axis": 1}),
        ([array(4, 5), IDS], {}), ([array(4), IDS], {}), ([array(2, 4, 3), IDS], {"axis": 1}),
    ],
    "GatherElements": [([X, Given((3, 4), "ids")], {"axis": 2})],
    "Gelu": [([X], {}), ([X], {"approximate": "tanh"})],
    "Gemm": [
        ([Given((4,)), array(4, 3), array(3)], {}),
        ([Given((4,)), array(3, 4)], {"transB": 1, "alpha": 0.5}),
        ([Given((4,)), array(3, 4), array(1, 3)], {"transB": 1, "beta": 2.0}),
        ([Given((4,)), array(4, 3), array(1)], {}),
        ([Given((4,)), Given((5,)), ], {"transA": 1}),
    ],
    "GlobalAveragePool": [([IMAGE], {}), ([SERIES], {})],
    "GlobalMaxPool": [([IMAGE], {}), ([SERIES], {})],
    "GroupNormalization": [([IMAGE, array(4), array(4, seed=2)], {"num_groups": 2})],
    "HardSigmoid": [([X], {}), ([X], {"alpha": 0.3, "beta": 0.6})],
    "InstanceNormalization": [([IMAGE, array(4), array(4, seed=2)], {"epsilon": 0.1})],
    "LSTM": [
        ([Given((5, 3), axis=1), array(1, 16, 3), array(1, 16, 4), array(1, 32)],
         {"hidden_size": 4}, 3),
        ([Given((5, 3), axis=1), array(2, 16, 3), array(2, 16, 4)],
         {"hidden_size": 4, "direction": "bidirectional"}, 3),
        ([Given((5, 3), axis=1), array(1, 16, 3), array(1, 16, 4)],
         {"hidden_size": 4, "direction": "reverse"}, 3),
        ([Given((5, 3), axis=1), array(1, 16, 3), array(1, 16, 4), array(1, 32), None,
          Given((1, 4), axis=1), Given((1, 4), axis=1)], {"hidden_size": 4}, 3),
    ],
    "LayerNormalization": [
        ([X, array(4), array(4, seed=2)], {}), ([X, array(3, 4)], {"axis": 1, "epsilon": 0.1}),
    ],
    "LeakyRelu": [([X], {}), ([X], {"alpha": 0.2})],
    "LogSoftmax": [([X], {}), ([X], {"axis": 1})],
    "LpNormalization": [([X], {}), ([X], {"p": 1, "axis": 1})],
    "MatMul": [
        ([X, array(4, 5)], {}), ([Given((4,)), array(4, 5)], {}), ([X, Given((4, 2))], {}),
        ([array(5, 3), X], {}), ([X, array(4)], {}), ([X, array(1, 4, 2)], {}),
    ],
    "MaxPool": [
        ([IMAGE], {"kernel_shape": [2, 3]}),
        ([IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ([IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}),
        ([IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ([IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
        ([SERIES], {"kernel_shape": [2], "auto_pad": "SAME_UPPER"}),
    ],
    "Mod": [([IDS, np.array(3)], {}), ([X, array(1)], {"fmod": 1})],
    "OneHot": [
        ([IDS, np.array(5), np.array([0, 1], np.float32)], {}),
        ([IDS, ints(4), np.array([2, 5])], {"axis": 1}),
    ],
    "PRelu": [([IMAGE, array(4, 1, 1)], {}), ([X, array(1)], {})],
    "Pad": [
        ([X, ints(0, 1, 0, 0, 0, 2)], {}), ([X, ints(0, 0, -1, 0, 0, 2), np.float32(3)], {}),
        ([X, ints(1, 2), None, ints(2)], {}), ([X, ints(0, 1, 1, 0, 1, 0)], {"mode": "reflect"}),
        ([IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
        ([IMAGE, ints(0, 0, 0, 2, 0, 0, 0, 1)], {"mode": "wrap"}),
        ([Given((4,)), ints(0, 2, 0, 1)], {"mode": "reflect"}),
    ],
    "Reshape": [
        ([X, ints(0, -1)], {}), ([X, ints(-1, 12)], {}), ([X, ints(0, 2, 6)], {}),
    ],
    "Resize": [
        ([IMAGE, None, array(4, low=1) * 0 + np.float32([1, 1, 2, 2])], {}),
        ([IMAGE, None, np.float32([1, 1, 2, 3])],
         {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ([IMAGE, None, np.float32([1, 1, 0.5, 1.7])], {}),
        ([IMAGE, None, np.float32([1, 1, 2, 2])], {"mode": "linear"}),
        ([IMAGE, None, np.float32([2, 2])], {"mode": "linear", "axes": [2, 3]}),
        ([IMAGE, None, np.float32([1, 1, 2, 2])],
         {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        ([IMAGE, None, np.float32([1, 1, 2, 2])], {"mode": "cubic"}),
        ([IMAGE, None, np.float32([1, 1, 3, 2])],
         {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ],
    "Selu": [([X], {})],
    "Shrink": [([X], {"lambd": 0.3, "bias": 0.1})],
    "Slice": [
        ([X, ints(1), ints(3), ints(1)], {}), ([X, ints(0), ints(2**63 - 1), ints(2), ints(2)], {}),
        ([X, ints(-1), ints(-(2**63)), ints(2), ints(-1)], {}),
        ([X, ints(0, -3), ints(2, -1), ints(1, -1)], {}),
    ],
    "Softmax": [([X], {}), ([X], {"axis": 1})],
    "SpaceToDepth": [([Given((3, 4, 6))], {"blocksize": 2})],
    "Split": [
        ([X, ints(1, 3)], {"axis": 2}, 2), ([X], {"axis": -1, "num_outputs": 2}, 2),
        ([X], {"axis": 1, "num_outputs": 2}, 2),
    ],
    "Squeeze": [([Given((1, 4, 1)), ints(1)], {}), ([Given((1, 4, 1)), ints(-1, 1)], {})],
    "Swish": [([X], {"alpha": 1.5})],
    "ThresholdedRelu": [([X], {"alpha": 0.3})],
    "Tile": [([X, ints(1, 2, 3)], {})],
    "Transpose": [([X], {"perm": [0, 2, 1]}), ([Given((4,))], {})],
    "Trilu": [([X], {}), ([X, np.array(1)], {"upper": 0})],
    "Unsqueeze": [([X, ints(1)], {}), ([X, ints(-1, 2)], {})],
    "Where": [([BOOL, X, X], {}), ([BOOL, X, np.float32(2)], {})],
}  # fmt: skip

OPSETS = {"Swish": 24}


def test_every_operator_of_the_table_has_cases():
    assert CASES.keys() == OPERATORS.keys()


@pytest.mark.parametrize("operator", sorted(CASES))
def test_it_computes_what_onnx_runtime_computes(operator):
    for operands, attributes, *outputs in CASES[operator]:
        opset = OPSETS.get(operator, 21)
        model = model_of(operator, operands, attributes, *(outputs or [1]), opset=opset)
        own, wanted = both(model, values_of(operands, rows=4))
        for mine, theirs in zip(own, wanted, strict=True):
            assert mine.shape == theirs.shape, (operands, attributes)
            assert mine.dtype == theirs.dtype, (operands, attributes)
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=str(attributes))
