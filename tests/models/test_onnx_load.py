"""ONNX files as models: what is read, what is refused and with which sentence."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import array, floats, graph_of, network_from, reference
from torch import nn

from haq.errors import ModelError
from haq.models.onnx.branches import without_branches
from haq.models.onnx.document import read
from haq.models.onnx.inputs import inputs_of, with_fixed_inputs
from haq.models.onnx.load import load_onnx
from haq.models.onnx.runtime import normalized
from haq.network.graph import trace

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IMAGE = (FLOAT, ["batch", 2, 6, "width"])


def node(kind, inputs, outputs, name="", **attributes):
    return helper.make_node(kind, inputs, outputs, name, **attributes)


def small(**changes):
    """Return a convolution, a bias that is added, a Relu, a flattening by the shape, a product."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], "first/Conv", pads=[1, 1, 1, 1]),
        node("Add", ["c", "b"], ["a"], "first/Add"),
        node("Relu", ["a"], ["r"], "relu"),
        node("GlobalAveragePool", ["r"], ["p"], "pool"),
        node("Shape", ["p"], ["s"], "shape", end=1),
        node("Concat", ["s", "rest"], ["t"], "sizes", axis=0),
        node("Reshape", ["p", "t"], ["f"], "flat"),
        node("Gemm", ["f", "v", "d"], ["y"], "last.Gemm"),
    ]
    constants = {
        "w": array(4, 2, 3, 3), "b": array(1, 4, 1, 1), "rest": np.array([-1]),
        "v": array(4, 3, seed=5), "d": array(3),
    }  # fmt: skip
    inputs = {"x": IMAGE}
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["batch", 3])]
    return graph_of(nodes, inputs, outputs, constants | changes)


@pytest.fixture
def saved(tmp_path):
    def save(model, name="net.onnx"):
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


def test_a_file_answers_as_in_onnx_runtime_for_any_number_of_rows(saved):
    model = small()
    network = load_onnx(saved(model), {"x": (1, 2, 6, 5)})
    x = torch.randn(7, 2, 6, 5)
    [wanted] = reference(model, {"x": x.numpy()}, ["y"])
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_layers_are_called_as_their_nodes_and_biases_that_are_added_are_theirs(saved):
    network = load_onnx(saved(small()), {"x": (1, 2, 6, 5)})
    assert torch.equal(network.get_parameter("first/Conv.bias"), torch.tensor(array(4)))
    graph = trace(network, torch.randn(2, 2, 6, 5))
    assert [layer.name for layer in graph.layers] == ["first/Conv", "last.Gemm"]
    assert not graph.float_parameters


def test_every_result_of_a_node_may_be_read(saved):
    nodes = [
        node("Split", ["x"], ["one", "two"], "halves", axis=1, num_outputs=2),
        node("Mul", ["one", "two"], ["product"], "gate"),
        node("Gemm", ["product", "v"], ["y"], "last"),
    ]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["batch", 2])]
    model = graph_of(nodes, {"x": (FLOAT, ["batch", 6])}, outputs, {"v": array(3, 2)})
    x = torch.randn(4, 6)
    [wanted] = reference(model, {"x": x.numpy()}, ["y"])
    with torch.no_grad():
        np.testing.assert_allclose(load_onnx(saved(model))(x).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_network_of_torch_comes_back_from_its_own_file(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5), nn.LayerNorm(5),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    path = tmp_path / "net.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(model, (x,), path, dynamic_shapes=({0: batch},), verbose=False)
    network = load_onnx(path, sample=x)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_that_is_written_into_a_reshape_may_have_any_size(saved):
    nodes = [
        node("Reshape", ["x", "shape"], ["f"]), node("MatMul", ["f", "w"], ["y"], "product"),
    ]  # fmt: skip
    model = graph_of(
        nodes, {"x": (FLOAT, [1, 2, 3])}, ["y"], {"shape": np.array([1, 6]), "w": array(6, 4)}
    )
    network = load_onnx(saved(model))
    x = torch.randn(5, 2, 3)
    rows = [reference(model, {"x": row[None].numpy()}, ["y"])[0] for row in x]
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), np.concatenate(rows), rtol=1e-4, atol=1e-6)


def test_rows_along_another_axis_come_first_in_the_network():
    model = graph_of(
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("Relu", ["x"], ["y"])],
        {"x": (FLOAT, [2, "batch", 3])}, ["t", "y"],
    )  # fmt: skip
    network, inputs = network_from(model)
    first, second = network(torch.randn(5, 2, 3)).values()
    assert inputs.given[0].axis == 1
    assert first.shape == second.shape == (5, 2, 3)


def with_branch(condition):
    """Return a file whose If takes a product with a or b."""
    branches = {
        f"{kind}_branch": helper.make_graph(
            [node("Mul", ["x", f"{kind}_factor"], ["product"], kind)], kind, [],
            [floats("product")],
            [numpy_helper.from_array(np.float32(factor), f"{kind}_factor")],
        )
        for kind, factor in (("then", 2), ("else", 3))
    }  # fmt: skip
    return graph_of(
        [*condition, node("If", ["c"], ["y"], "choice", **branches)],
        {"x": (FLOAT, ["batch", 4]), "rate": (INT64, [])}, ["y"],
        {"limit": np.array(8000), "four": np.array([4])},
    )  # fmt: skip


BY_RATE = [node("Greater", ["rate", "limit"], ["c"])]


@pytest.mark.parametrize("rate, factor", [(16000, 2), (8000, 3)])
def test_a_fixed_input_decides_which_branch_is_taken(saved, rate, factor):
    network = load_onnx(saved(with_branch(BY_RATE)), values={"rate": rate})
    x = torch.randn(3, 4)
    assert torch.equal(network(x), factor * x)


def test_a_shape_decides_which_branch_is_taken():
    size = node("Shape", ["x"], ["s"], start=1)
    model = with_branch([size, node("Equal", ["s", "four"], ["c"])])
    inputs = inputs_of("file", model, {}, {"rate": 0})
    flat = without_branches("file", model, inputs)
    assert [n.name for n in flat.graph.node] == ["then"]


def test_a_branch_on_values_is_refused(saved):
    sums = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["c"], to=9)]
    with pytest.raises(ModelError, match="branches on values .* node 'choice' depends on input"):
        load_onnx(saved(with_branch(sums)), values={"rate": 0})


REFUSED_INPUTS = {
    "no input 'z'; its inputs: x": ({"z": (1, 2)}, {}),
    "has no input 'z'; its inputs: x$": ({}, {"z": 1}),
    "sizes that are open \\(width\\); give them, as in x=1x2x6xN": ({}, {}),
    "takes batchx2x6xwidth, not 1x3x6x5": ({"x": (1, 3, 6, 5)}, {}),
    "takes batchx2x6xwidth, not 1x2x6$": ({"x": (1, 2, 6)}, {}),
    "all its inputs are fixed": ({"x": (1, 2, 6, 5)}, {"x": 0.0}),
}


@pytest.mark.parametrize("sentence", REFUSED_INPUTS)
def test_shapes_and_values_that_do_not_go_with_the_file_are_refused(saved, sentence):
    shapes, values = REFUSED_INPUTS[sentence]
    with pytest.raises(ModelError, match=sentence):
        load_onnx(saved(small()), shapes, values)


def test_an_input_without_a_batch_needs_a_value(saved):
    path = saved(with_branch(BY_RATE))
    with pytest.raises(ModelError, match="input 'rate' has no axis for the batch; fix its value"):
        load_onnx(path)
    with pytest.raises(ModelError, match="its input 'rate' takes int64, not 0.5"):
        load_onnx(path, values={"rate": 0.5})


def test_an_unknown_operator_is_refused_by_name_and_place(saved):
    model = graph_of(
        [node("Det", ["x"], ["y"], "somewhere/Det")], {"x": (FLOAT, ["batch", 3, 3])}, ["y"]
    )
    with pytest.raises(ModelError, match="net.onnx: operator Det in node 'somewhere/Det' is not"):
        load_onnx(saved(model))


def external(location, length=16, offset=0):
    model = small()
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return model.SerializeToString()


def resized(dims):
    model = small()
    model.graph.initializer[0].dims[:] = dims
    return model.SerializeToString()


def backwards():
    model = small()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def quantized():
    model = small()
    model.graph.node[2].op_type = "QuantizeLinear"
    return model.SerializeToString()


def half():
    model = small(w=array(4, 2, 3, 3).astype(np.float16))
    return model.SerializeToString()


def foreign():
    model = small()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[2].domain = "com.example"
    return model.SerializeToString()


def unknown():
    model = small()
    model.graph.node[2].op_type = "FooBar"
    return model.SerializeToString()


def newer(version):
    model = small()
    model.opset_import[0].version = version
    return model.SerializeToString()


def silent():
    model = small()
    del model.graph.output[:]
    return model.SerializeToString()


HOSTILE = {
    "is not an ONNX file, or was cut off": lambda: small().SerializeToString()[:-100],
    "is not an ONNX file": lambda: b"not a model at all, but a text of some length",
    "has no operators": lambda: b"",
    "is a zip archive, as PyTorch": lambda: b"PK\x03\x04" + bytes(100),
    "is a GGUF file, not an ONNX file": lambda: b"GGUF" + bytes(100),
    "is already quantized \\(QuantizeLinear in node 'relu'\\)": quantized,
    "has weights of float16 \\('w'\\): give the file in float32": half,
    "operator of another library: com.example.Relu in node 'relu'": foreign,
    "node 'last.Gemm' \\(Gemm\\) reads 'f', which neither an input nor a node": backwards,
    "operator FooBar in node 'relu' is none of ONNX's opset 21": unknown,
    "is of opset 99, and onnx .* knows 1 to": lambda: newer(99),
    "is of opset 0, and onnx": lambda: newer(0),
    "names no output": silent,
    "'w' is said to be of 999999x999999": lambda: resized([999999, 999999]),
    "'w' needs 144 values and the file has 72": lambda: resized([4, 2, 6, 3]),
    "are said to lie in '/etc/passwd', outside": lambda: external("/etc/passwd"),
    "are said to lie in '../weights', outside": lambda: external("../weights"),
    "are missing: put 'weights.bin' beside": lambda: external("weights.bin"),
    "'here.bin' ends before the data of 'd'": lambda: external("here.bin", 12, offset=90),
}


@pytest.mark.parametrize("sentence", HOSTILE)
def test_a_file_that_is_none_is_refused_before_anything_is_computed(tmp_path, sentence):
    path = tmp_path / "net.onnx"
    path.write_bytes(HOSTILE[sentence]())
    (tmp_path / "here.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match=sentence) as refusal:
        load_onnx(path, {"x": (1, 2, 6, 5)})
    assert "\n" not in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here.bin", "net.onnx"]


def test_files_and_folders_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ModelError, match="gone.onnx cannot be read: No such file"):
        read(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is a folder; give an ONNX file"):
        read(tmp_path)


def test_external_data_beside_the_file_are_read(tmp_path):
    model = small()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
    [tensor] = [t for t in read(tmp_path / "net.onnx").graph.initializer if t.name == "w"]
    assert np.array_equal(numpy_helper.to_array(tensor), array(4, 2, 3, 3))


def test_a_crash_of_onnx_runtime_is_a_sentence(monkeypatch, tmp_path):
    crash = tmp_path / "crash.py"
    crash.write_text("import os\nos.abort()\n")
    monkeypatch.setattr("haq.models.onnx.runtime._CHILD", crash)
    with pytest.raises(ModelError, match="ONNX Runtime crashes on it"):
        normalized(small())


def test_what_onnx_runtime_does_not_load_is_a_sentence():
    inputs = inputs_of("file", small(), {"x": (1, 2, 6, 5)}, {})
    wrong = with_fixed_inputs(small(v=array(5, 3)), inputs, 2)
    with pytest.raises(ModelError, match="ONNX Runtime does not take it: .*") as refusal:
        normalized(wrong)
    assert "\n" not in str(refusal.value)


def test_gradients_reach_every_parameter(tmp_path):
    onnx.save(small(), tmp_path / "net.onnx")
    network = load_onnx(tmp_path / "net.onnx", {"x": (2, 2, 6, 5)})
    output = network(torch.from_numpy(array(2, 2, 6, 5)))
    (output if isinstance(output, torch.Tensor) else output[0]).square().sum().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
