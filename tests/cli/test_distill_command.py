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


def train(monkeypatch, *more, epochs=4):
    arguments = ["--model", "digits_mlp", "--out", "w.safetensors", "--epochs", str(epochs)]
    monkeypatch.setattr(sys, "argv", ["haq", "train", *arguments, "--lr", "0.05", *more])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_the_states_of_a_training_are_a_route(monkeypatch, capsys, tmp_path):
    assert train(monkeypatch, "--keep-states", "states") == 0
    names = [f"epoch-{number}.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == names
    networks = [build("digits_mlp") for _ in range(4)]
    for network, name in zip(networks, [*(f"states/{name}" for name in names), "w.safetensors"],
                             strict=True):  # fmt: skip
        load_weights(network, tmp_path / name)
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in networks]
    away = [float((weight - weights[-1]).detach().norm()) for weight in weights]
    assert away[0] > away[1] > away[2] > away[3] == 0
    teacher = ["--teacher", "digits_mlp", "--teacher-weights", "w.safetensors"]
    route = ["--distill", "kd:0.9+route:states"]
    assert distill(monkeypatch, *teacher, *route, "--epochs", "4", student="digits_mlp") == 0
    assert distill(monkeypatch, *teacher, *route, "--epochs", "3", student="digits_mlp") == 2
    assert "3 states and the teacher do not go into 3 epochs" in capsys.readouterr().err
    assert train(monkeypatch, "--keep-states", "states") == 2
    assert "it holds other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "folder, sentence",
    [("t.safetensors", "it is a file; name a folder"), ("no/where", "there is no folder no")],
)
def test_a_folder_of_states_that_cannot_be_is_refused(
    monkeypatch, capsys, tmp_path, folder, sentence
):
    assert train(monkeypatch, "--keep-states", folder) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_route_of_an_empty_folder_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "states").mkdir()
    assert distill(monkeypatch, "--distill", "kd:0.9+route:states") == 2
    assert "the folder holds no .safetensors" in capsys.readouterr().err
