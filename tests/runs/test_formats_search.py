"""Searches among number formats: groups of weights, float and dynamic activations."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import haq
from haq.allocation.policy import CODEBOOK, Bits
from haq.cli.main import app
from haq.errors import HaqError
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.reports.report import report_html
from haq.runs.job import parse_job
from haq.runs.onnx_summary import _float_file
from haq.runs.restored import restored
from haq.runs.rounding import held_zeros
from haq.runs.verify import verify


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.wide = nn.Linear(64, 96)
        self.out = nn.Linear(96, 5)

    def forward(self, x):
        return self.out(functional.gelu(self.wide(self.words(x))).mean(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    model, inputs = Words().eval(), torch.randint(50, (64, 6))
    folder = tmp_path_factory.mktemp("runs") / "words"
    run = haq.search(
        model, inputs, budgets=["avg_weight_bits=4"], agent="ilp", out=folder,
        schemes=["weight-only", "dynamic"], groups=[32, 0],
    )  # fmt: skip
    return model, inputs, run


def test_a_search_chooses_among_formats_and_keeps_its_budget(run):
    _, _, found = run
    assert all(bits.act == 32 for bits in found.policy.values())
    assert set(found.policy["words"].row()[2:]) <= {32} and not found.policy["words"].dynamic
    assert found.summary["cost"]["avg_weight_bits"] <= 4


def test_its_file_answers_as_its_network(run, tmp_path):
    _, inputs, found = run
    haq.export_onnx(found, tmp_path / "words.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "words.onnx")
    answers = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        expected = found.model(inputs).numpy()
    assert np.abs(answers - expected).max() < 2e-2 * np.abs(expected).max()


def test_its_report_and_resumption_know_its_formats(run):
    _, _, found = run
    rows = {row["name"]: row for row in found.summary["layers"]}
    for name, bits in found.policy.items():
        assert (rows[name].get("block", 0), rows[name].get("dynamic", "")) == (
            bits.block, bits.dynamic
        )  # fmt: skip
    from haq.reports.record import read_run

    assert read_run(found.folder).policy == found.policy


@pytest.mark.parametrize(
    "options, message",
    [
        (["--groups", "32"], "groups of 32 weights go with the schemes weight-only and dynamic"),
        (["--scheme", "codebook", "--groups", "32"], "go with the schemes weight-only and dynamic"),
        (["--scheme", "weight-only", "--groups", "48"], "groups of 48: give 32, 64, 128"),
        (["--scheme", "weight-only", "--groups", "a"], "write sizes like 32,128"),
        (["--scheme", "float"], "static, weight-only, dynamic, dynamic-tensor or codebook"),
    ],
)
def test_the_command_line_refuses_formats_that_do_not_go_together(options, message):
    result = CliRunner().invoke(app, ["search", *options])
    said = " ".join(str(result.exception or result.output).split())
    assert result.exit_code != 0 and message in said


def test_a_target_without_such_kernels_is_refused():
    model, inputs = Words().eval(), torch.randint(50, (64, 6))
    with pytest.raises(HaqError, match="layer 'wide' .*"):
        haq.search(
            model, inputs, target="bismo-edge", budgets=["latency=50%w8a8"], agent="ilp",
            schemes=["weight-only"], groups=[32],
        )  # fmt: skip


def test_a_job_keeps_its_formats():
    job = parse_job(schemes=("weight-only",), groups=(32, 128))
    assert type(job).model_validate_json(job.model_dump_json()) == job
    assert Bits(4, 32, 128) in job.formats.offered(_layer())


def _layer():
    from haq.network.layers import Layer

    return Layer("fc", "linear", c_in=64, c_out=8, weights=512)


# --- codebooks ---------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 16, 3)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x)))
        return self.out(functional.relu(self.mix(x)).mean((2, 3)))


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 4


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "books"
    splits = [images(64, 0), images(32, 1), images(32, 2)]
    return haq.search(
        Small().eval(), splits, budgets=["size=1kB"], agent="ilp", schemes=["codebook"],
        final_epochs=1, out=folder,
    )  # fmt: skip


def test_a_search_over_codebooks_keeps_its_budget(books):
    assert all(bits.is_book for bits in books.policy.values())
    assert books.summary["cost"]["size"] <= 1000
    for name, bits in books.policy.items():
        assert len(books.model.get_submodule(name).weight.unique()) <= 2**bits.weight


def test_codebooks_come_back_from_checkpoint_file_and_report(books, tmp_path):
    inputs = images(16, 3)[0]
    with torch.no_grad():
        expected = books.model(inputs)
    haq.export_checkpoint(books, tmp_path / "books.safetensors")
    haq.pack(tmp_path / "books.safetensors", tmp_path / "books.haqz")
    haq.unpack(tmp_path / "books.haqz", tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(
            haq.load(tmp_path / "again.safetensors", model=Small())(inputs), expected
        )
    haq.export_onnx(books, tmp_path / "books.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "books.onnx")
    answers = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    assert np.abs(answers - expected.numpy()).max() < 1e-4 * expected.abs().max()
    assert "(codebook)" in report_html(books.folder, model=Small())
    shown = CliRunner().invoke(app, ["show", str(books.folder)]).output
    assert f" {books.policy['mix'].weight}k " in shown


def test_a_target_without_codebooks_is_refused():
    with pytest.raises(HaqError, match="can run it at no pair"):
        haq.search(
            Small().eval(), images(16, 0)[0], target="bismo-edge", budgets=["latency=50%w8a8"],
            agent="ilp", schemes=["codebook"],
        )  # fmt: skip


def test_codebooks_of_a_pruned_module_of_ones_own_go_into_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.mix.weight[:, ::2] = 0
    inputs = images(64, 0)[0]
    found = haq.search(
        model, inputs, budgets=["size=1kB"], agent="ilp", schemes=["codebook"], rounding_steps=0,
        out=tmp_path / "run",
    )  # fmt: skip
    haq.export_checkpoint(found, tmp_path / "q.safetensors")
    with torch.no_grad():
        given = haq.load(tmp_path / "q.safetensors", model=Small())(inputs)
        assert torch.equal(given, found.model(inputs))


def test_codebooks_of_a_pruned_network_need_nobody_to_hold_their_zeros():
    model = Small().eval()
    with torch.no_grad():
        model.mix.weight[:, ::2] = 0
        model.out.weight[:, ::2] = 0
    inputs = images(8, 0)[0]
    graph = trace(model, inputs)
    clips = calibrate(graph, [inputs], "max")
    policy = {layer.name: Bits(3, 32, CODEBOOK) for layer in graph.layers} | {"out": Bits(3, 32)}
    network = quantize(graph, policy, clips)
    held = held_zeros(network, graph)
    assert [*held.shares] == ["out"] and network.get_submodule("mix").zero
    assert (
        held_zeros(quantize(graph, policy | {"out": Bits(3, 32, CODEBOOK)}, clips), graph) is None
    )


def test_a_file_of_such_formats_is_verified_from_the_file_alone(run, tmp_path):
    _, _, found = run
    haq.export_onnx(found, tmp_path / "words.onnx")
    result = verify(tmp_path / "words.onnx")
    assert result["simulated_images"] > 0 and not result["all_integer"]


def test_the_float_network_beside_a_dynamic_one_rounds_nothing(run, tmp_path):
    model, inputs, _ = run
    found = haq.search(
        model, inputs, budgets=["avg_weight_bits=6"], agent="ilp", out=tmp_path / "dynamic",
        schemes=["dynamic"],
    )  # fmt: skip
    assert any(bits.dynamic for bits in found.policy.values())
    file = _float_file(found, restored(found.folder, model), model)
    session = onnxruntime.InferenceSession(file.SerializeToString())
    answers = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        assert np.abs(answers - model(inputs).numpy()).max() < 1e-5
