"""A run's network as a file to take away: haq export, and the same from Python."""

import json
import shutil
import sys
from importlib.metadata import version

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import haq
from haq.allocation.policy import Bits, read_policy
from haq.cli.main import main
from haq.datasets import load
from haq.errors import CheckpointError, RunError
from haq.formats.checkpoint import about, check_savable
from haq.models import build
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize
from haq.quantization.integer_forward import compute_exactly
from haq.runs import folder as results
from haq.runs.export import export_checkpoint
from haq.runs.handover import check_export
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.training.scoring import score


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "mine"
    job = parse_job(
        model="digits_cnn", episodes=2, float_epochs=2, val_images=120, train_images=200,
        final_epochs=1, budgets=["avg_weight_bits=5.3"], agent="ddpg",
        evaluation="finetune", reward="metric",
    )  # fmt: skip
    folder.mkdir()
    run(job, folder)
    return folder


def haq_command(monkeypatch, *arguments):
    """Return the exit code of ``haq`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def by_hand(folder):
    """Return the network of a run, from its files."""
    model = build("digits_cnn").to(memory_format=torch.channels_last)
    graph = trace(model, torch.zeros(1, 1, 8, 8))
    clips = load_clips(folder / "clips.safetensors")
    network = quantize(graph, read_policy(folder / "policy.json"), clips)
    load_weights(network, folder / "weights.safetensors")
    compute_exactly(network)
    return network


# The checkpoint


def test_a_checkpoint_is_the_run_s_network_to_the_last_bit(finished, monkeypatch, capsys):
    asked = ["export", finished, "--format", "safetensors", "--out", "out/model.safetensors"]
    assert haq_command(monkeypatch, *asked) == 0
    assert capsys.readouterr().out.startswith("out/model.safetensors: ")
    images, _ = load("digits").test.batch(torch.arange(300))
    loaded = haq.load("out/model.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images), by_hand(finished)(images))


def test_a_checkpoint_has_the_accuracy_of_the_summary(finished):
    content = haq.export_checkpoint(finished, "model.safetensors")
    summary = results.read_json(finished / "summary.json")
    measured = score(haq.load("model.safetensors"), load("digits").test).accuracy
    assert measured == summary["final_test_accuracy"] == content.accuracy["final_test_accuracy"]


def test_a_checkpoint_says_where_it_comes_from(finished):
    haq.export_checkpoint(finished, "model.safetensors")
    content, data = about("model.safetensors"), load("digits")
    assert (content.model, content.shape, content.classes) == ("digits_cnn", (1, 8, 8), 10)
    assert (content.data, content.mean, content.std) == ("digits", data.mean, data.std)
    assert content.versions["torch"] == version("torch")
    policy = {row.name: Bits(row.weight_bits, row.act_bits) for row in content.layers}
    assert policy == read_policy(finished / "policy.json")


def test_exporting_draws_no_random_numbers(finished):
    before = torch.random.get_rng_state()
    export_checkpoint(finished, "model.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.norm(self.stem(x))))))


def test_a_module_of_ones_own_is_exported_from_python(tmp_path):
    model, inputs = Detector().eval(), torch.randn(8, 3, 8, 8)
    found = haq.search(model, inputs, evaluate=lambda network: 0.5, out=tmp_path / "own",
                       episodes=1, budgets=["avg_weight_bits=8"])  # fmt: skip
    haq.export_checkpoint(found, "one.safetensors")
    haq.export_checkpoint(tmp_path / "own", "two.safetensors", model=Detector())
    for name in ("one", "two"):
        loaded = haq.load(f"{name}.safetensors", model=Detector())
        with torch.no_grad():
            assert torch.equal(loaded(inputs), found.model(inputs))
    with pytest.raises(RunError, match="a module of its caller's own .Detector.: give model="):
        haq.export_checkpoint(tmp_path / "own", "three.safetensors")
    with pytest.raises(CheckpointError, match="it holds a network of 'Detector'"):
        haq.load("one.safetensors")


# The file for TensorRT


def test_a_file_for_tensorrt_has_int8_codes_around_zero_and_says_what_that_costs(
    finished, monkeypatch, capsys
):
    assert (
        haq_command(monkeypatch, "export", finished, "--format", "tensorrt", "--out", "t.onnx") == 0
    )
    assert "without negative values 8 bits are 7 in TensorRT" in capsys.readouterr().out
    file = onnx.load("t.onnx")
    kinds = {one.data_type for one in file.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds and onnx.TensorProto.UINT8 not in kinds
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = onnxruntime.InferenceSession("t.onnx", providers=["CPUExecutionProvider"])
    answers = network.run(None, {network.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        expected = by_hand(finished)(images)
    assert (answers.argmax(1) == expected.argmax(1).numpy()).mean() >= 0.9
    about = json.loads(next(e.value for e in file.metadata_props if e.key == "haq"))
    assert about["runtime"] == "tensorrt"


# What is refused


@pytest.mark.parametrize("asked, message", [
    (["--format", "safetensor", "--out", "m.safetensors"], "did you mean 'safetensors'"),
    (["--format", "safetensors", "--out", "model.pth"], "the name must end in .safetensors"),
    (["--out", "model.safetensors"], "Missing option '--format'"),
])  # fmt: skip
def test_what_cannot_be_exported_so(finished, asked, message, monkeypatch, capsys, tmp_path):
    assert haq_command(monkeypatch, "export", finished, *asked) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_finished_is_not_exported(finished, monkeypatch, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "half")
    asked = ["export", "half", "--format", "safetensors", "--out", "model.safetensors"]
    summary = results.read_json(finished / "summary.json")
    results.write_json(tmp_path / "half" / "summary.json", summary | {"state": "interrupted"})
    assert haq_command(monkeypatch, *asked) == 2
    assert "run half is not finished (interrupted): haq search --resume" in capsys.readouterr().err
    (tmp_path / "half" / "summary.json").unlink()
    assert haq_command(monkeypatch, *asked) == 2
    assert "run half has no finished episode yet" in capsys.readouterr().err
    assert haq_command(monkeypatch, "export", "none", *asked[2:]) == 2
    assert "no run at 'none'" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


# What is found out before a search


class Own(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.register_buffer("count", torch.ones(6, dtype=dtype))

    def forward(self, x):
        return self.fc(x * self.count)


def test_a_network_that_can_be_exported_gives_its_template():
    sample = torch.randn(2, 6)
    exported = check_export(trace(Own(torch.int64).eval(), sample), sample)
    assert [node.op_type for node in exported.model.graph.node].count("layer") == 1


def test_what_a_checkpoint_cannot_keep_is_said_at_once():
    sample = torch.randn(2, 6)
    graph = trace(Own(torch.float32).eval(), sample)
    graph.traced.get_buffer("count").fill_(float("nan"))
    with pytest.raises(CheckpointError, match="count has values that are not finite numbers"):
        check_savable(graph, (6,))
