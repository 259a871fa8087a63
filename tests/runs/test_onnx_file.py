"""A run's ONNX file: haq export --format onnx, haq verify, and the same from Python."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import haq
from haq.cli.main import main
from haq.datasets import load
from haq.errors import DataError, HaqError, TargetError
from haq.runs import folder as results
from haq.runs import verify as verifying
from haq.runs.job import parse_job
from haq.runs.onnx_summary import summarise
from haq.runs.run import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "mine"
    job = parse_job(
        model="digits_cnn", episodes=1, float_epochs=3, val_images=120, train_images=200,
        final_epochs=1, budgets=["avg_weight_bits=4"], agent="uniform", threads=1,
    )  # fmt: skip
    folder.mkdir()
    run(job, folder)
    return folder


@pytest.fixture(scope="module")
def exported(finished):
    path = finished.parent / "model.onnx"
    haq.export_onnx(finished, path)
    return path


def haq_command(monkeypatch, *arguments):
    """Return the exit code of ``haq`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_a_file_runs_in_plain_onnx_runtime_with_the_accuracy_of_the_run(finished, exported):
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    test = load("digits").test
    images, labels = test.batch(torch.arange(len(test)))
    answers = session.run(["logits"], {"images": images.numpy()})[0].argmax(1)
    promised = results.read_json(finished / "summary.json")["final_test_accuracy"]
    assert abs((answers == labels.numpy()).mean() - promised) <= 1 / len(test)


def test_the_command_says_what_the_file_is_worth_and_keeps_it_with_the_run(
    monkeypatch, capsys, finished
):
    assert haq_command(
        monkeypatch, "export", finished, "--format", "onnx", "--out", "new/model.onnx"
    ) == 0  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "layers run in 4 QLinearConv, 1 QGemm" in said
    assert "of the float network's" in said and "of quantize_static's" in said
    kept = results.read_json(finished / "onnx.json")
    assert kept["top1_agreement"] > 0.99
    assert abs(kept["onnxruntime_test_accuracy"] - kept["torch_test_accuracy"]) < 0.01
    assert kept["bytes"] == onnx.load("new/model.onnx").ByteSize()
    assert all(kept["latency"][name]["value"] > 0 for name in ("this", "fp32", "quantize_static"))
    assert kept["provenance"]["versions"]["onnxruntime"] == onnxruntime.__version__


def test_verify_says_that_the_integers_are_exact(monkeypatch, capsys, finished, exported):
    assert haq_command(monkeypatch, "verify", exported, "--data", "digits", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"] == {"QLinearConv": 4, "QGemm": 1}
    assert found["equal_images"] == found["simulated_images"] == 100
    assert found["test_accuracy"] == pytest.approx(found["promised_test_accuracy"], abs=0.003)


def test_metadata_says_how_to_feed_the_file_and_where_it_comes_from(finished, exported):
    _, metadata = verifying.read(exported)
    summary = results.read_json(finished / "summary.json")
    assert metadata["mean"] == summary["images"]["mean"]
    assert metadata["std"] == summary["images"]["std"]
    assert metadata["model"] == "digits_cnn" and metadata["data"] == "digits"
    assert {name: list(bits) for name, bits in metadata["policy"].items()} == {
        layer["name"]: [layer["weight_bits"], layer["act_bits"]] for layer in summary["layers"]
    }


def test_a_file_says_nothing_of_the_machine_that_wrote_it(finished, exported):
    text = exported.read_bytes()
    assert str(finished.parent).encode() not in text
    assert b"/site-packages/" not in text and b"Traceback" not in text


def test_a_module_of_the_users_own(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    mine = haq.search(
        model, load("digits"), episodes=1, agent="uniform", budgets=["avg_weight_bits=5"],
        train_images=64, val_images=64, final_epochs=0, pins={}, out="mine",
    )  # fmt: skip
    file = haq.export_onnx(mine, "mine.onnx")
    assert summarise(mine, file)["kernels"] == {"QGemm": 2}
    with pytest.raises(HaqError, match="module of its caller's own"):
        haq.export_onnx(mine.folder, "again.onnx")
    again = haq.export_onnx(mine.folder, "again.onnx", model=model)
    assert again.SerializeToString() == file.SerializeToString()


@pytest.mark.parametrize(
    "name, sentence",
    [("model.pt", "the name of an ONNX file ends in .onnx"), ("dir.onnx", "is a folder")],
)
def test_a_file_of_another_name_is_not_written(finished, tmp_path, name, sentence):
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(HaqError, match=sentence):
        haq.export_onnx(finished, tmp_path / name)
    assert not (tmp_path / "model.pt").exists()


def damaged(exported, change):
    file = onnx.load(exported)
    change(file)
    onnx.save(file, "damaged.onnx")
    return "damaged.onnx"


def test_what_is_no_file_of_ours_is_refused(exported, tmp_path):
    with pytest.raises(HaqError, match=r"missing.onnx cannot be read: No such file"):
        verifying.read("missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(HaqError, match=r"text.onnx (is not an ONNX file|was not written by haq)"):
        verifying.read("text.onnx")
    with pytest.raises(HaqError, match="was not written by haq export"):
        verifying.read(damaged(exported, lambda file: file.ClearField("metadata_props")))


def test_a_file_that_claims_other_bits_is_refused(exported):
    def claim_float(file):
        metadata = json.loads(file.metadata_props[0].value)
        metadata["policy"]["conv2"] = [32, 32]
        file.metadata_props[0].value = json.dumps(metadata)

    with pytest.raises(TargetError, match="layer 'conv2' at fp32 should run in a float kernel"):
        verifying.verify(damaged(exported, claim_float))


def test_a_file_whose_graph_is_broken_is_refused(exported):
    with pytest.raises(HaqError, match="not valid ONNX"):
        verifying.verify(damaged(exported, lambda file: file.graph.node.pop()))


def test_images_of_another_size_are_refused(exported):
    other = load("digits")
    bigger = torch.zeros(20, 1, 9, 9), torch.arange(20) % 10
    with pytest.raises(DataError, match="the file takes images of 1x8x8; .* has 1x9x9"):
        verifying.verify(exported, haq_data(bigger))
    assert other.shape == (1, 8, 8)


def haq_data(pair):
    from haq.datasets import from_splits

    return from_splits([pair, pair, pair])


def test_verify_without_data_uses_random_numbers(exported):
    found = verifying.verify(exported)
    assert found["equal_images"] == 100
    assert "test_accuracy" not in found
    assert np.isfinite(found["largest_difference"])
