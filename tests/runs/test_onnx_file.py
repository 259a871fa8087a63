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
from haq.errors import DataError, HaqError, ModelError, TargetError
from haq.formats.onnx.comparison import Comparison
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.saturation import saturating
from haq.runs import folder as results
from haq.runs import verify as verifying
from haq.runs.export import check_answers
from haq.runs.job import parse_job
from haq.runs.onnx_summary import summarise
from haq.runs.restored import restored
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
        evaluation="finetune", reward="metric",
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
        evaluation="finetune", reward="metric",
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
    (tmp_path / "job.json").write_text('{"model": "digits_cnn"}')  # onnx reads JSON, by the name
    with pytest.raises(HaqError, match="job.json is not an ONNX file") as refused:
        verifying.read("job.json")
    assert "\n" not in str(refused.value)
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


# Right on every CPU


def test_export_says_which_layers_pay_for_being_exact_everywhere(monkeypatch, capsys, finished):
    asked = ("export", finished, "--format", "onnx", "--no-measure", "--out")
    assert haq_command(monkeypatch, *asked, "any.onnx") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "conv1, linear: 8-bit weights with 8-bit activations are stored as uint8" in said
    assert "twice as long where there is VNNI" in said
    assert haq_command(monkeypatch, *asked, "vnni.onnx", "--cpu", "vnni") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "conv1, linear: right on CPUs with VNNI only" in said
    assert "session.x64quantprecision" in said
    files = {name: verifying.read(f"{name}.onnx") for name in ("any", "vnni")}
    assert {name: metadata["cpu"] for name, (_, metadata) in files.items()} == {
        "any": "any", "vnni": "vnni",
    }  # fmt: skip
    assert not saturating(files["any"][0])
    assert [one.layer for one in saturating(files["vnni"][0])] == ["conv1", "linear"]


@pytest.mark.parametrize("asked, message", [
    (["--format", "onnx", "--cpu", "vnn"], "unknown cpu 'vnn'; did you mean 'vnni'"),
    (["--format", "safetensors", "--cpu", "vnni"], "--cpu vnni is for --format onnx"),
])  # fmt: skip
def test_a_cpu_that_nobody_can_mean(monkeypatch, capsys, finished, asked, message):
    assert haq_command(monkeypatch, "export", finished, *asked, "--out", "a.safetensors") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_file_that_only_claims_to_be_right_everywhere_is_refused(finished):
    haq.export_onnx(finished, "vnni.onnx", cpu="vnni")
    file = onnx.load("vnni.onnx")
    text = file.metadata_props[0].value
    file.metadata_props[0].value = text.replace('"cpu": "vnni"', '"cpu": "any"')
    onnx.save(file, "claims.onnx")
    with pytest.raises(ModelError, match="said to be right on every CPU, but the sums of layer"):
        verifying.verify("claims.onnx")


@pytest.mark.skipif(exact_kernels(), reason="the 8-bit kernels are exact on this CPU")
def test_verify_refuses_a_file_for_vnni_where_there_is_none_and_names_the_way_out(finished):
    haq.export_onnx(finished, "vnni.onnx", cpu="vnni")
    with pytest.raises(ModelError, match=r"largest difference .*, in conv1.*export the run again"):
        verifying.verify("vnni.onnx", load("digits"))


@pytest.mark.skipif(not exact_kernels(), reason="the 8-bit kernels saturate on this CPU")
def test_a_file_for_vnni_is_right_where_there_is_vnni(finished):
    haq.export_onnx(finished, "vnni.onnx", cpu="vnni")
    assert verifying.verify("vnni.onnx")["vnni_only"] == ["conv1", "linear"]


def test_a_comparison_that_fails_is_refused_whatever_the_operators():
    wrong = Comparison(images=100, exact=False, equal=60, largest=0.25, wrong=("conv2",))
    with pytest.raises(ModelError, match="for 40 of 100 images .*in conv2.; report it"):
        verifying.check_comparison("a.onnx", wrong, [])
    with pytest.raises(ModelError, match="session.x64quantprecision set to 1"):
        verifying.check_comparison("a.onnx", wrong, ["conv2"])
    few = Comparison(images=100, exact=True, equal=99, largest=1e-7, wrong=())
    with pytest.raises(ModelError, match="for 1 of 100 images"):
        verifying.check_comparison("a.onnx", few, [])
    verifying.check_comparison("a.onnx", few._replace(exact=False), [])


def test_a_file_that_does_not_answer_as_its_network_is_not_written(finished, tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = restored(finished).network

        def forward(self, x):
            return self.network(x).flip(1)

    file = haq.export_onnx(finished, tmp_path / "right.onnx")
    sample = torch.zeros(1, 1, 8, 8)
    check_answers(file, restored(finished).network, sample, "any")
    with pytest.raises(ModelError, match="ONNX Runtime does not answer as the network: the error"):
        check_answers(file, Other(), sample, "any")
