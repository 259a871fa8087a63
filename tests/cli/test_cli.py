"""The command line as a user meets it."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from haq.cli.main import main
from haq.models import build

GIVEN = ["--model", "digits_mlp", "--episodes", "2", "--train-images", "64", "--val-images", "64",
         "--budget", "avg_weight_bits=6"]  # fmt: skip
QUICK = [*GIVEN, "--float-epochs", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def haq(monkeypatch, *arguments):
    """Return the exit code of ``haq`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_a_search_prints_the_layers_and_where_the_run_lies(monkeypatch, capsys):
    assert haq(monkeypatch, "search", *QUICK, "--threads", "1", "--out", "mine") == 0
    printed = capsys.readouterr().out
    for word in ("fc1", "fc2", "fc3", "linear", "avg_weight_bits=6", "results/mine", "test "):
        assert word in printed
    assert haq(monkeypatch, "show", "mine") == 0
    assert capsys.readouterr().out == printed


def test_runs_are_listed_and_shown_as_json(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert haq(monkeypatch, "ls") == 0
    assert capsys.readouterr().out == "no runs in results: haq search makes one\n"
    assert haq(monkeypatch, "search", *QUICK, "--threads", "1", "--out", "mine") == 0
    capsys.readouterr()
    assert haq(monkeypatch, "ls") == 0
    printed = capsys.readouterr().out
    for word in ("mine", "finished, ", "digits_mlp, digits, avg_weight_bits=6, ", "%"):
        assert word in printed
    assert haq(monkeypatch, "ls", "--json") == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert haq(monkeypatch, "show", "mine", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"] == "results/mine"
    assert listed["final_test"] == shown["final_test_accuracy"]


def test_a_machine_on_which_haq_works(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert haq(monkeypatch, "doctor", "--json") == 0
    checks = json.loads(capsys.readouterr().out)
    assert haq(monkeypatch, "doctor") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [check["what"].split()[0] for check in checks]
    assert last.startswith("HAQ works here; ")


def test_a_machine_on_which_haq_does_not_work(monkeypatch, capsys, tmp_path):
    (tmp_path / "results").write_text("")
    assert haq(monkeypatch, "doctor") == 1
    assert "folder results must be mended" in capsys.readouterr().out


def test_a_second_run_does_not_overwrite_the_first(monkeypatch, capsys):
    assert haq(monkeypatch, "search", *QUICK, "--threads", "1", "--out", "mine") == 0
    assert haq(monkeypatch, "search", *QUICK, "--threads", "1", "--out", "mine") == 2
    assert "go on with --resume" in capsys.readouterr().err


def test_train_writes_weights_that_search_reads(monkeypatch, capsys):
    train = ["train", "--model", "digits_mlp", "--data", "digits", "--epochs", "1"]
    assert haq(monkeypatch, *train, "--threads", "1", "--out", "w.safetensors") == 0
    assert json.loads(open("w.json").read())["epochs"] == 1
    assert haq(monkeypatch, "search", *GIVEN, "--weights", "w.safetensors", "--threads", "1") == 0
    assert "run: results/digits_mlp-digits-avg_weight_bits-6-guided" in capsys.readouterr().out


def test_cost_as_json(monkeypatch, capsys):
    command = ["cost", "--model", "mobilenet_v2", "--target", "bismo-cloud", "--batch", "16"]
    assert haq(monkeypatch, *command, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert table["unit"] == "cycles"
    assert len(table["layers"]) == 53
    third = table["layers"][3]
    assert (third["name"], third["kind"]) == ("features.2.conv.0.0", "pointwise")
    assert len(third["cost"]) == len(third["energy_nj"]) == 64
    assert third["cost"]["8,8"] == 4860688
    assert third["cost"]["8,4"] == 2445504
    assert sum(layer["cost"]["8,4"] for layer in table["layers"]) == 20044617


def test_cost_as_a_table(monkeypatch, capsys):
    assert haq(monkeypatch, "cost", "--model", "digits_cnn", "--target", "bismo-edge") == 0
    assert "conv3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "resnet21", "--data", "digits"], "unknown model 'resnet21'; did you mean"),
        (["--data", "digit"], "unknown data 'digit'; did you mean 'digits'"),
        (["--data", "cifar10:nowhere"], "nowhere"),
        (["--agent", "dpg"], "unknown agent 'dpg'; did you mean 'ddpg'"),
        (["--clipping", "kll"], "unknown clipping 'kll'; did you mean 'kl'"),
        (["--target", "bismo-clod"], "unknown target 'bismo-clod'; did you mean 'bismo-cloud'"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--budget", "avg_weight_bits"], "avg_weight_bits"),
        (["--budget", "avg_weight_bits=1"], "the cheapest one needs"),
        (["--budget", "latency=5ms"], "--target"),
        (["--budget", "latency=10%fp32", "--target", "bismo-cloud"], "fp32"),
        (["--pin", "conv9=8"], "unknown layer 'conv9'"),
        (["--pin", "conv1"], "write NAME=BITS"),
        (["--act-bits", "9"], "act-bits"),
        (["--act-bits", "few"], "act-bits 'few'"),
        (["--weight-bits", "8..2"], "weight-bits 8..2"),
        (["--weight-bits", "low"], "weight-bits 'low'"),
        (["--paper", "--agent", "random"], "paper is a way to run ddpg"),
        (["--model", "resnet20"], "resnet20 takes 3x"),
        (["--model", "nowhere:make"], "nowhere"),
        (["--resume", "nowhere"], "no run at 'nowhere'"),
        (["--threads", "0"], "threads 0"),
        (["--seed", "-1"], "seed"),
        (["--episodes", "abc"], "'--episodes': Input should be a valid integer"),
        (["--episodes", "0"], "--episodes"),
        (["--pin", "conv1=²"], "write NAME=BITS"),
        (["--out", "x" * 300], "File name too long"),
        (["--model", "digits_mlp", "--weights", "w.st", "--float-epochs", "1"], "exclude each"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(monkeypatch, capsys, tmp_path, arguments, sentence):
    assert haq(monkeypatch, "search", *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("haq: ")
    assert sentence in said
    assert not list(tmp_path.glob("results/*/*"))


def test_weights_of_another_model_are_refused(monkeypatch, capsys):
    save_file(build("digits_cnn").state_dict(), "w.safetensors")
    assert haq(monkeypatch, "search", *GIVEN, "--weights", "w.safetensors") == 2
    assert "fc1.weight" in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_refused(monkeypatch, capsys):
    weights = build("digits_mlp").state_dict()
    weights["fc2.weight"][0, 0] = float("nan")
    save_file(weights, "w.safetensors")
    assert haq(monkeypatch, "search", *GIVEN, "--weights", "w.safetensors") == 2
    assert "fc2.weight" in capsys.readouterr().err


def test_a_truncated_checkpoint_is_refused(monkeypatch, capsys, tmp_path):
    save_file(build("digits_mlp").state_dict(), "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:200])
    assert haq(monkeypatch, "search", *GIVEN, "--weights", "w.safetensors") == 2
    assert "w.safetensors" in capsys.readouterr().err


def test_another_model_needs_weights(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def splits():\n"
        "    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 10\n"
        "    return (images, labels), (images, labels), (images, labels)\n"
    )
    assert haq(monkeypatch, "search", "--model", "digits_mlp", "--data", "mine:splits",
               "--budget", "avg_weight_bits=6") == 2  # fmt: skip
    assert "give --weights FILE" in capsys.readouterr().err


def test_a_model_and_data_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 8),\n"
        "                         nn.ReLU(), nn.Linear(8, 2))\n"
        "def splits():\n"
        "    images, labels = torch.rand(60, 3, 4, 4), torch.arange(60) % 2\n"
        "    return (images, labels), (images, labels), (images, labels)\n"
    )
    own = ["--model", "own:net", "--data", "own:splits", "--float-epochs", "1", "--episodes", "2"]
    assert haq(monkeypatch, "search", *own, "--budget", "size=1.2kB", "--threads", "1") == 0
    layers = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "linear" in line]
    assert layers == ["1", "3", "5"]


def test_show_before_the_first_episode(monkeypatch, capsys, tmp_path):
    (tmp_path / "results/early").mkdir(parents=True)
    (tmp_path / "results/early/job.json").write_text("{}")
    assert haq(monkeypatch, "show", "early") == 2
    assert "haq search --resume" in capsys.readouterr().err


def test_a_resumed_run_takes_no_other_options(monkeypatch, capsys):
    assert haq(monkeypatch, "search", *QUICK, "--threads", "1", "--out", "mine") == 0
    capsys.readouterr()
    assert haq(monkeypatch, "search", "--resume", "mine", "--episodes", "9", "--seed", "2") == 2
    assert "leave out --episodes, --seed" in capsys.readouterr().err
    assert haq(monkeypatch, "search", "--resume", "mine") == 0


def test_train_without_options_trains_on_the_digits(monkeypatch, capsys):
    assert haq(monkeypatch, "train", "--out", "w.safetensors", "--epochs", "1") == 0
    assert haq(monkeypatch, "train", "--out", "w.pt", "--epochs", "1") == 2
    assert "name it so" in capsys.readouterr().err


def test_a_model_that_takes_something_else(monkeypatch, capsys, tmp_path):
    (tmp_path / "pair.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def forward(self, x, y):\n"
        "        return x\n"
    )
    assert haq(monkeypatch, "search", "--model", "pair:Pair", "--float-epochs", "1") == 2
    assert "Pair takes 2 inputs (x, y), and the data have one" in capsys.readouterr().err
