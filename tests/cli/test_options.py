"""Options that mean something, and those that would not."""

import sys

import pytest
import torch

from haq.cli.ignored import check_used, unbudgeted
from haq.cli.main import main
from haq.runs.job import JobError, parse_job


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def haq(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--batch", "8"], "--batch 8 is of a target, and there is none"),
        (["--agent", "ilp", "--lr", "0.1"], "--lr is of fine-tuning, and nothing is fine-tuned"),
        (["--agent", "ilp", "--train-images", "64"], "--train-images is of fine-tuning"),
        (["--agent", "ilp", "--distill", "none"], "--distill is of fine-tuning"),
        (["--evaluation", "finetune", "--rounding-steps", "9"], "--rounding-steps 9: the rounding"),
        (
            ["--agent", "ilp", "--final-epochs", "1", "--train-images", "64"],
            "--train-images 64 is of the epoch of an episode or a finalist",
        ),
        (
            ["--scheme", "codebook", "--calibration-images", "64"],
            "--calibration-images 64 is of activations that are rounded once",
        ),
        (["--tokenizer", "somewhere"], "--tokenizer somewhere is of text, and digits has none"),
        (["--length", "64"], "--length 64 is of text, and digits has none"),
        (["--agent", "ilp", "--workers", "4"], "--workers 4 evaluate policies side by side"),
        (["--act-bits", "4", "--scheme", "weight-only"], "--act-bits 4: with --scheme weight-only"),
        (["--pin", "conv1=32"], "--pin conv1=32: a pin is 2 to 8 bits; leave the layer out"),
        (["--pin", "conv1=1"], "--pin conv1=1: a pin is 2 to 8 bits"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(monkeypatch, capsys, arguments, sentence):
    assert haq(monkeypatch, "search", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert haq(monkeypatch, "sweep", "--budgets", "size=1kB", *arguments[:0], "--batch", "8") == 2


@pytest.mark.parametrize(
    "fields, given",
    [
        ({"agent": "ilp", "finalists": 2}, ["lr"]),
        ({"agent": "ilp", "final_epochs": 1}, ["lr", "distill"]),
        ({"agent": "guided"}, ["lr"]),
        ({"agent": "ddpg", "evaluation": "finetune"}, ["lr", "distill"]),
        ({"agent": "ddpg", "evaluation": "cheap", "rounding_steps": 9}, ["rounding_steps"]),
        ({"agent": "ddpg", "target": "bismo-edge", "batch": 2}, ["batch"]),
        ({"agent": "ilp", "lr": 0.5}, []),  # a default is no option that was given
    ],
)
def test_an_option_that_changes_something_is_not(fields, given):
    check_used(dict.fromkeys(given, True), parse_job(**fields))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["verify", "nowhere.onnx", "--data", "cifar10:nowhere"], "there is no file nowhere.onnx"),
        (["verify", "there.onnx", "--size", "8"], "--size 8 is of the images of --data"),
        (["export", "run", "--format", "safetensors", "--out", "f", "--no-measure"],
         "--measure is for --format onnx"),
        (["export", "run", "--format", "safetensors", "--out", "f", "--cpu", "vnni"],
         "--cpu vnni is for --format onnx"),
        (["train", "--out", "f.safetensors", "--length", "9"], "--length 9 is of text"),
        (["train", "--out", "f.safetensors", "--epochs", "1", "--keep-states", "states"],
         "--epochs 1 has no other"),
        (["profile", "--model", "digits_mlp", "--out", "f.json", "--length", "9"],
         "--length 9 is of text, and digits_mlp takes none"),
        (["profile", "--model", "digits_mlp", "--out", "f.json", "--tokenizer", "t"],
         "--tokenizer t reads --data, and none are given"),
        (["profile", "--model", "digits_mlp", "--out", "f.json", "--data", "digits", "--length",
          "9"], "--length 9 is of text, and digits has none"),
        (["kit", "run", "nowhere", "--python", "py"], "--python py is of the machine of --ssh"),
        (["cost", "--model", "resnet21", "--target", "bismo-edge", "--json", "--csv"], "give one"),
    ],
)  # fmt: skip
def test_other_commands_refuse_what_would_change_nothing(monkeypatch, capsys, tmp_path, arguments,
                                                         sentence):  # fmt: skip
    (tmp_path / "there.onnx").touch()
    assert haq(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_the_paper_learns_from_labels_alone(monkeypatch, capsys):
    check_used({"paper": True, "distill": "none"}, parse_job(paper=True, distill="none"))
    assert haq(monkeypatch, "search", "--paper", "--distill", "kd:0.9") == 2
    assert "leave --distill out" in capsys.readouterr().err


def test_a_job_of_any_kind_is_refused_what_would_change_nothing():
    with pytest.raises(JobError, match="leave --distill out"):
        parse_job(paper=True, distill="kd:0.9")
    with pytest.raises(JobError, match="--batch 8 is of a target, and there is none"):
        parse_job(batch=8)
    with pytest.raises(JobError, match="--length 9 is of text, and cifar10:there has none"):
        parse_job(data="cifar10:there", length=9)
    assert parse_job(data="text:file", length=9).length == 9


def test_a_target_without_a_budget_on_it_is_said():
    size, latency = "size=9kB", "latency=50%w8a8"
    assert "no budget is on bismo-edge" in unbudgeted(
        parse_job(target="bismo-edge", budgets=[size])
    )
    assert not unbudgeted(parse_job(target="bismo-edge", budgets=[size, latency]))
    assert not unbudgeted(parse_job(budgets=[size]))


@pytest.mark.parametrize(
    "out, place",
    [("p225", "results/p225"), ("./p225", "p225"), ("runs/p225", "runs/p225")],
)
def test_a_name_lies_below_results_and_a_path_where_it_says(monkeypatch, capsys, tmp_path, out,
                                                            place):  # fmt: skip
    asked = ["search", "--model", "digits_mlp", "--float-epochs", "1", "--agent", "random",
             "--episodes", "1", "--budget", "avg_weight_bits=6", "--train-images", "64",
             "--val-images", "64", "--final-epochs", "0", "--threads", "1"]  # fmt: skip
    assert haq(monkeypatch, *asked, "--out", out) == 0
    assert (tmp_path / place / "summary.json").exists()
    assert f"run: {place}" in capsys.readouterr().out
    assert haq(monkeypatch, "show", out) == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_images_have_the_channels_of_the_first_convolution(monkeypatch, capsys, tmp_path,
                                                               channels):  # fmt: skip
    (tmp_path / "grey.py").write_text(
        "from torch import nn\n"
        "def net(classes=10):\n"
        f"    return nn.Sequential(nn.Conv2d({channels}, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
    )
    monkeypatch.delitem(sys.modules, "grey", raising=False)
    asked = ["cost", "--model", "grey:net", "--target", "bismo-edge", "--size", "8"]
    assert haq(monkeypatch, *asked) == 0
    assert "conv" in capsys.readouterr().out
    assert haq(monkeypatch, *asked, "--channels", str(channels)) == 0


def test_channels_of_a_network_without_convolutions_are_given(monkeypatch, capsys, tmp_path):
    (tmp_path / "flat.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 2))\n"
    )
    asked = ["cost", "--model", "flat:net", "--target", "bismo-edge", "--size", "8"]
    assert haq(monkeypatch, *asked, "--channels", "1") == 0
    assert haq(monkeypatch, "cost", "--model", "resnet20", "--target", "bismo-edge",
               "--channels", "1") == 2  # fmt: skip
    assert "--channels 1: resnet20 takes images of 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "resnet21"], "did you mean 'resnet20'"),
        (["--model", "mobilnet_v2"], "did you mean 'mobilenet_v2'"),
        (["--target", "bismo-cloudy"], "did you mean 'bismo-cloud'"),
    ],
)
def test_the_nearest_name_is_meant(monkeypatch, capsys, arguments, sentence):
    asked = {"--model": "digits_cnn", "--target": "bismo-edge"} | {arguments[0]: arguments[1]}
    assert haq(monkeypatch, "cost", *(text for pair in asked.items() for text in pair)) == 2
    assert sentence in capsys.readouterr().err
