"""Ctrl-C at any moment says what to do next."""

import sys

import pytest

from haq.cli.main import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def haq(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def module(tmp_path, monkeypatch, name, when):
    """Write a module whose data are there at once, or whose reading is interrupted."""
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from haq.datasets import TensorSplit\n"
        "class Split(TensorSplit):\n"
        "    batches = 0\n"
        "    def batch(self, index, generator=None):\n"
        "        Split.batches += 1\n"
        f"        if Split.batches == {when}:\n"
        "            raise KeyboardInterrupt\n"
        "        return super().batch(index, generator)\n"
        "def splits():\n"
        f"    if not {when}:\n"
        "        raise KeyboardInterrupt\n"
        "    images = torch.rand(40, 1, 8, 8)\n"
        "    return tuple(Split(images, torch.arange(40) % 10, (0.0,), (1.0,)) for _ in range(3))\n"
    )
    monkeypatch.delitem(sys.modules, name, raising=False)
    return ["--model", "digits_mlp", "--data", f"{name}:splits"]


def test_before_anything_was_written(monkeypatch, capsys, tmp_path):
    own = module(tmp_path, monkeypatch, "stops_at_once", 0)
    asked = ["search", *own, "--float-epochs", "1", "--budget", "avg_weight_bits=6"]
    assert haq(monkeypatch, *asked) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "haq: interrupted; give the same command again to start over"
    assert not list(tmp_path.glob("results/*"))


def test_while_the_float_network_is_trained(monkeypatch, capsys, tmp_path):
    own = module(tmp_path, monkeypatch, "stops_later", 7)
    asked = ["search", *own, "--float-epochs", "9", "--budget", "avg_weight_bits=6", "--out", "my"]
    assert haq(monkeypatch, *asked) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "haq: interrupted; go on with: haq search --resume results/my"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--out", "w.safetensors"],
        ["sweep", "--float-epochs", "1", "--budgets", "avg_weight_bits=6"],
    ],
)
def test_in_any_other_command(monkeypatch, capsys, tmp_path, command):
    own = module(tmp_path, monkeypatch, "stops_too", 0)
    assert haq(monkeypatch, *command, *own) == 130
    assert "give the same command again" in capsys.readouterr().err


def test_a_training_says_that_it_goes_on(monkeypatch, capsys, tmp_path):
    own = module(tmp_path, monkeypatch, "stops_in_epoch_five", 10)
    assert haq(monkeypatch, "train", *own, "--epochs", "9", "--out", "w.safetensors") == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "haq: interrupted; the same command goes on from the last epoch"
    assert (tmp_path / "w.part").exists()
