"""haq pack, haq unpack and haq diff as a user types them."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from haq.cli.main import app, main

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
import update_files as files

KNOWN = files.weights(shapes={"conv": (6, 4, 3, 3), "fc": (5, 6)})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("old", "new", "other")):
        data = files.quantized(files.moved(KNOWN, 0.01, number), {"conv": 4, "fc": 5 + number})
        Path(f"{name}.safetensors").write_bytes(data)


def run(*words):
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_difference_there_and_back():
    text = run("pack", "new.safetensors", "--base", "old.safetensors", "--out", "up.haqz")
    assert "new: network" in text and "from" in text
    text = run("unpack", "up.haqz", "--base", "old.safetensors", "--out", "out.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("new.safetensors").read_bytes()
    assert "network" in text


def test_a_family_says_what_each_root_takes():
    names = ["old", "new", "other"]
    text = run("pack", *(f"{name}.safetensors" for name in names), "--out", "f.haqz")
    assert text.count("(chosen)") == 1 and "relative entropy" in text
    run("unpack", "f.haqz", "--only", "other", "--out", "out.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("other.safetensors").read_bytes()
    fixed = run("pack", *(f"{name}.safetensors" for name in names), "--out", "f.haqz",
                "--root", "new")  # fmt: skip
    assert "new (chosen)" in fixed


def test_diff_is_a_table_and_json():
    text = run("diff", "old.safetensors", "new.safetensors")
    assert "conv" in text and "5 to 6" in text and "less than the" in text
    fields = json.loads(run("diff", "old.safetensors", "new.safetensors", "--json"))
    (layer,) = [row for row in fields["changes"] if row["name"] == "fc"]
    assert (layer["old_bits"], layer["new_bits"]) == (5, 6)
    assert fields["size"] < fields["direct"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["unpack", "new.safetensors", "--out", "o"], "not a packet of HAQ"),
        (["unpack", "missing.haqz", "--out", "o"], "cannot read missing.haqz"),
        (["pack", "new.safetensors", "--out", "o.haqz", "--base", "o"], "cannot read o:"),
        (["pack", "old.safetensors", "new.safetensors", "--out", "o.haqz", "--root", "nwe"],
         "unknown member 'nwe'; did you mean 'new'?"),
        (["diff", "old.safetensors", "missing"], "cannot read missing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["haq", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("o").exists() and not Path("o.haqz").exists()
