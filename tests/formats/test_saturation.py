"""No sum of two products of codes leaves 16 bits: told from files alone, on any machine."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, Case
from onnx import TensorProto, helper, numpy_helper

from haq.allocation.policy import FLOAT, Bits, readers
from haq.formats.onnx.comparison import compare
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.saturation import can_saturate, exact_but_slower, saturating

saturating_cpu = pytest.mark.skipif(
    exact_kernels(), reason="the 8-bit kernels of ONNX Runtime are exact on this CPU"
)


@pytest.fixture(scope="module")
def case():
    cases = {}

    def get(name):
        if name not in cases:
            cases[name] = Case(name)
        return cases[name]

    return get


@given(st.integers(0, 255), st.integers(0, 127), st.integers(0, 255), st.integers(0, 127))
def test_no_pair_of_products_below_the_highest_codes_leaves_16_bits(top, largest, code, weight):
    if not can_saturate(top, largest):
        pair = 2 * min(code, top) * min(weight, largest)
        assert np.int16(pair) == pair


@pytest.mark.parametrize("top, largest, expected", [
    (255, 64, False), (255, 65, True), (129, 127, False), (130, 127, True), (15, 127, False),
    (255, 63, False), (127, 127, False), (255, 127, True),
])  # fmt: skip
def test_the_limit_by_hand(top, largest, expected):
    assert can_saturate(top, largest) is expected


class Reading:
    """A file's codes, by a reading of its own: it takes nothing from ``saturation``."""

    def __init__(self, file):
        self.graph = file.graph
        self.nodes = {output: node for node in file.graph.node for output in node.output}
        self.arrays = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}

    def top(self, tensor):
        node = self.nodes[tensor]
        if node.op_type == "Clip" and node.input[2] in self.arrays:
            return int(self.arrays[node.input[2]])
        return 255 if node.op_type == "QuantizeLinear" else self.top(node.input[0])

    def codes(self, tensor):
        if tensor in self.arrays:
            return self.arrays[tensor]
        node = self.nodes[tensor]
        if node.op_type == "Mul":
            left, right = (self.codes(name).astype(np.int64) for name in node.input)
            assert abs(left * right).max() <= 127
            return (left * right).astype(np.int8)
        return self.codes(node.input[0])

    def is_integer(self, node):
        source = self.nodes.get(node.input[0])
        if node.op_type not in ("Conv", "Gemm", "ConvInteger") or source is None:
            return False
        return source.op_type != "Max" and self.codes(node.input[1]).dtype.kind != "f"

    def pairs(self):
        """Return for every product of integers the highest sum of two in a kernel of int8."""
        pairs = {}
        for node in filter(self.is_integer, self.graph.node):
            codes = self.codes(node.input[1])
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            depthwise = groups == codes.shape[0] and codes.shape[1] == 1
            if codes.dtype != np.uint8 and not (depthwise and node.op_type == "Conv"):
                pairs[node.name] = 2 * self.top(node.input[0]) * int(abs(codes.astype(int)).max())
        return pairs


@pytest.mark.parametrize("name", NETWORKS)
def test_no_file_of_any_bits_leaves_16_bits(case, name):
    subject = case(name)
    for weight, act in itertools.product(range(2, 9), range(2, 9)):
        if (weight + act) % 2 and weight < 7:
            continue  # half of the pairs is enough where there is room
        file = subject.file(subject.policy(weight, act))
        sums = Reading(file).pairs()
        assert max(sums.values(), default=0) <= 32767
        assert saturating(file) == []
        slower = exact_but_slower(file)
        assert set(sums) | set(slower) >= {
            layer.name
            for layer in subject.graph.layers
            if layer.kind not in ("depthwise", "transposed")  # these add in 32 bits and in float
        }
        if weight < 8:
            assert not slower


@pytest.mark.parametrize("name", ["segmenter", "depthwise", "attention"])
def test_only_layers_of_8_bits_and_8_bits_are_stored_as_uint8(case, name):
    subject = case(name)
    policy = subject.policy(8, 7)
    reading = {layer.name for layer in subject.graph.layers if layer.reads_input}
    file = subject.file(policy)
    assert set(exact_but_slower(file)) == reading
    assert exact_but_slower(subject.file(policy, cpu="vnni")) == []
    vnni = saturating(subject.file(policy, cpu="vnni"))
    assert {one.layer for one in vnni} == reading
    assert all(one.top == 255 and one.largest > 64 for one in vnni)


def test_depthwise_layers_keep_int8_but_not_where_two_filters_read_a_channel(case):
    subject = case("depthwise")
    file = subject.file(subject.policy(8, 8))
    assert set(exact_but_slower(file)) == {"stem", "twice", "groups", "last"}
    stored = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert stored["each.weight_codes"] == TensorProto.INT8
    assert stored["twice.weight_codes"] == TensorProto.UINT8


def test_a_depthwise_head_is_no_exception(case):
    # ConvInteger has one kernel for all convolutions.
    subject = case("heads")
    assert "each" in exact_but_slower(subject.file(subject.policy(8, 8)))


def test_float_layers_cannot_saturate(case):
    subject = case("tied")
    floats = dict.fromkeys(readers(subject.graph.layers), Bits(FLOAT, FLOAT))
    file = subject.file(floats, cpu="vnni")
    assert saturating(file) == [] and exact_but_slower(file) == []


@pytest.mark.parametrize("act", range(2, 9))
def test_signed_activations_have_codes_around_the_middle_of_their_bits(case, act):
    subject = case("attention")
    file = subject.file(subject.policy(4, act))
    reading = Reading(file)
    tensor = next(node for node in file.graph.node if node.name == "query").input[0]
    while reading.nodes[tensor].op_type != "DequantizeLinear":
        tensor = reading.nodes[tensor].input[0]
    code, _, zero = reading.nodes[tensor].input
    assert reading.arrays[zero] == 2 ** (act - 1)
    if act == 8:  # a byte ends by itself where its codes do
        assert reading.nodes[code].op_type == "QuantizeLinear"
        return
    _, lowest, highest = reading.nodes[code].input
    assert (reading.arrays[lowest], reading.arrays[highest]) == (1, 2**act - 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_is_exact_on_this_cpu_whichever_it_is(case, name):
    subject = case(name)
    for weight, act in ((8, 8), (7, 8), (8, 7), (3, 8), (4, 4)):
        comparison = compare(subject.file(subject.policy(weight, act)), subject.images.numpy())
        assert comparison.right, comparison
        assert comparison.equal == comparison.images or not comparison.exact


@saturating_cpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_for_vnni_goes_wrong_here_in_the_layers_that_its_codes_name(case, name):
    subject = case(name)
    file = subject.file(subject.policy(8, 8), cpu="vnni")
    comparison = compare(file, subject.images.numpy())
    assert not comparison.right
    assert set(comparison.wrong) <= {one.layer for one in saturating(file)}


def test_files_of_others_are_read_too():
    """Weights and activations in int8, as some tools write them."""
    codes = np.array([[3, -100], [2, 5]], np.int8)
    scale, zero = np.float32(1), np.int8(0)
    arrays = {"scale": scale, "zero": zero, "codes": codes}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["y"], "product"),
        ],
        "others",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    [found] = saturating(helper.make_model(graph))
    assert found == ("product", 255, 100)
    assert isinstance(onnx.helper.make_model(graph), onnx.ModelProto)


def product(rounding, weight):
    """Return a file with one product of integers, rounded by a kind of node before it."""
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [128])
    if rounding == "DynamicQuantizeLinear":
        nodes = [
            helper.make_node(rounding, ["x"], ["code", "scale", "middle"]),
            helper.make_node("MatMulInteger", ["code", "weight", "middle"], ["y"], "one"),
        ]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "unit", "zero"], ["code"]),
            helper.make_node(
                "MatMulIntegerToFloat", ["code", "weight", "unit", "unit", "zero"], ["y"], "one",
                domain="com.microsoft",
            ),
        ]  # fmt: skip
    unit = numpy_helper.from_array(np.array(1, np.float32), "unit")
    graph = helper.make_graph(
        nodes, "product", [], [], [zero, unit, numpy_helper.from_array(weight, "weight")]
    )
    return helper.make_model(graph)


@pytest.mark.parametrize("rounding", ["DynamicQuantizeLinear", "MatMulIntegerToFloat"])
@pytest.mark.parametrize("largest, layers", [(64, []), (65, ["one"])])
def test_products_of_what_is_rounded_as_a_file_runs_are_told_too(rounding, largest, layers):
    weight = np.array([[largest, -3]], np.int8)
    assert [one.layer for one in saturating(product(rounding, weight))] == layers


def test_a_file_of_many_products_of_a_tensor_with_itself_is_read_at_once():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])
    nodes = [
        helper.make_node("Add", [f"s{n}", f"s{n}"], [f"s{n + 1}"]) for n in range(200)
    ] + [helper.make_node("MatMul", ["s200", "s200"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "deep", [x], [])
    assert saturating(helper.make_model(graph)) == []  # once 2**200 steps
