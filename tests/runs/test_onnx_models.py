"""ONNX files searched: the network, its checkpoint, and the file that it was."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import haq
from haq.errors import HaqError
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import answered, opened
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.convert import convert_to_integers
from haq.runs.handover import check_export
from haq.runs.restored import restored
from haq.runs.verify import verify


def values(*shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) / 3).astype(np.float32)


def saved(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        nodes, "mine", inputs, outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.append(onnx.StringStringEntryProto(key="author", value="somebody"))
    onnx.save(model, path)
    return model


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return the path and the model of a classifier: batch and width free, one bias added."""
    path = tmp_path_factory.mktemp("file") / "net.onnx"
    node = helper.make_node
    nodes = [
        node("Conv", ["pixels", "kernel"], ["c"], "stage/Conv.0", pads=[0, 1, 1, 1]),
        node("Add", ["c", "bias"], ["cb"], "stage/Add"),
        node("Relu", ["cb"], ["r"], "stage/Relu"),
        node("Conv", ["r", "kernel2", "bias2"], ["d"], "stage/Conv.1", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["d"], ["g"], "gate"),
        node("Mul", ["d", "g"], ["m"], "swish"),
        node("Add", ["m", "r"], ["s"], "sum"),
        node("GlobalAveragePool", ["s"], ["p"], "pool"),
        node("Shape", ["p"], ["size"], "size", end=1),
        node("Concat", ["size", "minus"], ["target"], "target", axis=0),
        node("Reshape", ["p", "target"], ["f"], "flat"),
        node("MatMul", ["f", "head"], ["h"], "head/MatMul"),
        node("Add", ["h", "shift"], ["scores"], "head/Add"),
    ]
    constants = {
        "kernel": values(8, 3, 3, 3), "bias": values(1, 8, 1, 1), "kernel2": values(8, 8, 3, 3),
        "bias2": values(8), "minus": np.array([-1]), "head": values(8, 5), "shift": values(5),
    }  # fmt: skip
    model = saved(
        path, nodes, [value("pixels", "n", 3, 8, "width")], [value("scores", "n", 5)], constants
    )
    return path, model


@pytest.fixture(scope="module")
def searched(classifier, tmp_path_factory):
    path, _ = classifier
    folder = tmp_path_factory.mktemp("runs") / "run"
    inputs = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    run = haq.search(
        f"onnx:{path}", inputs, out=folder, agent="ilp", budgets=["avg_weight_bits=6"],
        clipping="mse", rounding_steps=0,
    )  # fmt: skip
    return run, haq.export_onnx(run.folder, folder / "out.onnx"), inputs


def answers(model, feed):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def test_a_file_keeps_its_ends_and_the_names_of_its_nodes(classifier, searched):
    _, before = classifier
    _, after, _ = searched
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    names = {node.name for node in before.graph.node} - {"stage/Add", "head/Add"}  # now biases
    assert names <= {node.name for node in after.graph.node}
    assert after.graph.name == "mine"
    assert {e.key: e.value for e in after.metadata_props}["author"] == "somebody"


def test_its_layers_have_the_names_of_the_nodes_and_integer_kernels(searched):
    run, _, _ = searched
    assert list(run.policy) == ["stage/Conv.0", "stage/Conv.1", "head/MatMul"]
    kernels = verify(run.folder / "out.onnx")["kernels"]
    assert sum(kernels.values()) == 3
    assert "Conv" not in kernels


def test_the_file_answers_as_the_network_also_at_another_width(searched):
    run, file, _ = searched
    for width in (8, 12):
        x = torch.randn(20, 3, 8, width)
        [scores] = answers(file, {"pixels": x.numpy()})
        with torch.no_grad():
            wanted = run.model(x).numpy()
        assert (scores.argmax(1) == wanted.argmax(1)).mean() >= 0.95
        assert np.median(np.abs(scores - wanted)) <= 0.02 * np.ptp(wanted)


def test_the_file_is_close_to_the_one_it_was(classifier, searched):
    _, before = classifier
    _, after, inputs = searched
    feed = {"pixels": inputs.numpy()}
    [old], [new] = answers(before, feed), answers(after, feed)
    assert np.linalg.norm(new - old) <= 0.1 * np.linalg.norm(old - old.mean(0))


def test_a_run_remembers_its_file_and_shapes_and_is_restored_from_its_folder(classifier, searched):
    run, _, inputs = searched
    path, _ = classifier
    job = json.loads((run.folder / "job.json").read_text())
    assert job["model"] == f"onnx:{path},pixels=1x3x8x8"
    again = restored(run.folder).network
    with torch.no_grad():
        assert torch.equal(again(inputs), run.model(inputs))


def test_its_checkpoint_gives_the_same_answers(classifier, searched, tmp_path):
    run, _, inputs = searched
    model = haq.load_onnx(classifier[0], sample=inputs[:2])
    haq.export_checkpoint(run, tmp_path / "net.safetensors")
    loaded = haq.load(tmp_path / "net.safetensors", model=model)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), run.model(inputs))


def test_a_file_for_one_row_at_a_time_stays_one_and_is_fed_row_by_row(tmp_path):
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "shape"], ["f"], "flat"), node("Gemm", ["f", "first"], ["a"], "one"),
        node("Relu", ["a"], ["r"], "relu"), node("Gemm", ["r", "second", "bias"], ["y"], "two"),
    ]  # fmt: skip
    constants = {
        "shape": np.array([1, 6]), "first": values(6, 8), "second": values(8, 4), "bias": values(4),
    }  # fmt: skip
    path = tmp_path / "net.onnx"
    saved(path, nodes, [value("x", 1, 2, 3)], [value("y", 1, 4)], constants)
    inputs = torch.randn(7, 2, 3)
    graph = trace(haq.load_onnx(path), inputs)
    exported = check_export(graph, inputs)
    network, _ = stand_in(graph)
    convert_to_integers(network)
    file = lower(exported, network)
    assert [d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim] == [1, 2, 3]
    with torch.no_grad():
        wanted = network(inputs).numpy()
    given = answered(opened(file.SerializeToString()), inputs)
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5)


def test_a_missing_file_is_refused_before_anything_and_leaves_nothing(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(HaqError, match="gone.onnx cannot be read: No such file"):
        haq.search(f"onnx:{tmp_path}/gone.onnx", torch.randn(8, 3), out=out)
    with pytest.raises(HaqError, match="'x' cannot be read; write NAME=1x3x224x224"):
        haq.search("onnx:net.onnx,x", torch.randn(8, 3), out=out)
    assert not out.exists()


def test_a_table_that_reads_the_files_own_integers_is_exported(tmp_path):
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"], "words"),
        node("ReduceMean", ["e", "axis"], ["m"], "mean", keepdims=0),
        node("MatMul", ["m", "head"], ["scores"], "head"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "words", [value("ids", "n", 5, kind=TensorProto.INT64)],
            [value("scores", "n", 3)],
            [numpy_helper.from_array(v, n) for n, v in {
                "table": values(11, 8), "axis": np.array([1]), "head": values(8, 3),
            }.items()],
        ), opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    onnx.save(model, tmp_path / "words.onnx")
    ids = torch.randint(11, (40, 5), generator=torch.Generator().manual_seed(0))
    run = haq.search(
        f"onnx:{tmp_path / 'words.onnx'}", ids, out=tmp_path / "run", agent="ilp",
        budgets=["avg_weight_bits=6"], clipping="max", rounding_steps=0,
    )  # fmt: skip
    file = haq.export_onnx(run, tmp_path / "small.onnx")
    [scores] = answers(file, {"ids": ids.numpy()})
    with torch.no_grad():
        assert np.array_equal(scores, run.model(ids).numpy())
    assert {node.name for node in file.graph.node} >= {"words", "head"}
