"""``haq distill``: a student's weights in a file, or one sentence and nothing."""

import sys

import pytest
import torch

from haq.cli.main import main
from haq.models import build
from haq.models.weights import load_weights, save_weights


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    save_weights(build("digits_cnn"), tmp_path / "t.safetensors")
    yield
    torch.set_num_threads(threads)


def distill(monkeypatch, *more, student="digits_cnn"):
    arguments = ["--teacher", "digits_cnn", "--teacher-weights", "t.safetensors", "--student",
                 student, "--out", "s.safetensors", "--epochs", "1", *more]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["haq", "distill", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_a_student_learns_and_the_file_is_its_network(monkeypatch, capsys, tmp_path):
    before = (tmp_path / "t.safetensors").read_bytes()
    assert distill(monkeypatch, "--distill", "kd:0.9+hint:1+taps:relu4") == 0
    assert "weights in s.safetensors" in capsys.readouterr().out
    student = build("digits_cnn")
    load_weights(student, tmp_path / "s.safetensors")
    assert int(student.bn1.num_batches_tracked) == 9  # steps of an epoch
    assert (tmp_path / "t.safetensors").read_bytes() == before
    assert not (tmp_path / "s.part").exists()


@pytest.mark.parametrize(
    "more, student, sentence",
    [
        (["--distill", "none"], "digits_cnn", "without a teacher that is haq train"),
        (["--distill", "hint:1"], "digits_mlp", "have no resolution in common"),
        (
            ["--distill", "hint:1+taps:relu1=relu2"],
            "digits_cnn",
            "16x8x8 in the student",
        ),
        (["--distill", "hint:1+taps:relu9"], "digits_cnn", "unknown tap 'relu9'"),
        (["--distill", "kd:0.9+route:a.pt,b.pt"], "digits_cnn", "a.pt"),
        (["--distill", "kd:much"], "digits_cnn", "kd:much: write a number"),
        (["--student-weights", "nowhere.pt"], "digits_cnn", "nowhere.pt"),
        (["--out", "nowhere/s.safetensors"], "digits_cnn", "there is no folder nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused_first(
    monkeypatch, capsys, tmp_path, more, student, sentence
):
    assert distill(monkeypatch, *more, student=student) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.safetensors"]
