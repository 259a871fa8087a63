"""What is shown, under encodings that cannot hold all of it."""

import os
import subprocess
import sys

import pytest

from haq.cli.terminal.run import bits_in_signs

CODE = "import sys; from haq.cli.main import main; sys.argv[0] = 'haq'; main()"


def haq(folder, encoding, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=folder, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodings")
    (folder / "netz.py").write_text(
        "from torch import nn\n"
        "def netz():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(),\n"
        "                         nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))\n",
        encoding="utf-8",
    )
    asked = ["search", "--model", "netz:netz", "--float-epochs", "1", "--episodes", "1",
             "--budget", "avg_weight_bits=7.5", "--agent", "random", "--train-images", "64",
             "--val-images", "64", "--threads", "1", "--final-epochs", "0"]  # fmt: skip
    ended = haq(folder, "utf-8", *asked, "--out", "größe-雪")
    assert ended.returncode == 0, ended.stderr.decode()
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_a_run_is_shown_in_any_encoding(folder, encoding):
    ended = haq(folder, encoding, "show", "größe-雪", PYTHONUTF8="0", LC_ALL="C.UTF-8")
    assert ended.returncode == 0 and not ended.stderr
    text = ended.stdout.decode(encoding)
    assert "weights" in text and "float network: validation" in text
    assert ("█" in text) == encoding.startswith("utf")
    assert ("größe" in text) == (encoding != "ascii")
    assert ("雪" in text) == encoding.startswith("utf")
    assert encoding.startswith("utf") or text.split("weights ", 1)[1].split()[0].isdigit()


def test_the_help_is_shown_in_ascii(folder):
    for arguments in (["--help"], ["search", "--help"], ["serve", "--help"]):
        ended = haq(folder, "ascii", *arguments)
        assert ended.returncode == 0 and ended.stdout.isascii()


def test_nothing_is_coloured_where_nobody_looks(folder):
    ended = haq(folder, "utf-8", "show", "größe-雪", TERM="xterm-256color")
    assert b"\x1b" not in ended.stdout


def test_progress_without_a_terminal_has_no_control_codes(folder):
    asked = ["train", "--model", "digits_mlp", "--epochs", "2", "--out", "w.safetensors"]
    ended = haq(folder, "utf-8", *asked, "--threads", "1")
    lines = ended.stderr.decode().splitlines()
    assert lines[0].startswith("train 1/") and "done in" in lines[-1]
    assert b"\x1b" not in ended.stderr and b"\r" not in ended.stderr
    assert len(lines) <= 12


def test_bits_are_drawn_as_blocks_or_written_as_digits(monkeypatch):
    class Ascii:
        encoding = "ascii"

    assert bits_in_signs([2, 3, 8, 32]) == "▂▃█*"
    monkeypatch.setattr("sys.stdout", Ascii())
    assert bits_in_signs([2, 3, 8, 32]) == "238*"
