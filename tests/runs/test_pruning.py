"""``haq prune``, and what every later command makes of the file it wrote."""

import json
import sys
from pathlib import Path

import pytest
import torch

import haq
from haq.allocation.sparse import sparse_bytes
from haq.cli.main import main
from haq.errors import HaqError
from haq.models import build
from haq.models.weights import load_weights, save_weights
from haq.runs.export import export_checkpoint
from haq.runs.folder import read_json
from haq.runs.job import parse_job
from haq.runs.restored import restored
from haq.runs.run import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_weights(build("digits_cnn"), "float.safetensors")
    yield
    torch.set_num_threads(threads)


def prune(monkeypatch, *more, weights="float.safetensors", out="pruned.safetensors"):
    arguments = [
        "prune",
        "--weights",
        weights,
        "--out",
        out,
        "--epochs",
        "1",
        "--no-measure",
        *more,
    ]
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


QUICK = {"agent": "ilp", "val_images": 50, "calibration_images": 64, "rounding_steps": 2}


def test_a_pruned_network_is_searched_resumed_and_exported(monkeypatch, tmp_path, capsys):
    assert prune(monkeypatch, "--filters", "0.5") == 0
    assert prune(monkeypatch, "--sparsity", "0.6", weights="pruned.safetensors",
                 out="both.safetensors") == 0  # fmt: skip
    figures = json.loads(Path("both.json").read_text())
    assert figures["after"]["weights"] == 8 * 9 + 8 * 16 * 9 + 16 * 9 + 16 * 32 + 32 * 10
    zeros = figures["after"]["weights"] - figures["after"]["non_zeros"]
    assert zeros == round(0.6 * 8 * 16 * 9) + round(0.6 * 16 * 32)  # ends and depthwise stay dense
    assert "weights 2200 -> " in capsys.readouterr().out
    job = parse_job(weights="both.safetensors", budgets=("avg_weight_bits=4",), final_epochs=1,
                    finalists=0, **QUICK)  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    summary = run(job, folder)
    Path("both.safetensors").unlink()  # the run needs it no more
    assert [one["transform"] for one in read_json(folder / "job.json")["transforms"]] == [
        "filters", "sparsity",
    ]  # fmt: skip
    assert {row["name"]: row["params"] for row in summary["layers"]}["conv2"] == 8 * 16 * 9 + 16
    finished = restored(str(folder))
    held = finished.network.get_submodule("conv2").weight
    assert int((held == 0).sum()) >= round(
        0.6 * held.numel()
    )  # through rounding, an epoch and integers
    content = export_checkpoint(str(folder), "q.safetensors")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(haq.load("q.safetensors")(x), finished.network(x))
    rows = {row["name"]: row for row in summary["layers"]}
    assert rows["conv2"]["zeros"] == round(0.6 * held.numel())
    assert "conv2" in content.codings and content.codings["conv2"][0] != "dense"
    saved = sum(entry[1] for entry in content.codings.values())
    counted = sum(
        sparse_bytes(rows[name]["params"] - outputs, rows[name]["zeros"], rows[name]["weight_bits"])
        for name, outputs in (("conv2", 16), ("conv4", 32)) if name in content.codings
    )  # fmt: skip
    # Zeros that rounding made are not counted beforehand: the file is no larger than was said.
    assert saved <= counted + 12 * len(content.codings)
    cost = summary["cost"]["size"]
    assert Path("q.safetensors").stat().st_size < cost + 5000


def test_a_factorised_network_is_one_that_is_read_again(monkeypatch):
    more = ["--factorise", "tucker", "--energy", "0.6", "--distill", "kd:0.9+hint:1+taps:bn3"]
    assert prune(monkeypatch, *more) == 0
    figures = json.loads(Path("pruned.json").read_text())
    assert figures["after"]["weights"] < figures["before"]["weights"]
    assert prune(monkeypatch, "--filters", "0.5", weights="pruned.safetensors",
                 out="again.safetensors") == 0  # fmt: skip


@pytest.mark.parametrize(
    "more, sentence",
    [
        ([], "give one of --filters, --sparsity and --factorise"),
        (["--filters", "0.5", "--sparsity", "0.5"], "give one of --filters"),
        (["--filters", "search"], "--filters search chooses within --budget: give both of them"),
        (["--filters", "0.5", "--budget", "size=2kB"], "give both of them, or neither"),
        (["--filters", "search", "--budget", "size=200B"], "no policy fits size <= 200 bytes"),
        (["--filters", "search", "--budget", "avg_weight_bits=3"], "does not go with channels"),
        (["--filters", "search", "--budget", "size=90kB"], "no layer should lose channels"),
        (["--filters", "0"], "--filters 0: give a share above 0"),
        (["--sparsity", "1"], "--sparsity 1.0: give a share above 0 and below 1"),
        (["--filters", "0.001"], "keeping 0.001 of the 16 channels of layer 'conv1' would empty"),
        (["--filters", "0.5", "--layer", "conv3"], "'conv3' cannot be removed: it is depthwise"),
        (["--filters", "0.5", "--layer", "conv9"], "unknown layer 'conv9'"),
        (["--filters", "0.5", "--layer", "conv1=much"], "--layer conv1=much: write NAME"),
        (["--sparsity", "0.99", "--layer", "conv1=0.999"], "leave layer 'conv1' without weights"),
        (["--factorise", "tuker"], "unknown factorisation 'tuker'; did you mean 'tucker'"),
        (["--factorise", "two3x3"], "no layer becomes smaller as two3x3: none is a 5 x 5"),
        (["--factorise", "linear", "--layer", "linear=9"], "a rank of at most 8 saves some"),
        (["--factorise", "separable", "--layer", "conv4"], "'conv4' cannot become separable"),
        (["--filters", "1"], "no channel would be removed; give a smaller share"),
        (["--filters", "0.5", "--layer", "conv1=1"], "no channel would be removed"),
        (["--sparsity", "0.00001"], "no weight would become zero; give a larger sparsity"),
        (["--sparsity", "0.5", "--layer", "conv2=-1"], "layer 'conv2': a sparsity is the share"),
        (["--sparsity", "0.5", "--layer", "conv2=nan"], "and below 1, not nan"),
        (["--sparsity", "0.5", "--layer", "conv2", "--layer", "conv2=0.7"], "conv2 was named befo"),
        (["--sparsity", "0.5", "--energy", "0.5"], "--energy is of --factorise, not of --sparsity"),
        (["--sparsity", "0.5", "--residual"], "--residual is of --filters, not of --sparsity"),
        (["--sparsity", "0.5", "--channel-multiple", "4"], "--channel-multiple is of --filters"),
        (["--filters", "0.5", "--channel-multiple", "64"], "no channel would be removed"),
        (["--filters", "0.5", "--channel-multiple", "0"], "'--channel-multiple': Input should be"),
        (["--filters", "0.5", "--scope", "network"], "--scope is of --sparsity, not of --filters"),
        (["--filters", "0.5", "--target", "bismo-edge"], "--target is of --filters search"),
        (["--filters", "search", "--budget", "size=2kB", "--residual"], "chooses in all layers"),
        (["--filters", "search", "--budget", "size=2kB", "--layer", "conv1"], "--layer is of"),
        (["--sparsity", "0.5", "--epochs", "0", "--lr", "0.1"], "--lr is of training, and --ep"),
        (["--filters", "0.5", "--epochs", "0", "--distill", "kd"], "--distill is of training"),
        (["--sparsity", "0.5", "--scope", "network", "--layer", "conv2=0.5"], "a --layer has its"),
        (["--factorise", "tucker", "--energy", "0.5", "--layer", "conv2=4,4"], "every --layer has"),
        (["--factorise", "depthwise", "--energy", "0.5"], "chooses ranks, and depthwise has none"),
        (["--factorise", "tucker", "--energy", "2"], "--energy 2.0: give a share above 0 and at"),
        (["--sparsity", "0.5", "--scope", "all"], "--scope all: give layer or network"),
        (["--filters", "0.5", "--distill", "hint:1+taps:conv1"], "add regressor for a convolution"),
    ],
)
def test_what_cannot_be_pruned_is_refused_and_leaves_nothing(monkeypatch, capsys, more, sentence):
    assert prune(monkeypatch, *more) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["float.safetensors"]


def test_channels_that_stay_are_multiples_where_that_is_asked_for(monkeypatch):
    assert prune(monkeypatch, "--filters", "0.6", "--channel-multiple", "16") == 0
    [record] = json.loads(Path("pruned.json").read_text())["transforms"]
    left = {name: len(places) for name, places in record["keep"].items()}
    assert left == {"conv1": 16, "conv2": 16, "conv4": 32}


def test_channels_and_bits_are_chosen_together(monkeypatch, capsys):
    assert prune(monkeypatch, "--filters", "search", "--budget", "size=2.5kB") == 0
    said = capsys.readouterr().err
    assert "of its channels: that alone changes the answers by" in said
    record = json.loads(Path("pruned.json").read_text())["transforms"][0]
    assert record["transform"] == "filters"
    widths = {name: len(places) for name, places in record["keep"].items()}
    whole = {"conv1": 16, "conv2": 32, "conv4": 64}
    assert widths and all(widths[name] / whole[name] in (0.75, 0.5, 0.25) for name in widths)


def test_pruning_goes_on_after_an_interruption_to_the_same_weights(monkeypatch, capsys):
    from haq.training import train as training

    whole = ["--sparsity", "0.7", "--epochs", "2"]
    assert prune(monkeypatch, *whole, out="whole.safetensors") == 0
    step = training._step

    def interrupted(state, split, index, minimized, moment, constraint):
        if moment.done == 20:
            raise KeyboardInterrupt
        return step(state, split, index, minimized, moment, constraint)

    monkeypatch.setattr(training, "_step", interrupted)
    assert prune(monkeypatch, *whole, out="part.safetensors") == 130
    monkeypatch.setattr(training, "_step", step)
    assert prune(monkeypatch, *whole, out="part.safetensors") == 0
    one, other = build("digits_cnn"), build("digits_cnn")
    load_weights(one, "whole.safetensors"), load_weights(other, "part.safetensors")
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_file_whose_transforms_do_not_suit_is_refused(tmp_path):
    bad = {"haq_transforms": '[{"transform": "x"}]'}
    save_weights(build("digits_cnn"), "bad.safetensors", bad)
    with pytest.raises(HaqError, match="the transforms of bad.safetensors: unknown transform 'x'"):
        run(parse_job(weights="bad.safetensors", **QUICK), tmp_path / "run")
