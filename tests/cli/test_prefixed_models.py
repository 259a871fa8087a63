"""Every command with networks of transformers and ONNX files, as a user gives them."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from language_models import write_language_model
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import haq
from haq.cli.main import main
from haq.models import build
from haq.models.weights import load_weights


def haq_command(*arguments):
    """Return the exit code of ``haq`` with these arguments."""
    before, sys.argv = sys.argv, ["haq", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny language model with its tokenizer and a text; an ONNX file with two inputs."""
    folder = tmp_path_factory.mktemp("prefixed")
    write_language_model(folder)

    node = helper.make_node
    nodes = [
        node("Gemm", ["left", "a"], ["from_left"], "first"),
        node("Gemm", ["right", "b"], ["from_right"], "second"),
        node("Add", ["from_left", "from_right"], ["sum"], "sum"),
        node("Relu", ["sum"], ["hidden"], "relu"),
        node("Gemm", ["hidden", "c"], ["y"], "last"),
    ]
    sizes = {"left": 6, "right": 4}
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("a", (6, 8)), ("b", (4, 8)), ("c", (8, 3)))
    ]
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in sizes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], constants,
    )  # fmt: skip
    sets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), folder / "two.onnx")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of_gpt(place):
    return ["--model", f"hf:{place / 'gpt'}", "--data", f"text:{place / 'text.txt'}",
            "--length", 6]  # fmt: skip


def test_a_language_model_is_pruned_from_its_own_weights_and_searched_again(place, capsys):
    assert haq_command(
        "prune", *of_gpt(place), "--sparsity", 0.5, "--epochs", 1, "--out", "half.safetensors",
        "--no-measure",
    ) == 0  # fmt: skip
    assert "test perplexity" in capsys.readouterr().out
    record = json.loads(open("half.json", encoding="utf-8").read())
    assert record["metric"] == "perplexity" and record["after"]["test_perplexity"] > 1
    run = haq.search(
        f"hf:{place / 'gpt'}", f"text:{place / 'text.txt'}", length=6, weights="half.safetensors",
        agent="ilp", budgets=["avg_weight_bits=7"], clipping="max", rounding_steps=0,
        calibration_images=8, out="run",
    )  # fmt: skip
    assert run.summary["state"] == "finished"


def test_a_language_model_learns_from_a_teacher_and_stays_one_of_transformers(place, capsys):
    asked = [f"hf:{place / 'gpt'}", *of_gpt(place)[2:]]
    assert haq_command(
        "distill", "--teacher", asked[0], "--student", *asked, "--epochs", 1, "--lr", 1e-9,
        "--out", "taught.safetensors",
    ) == 0  # fmt: skip
    assert "test perplexity" in capsys.readouterr().out
    taught, before = build(asked[0]), build(asked[0])
    load_weights(taught, "taught.safetensors")  # square matrices of Conv1D among them
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        pair = [model.eval()(ids).logits for model in (taught, before)]
    assert torch.allclose(*pair, atol=1e-5)


def test_weights_that_are_computed_are_not_taught(place):
    from haq.errors import HaqError
    from haq.network.graph import trace
    from haq.runs.pruning import exchanged

    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(HaqError, match="computed from other parameters"):
        exchanged(model, trace(model, torch.randn(1, 4)).traced)


@pytest.mark.parametrize("model", ["hf:{}/gpt", "onnx:{}/two.onnx"])
def test_costs_need_no_data(place, model, capsys):
    name = model.format(place)
    assert haq_command("cost", "--model", name, "--target", "bismo-edge") == 0
    assert "where the numbers come from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["prune", "--model", "digits_cnn", "--sparsity", ".5"], "without weights"),
        (["distill", "--teacher", "digits_cnn", "--student", "digits_cnn"], "--teacher-weights"),
        (["prune", "--model", "hf:{}/gpt", "--data", "text:{}/text.txt", "--metric", "cosine",
          "--sparsity", ".5"], "no labels"),
        (["prune", "--model", "hf:{}/gpt", "--data", "digits", "--sparsity", ".5"], "hf:"),
        (["cost", "--model", "hf:{}/nowhere", "--target", "bismo-edge"], "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    place, tmp_path, capsys, words, said
):
    out = [] if words[0] == "cost" else ["--out", "x.safetensors"]
    assert haq_command(*[word.format(place) for word in words], *out) == 2
    sentence = capsys.readouterr().err
    assert said in sentence and len(sentence.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())
