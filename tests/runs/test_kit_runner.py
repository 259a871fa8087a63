"""The runner of a kit, which stands alone: what it asks, what it refuses, what a kill leaves."""

import json
import signal
import subprocess
import sys

import onnxruntime
import pytest
from kit_parts import board
from typer.testing import CliRunner

from haq.cli.main import app
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.runs.kit.device import run_kit
from haq.runs.kit.make import RUNNER
from haq.runs.kit.read import MEASURED, contents_of, read_kit


@pytest.fixture
def told(whole_kit, tmp_path):
    """A kit whose files have their latency written beside them, for a command that reads it."""
    contents = contents_of(whole_kit)
    (tmp_path / "files").mkdir()
    for name in ("kit.json", RUNNER):
        (tmp_path / name).write_bytes((whole_kit / name).read_bytes())
    for name in contents.files:
        (tmp_path / "files" / name).write_text(f"latency {board(contents, name)}\n")
    return tmp_path


def run_here(folder, *options):
    command = [sys.executable, str(folder / RUNNER), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_runner_asks_a_command_and_the_profile_is_right(told):
    done = run_here(told, "--command", "cat {file}", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    read = read_kit(told, "board")
    assert read.rounds == 2 and read.validation.worst_error < 0.02
    assert read.profile.runtime.options["command"] == "cat {file}"


@pytest.mark.parametrize(
    "text, sentence",
    [("not a number", "the command printed 'number'"), ("", "the command printed nothing"),
     ("-3", "it takes -3.0 us, which is no latency"), ("nan", "which is no latency")],
)  # fmt: skip
def test_the_runner_refuses_what_is_no_latency_and_goes_on_where_it_was(told, text, sentence):
    contents = contents_of(told)
    bad = told / "files" / "mixed-07.onnx"
    right = bad.read_text()
    bad.write_text(text)
    done = run_here(told, "--command", "cat {file}", "--rounds", "1")
    assert done.returncode == 1
    assert sentence in done.stderr and "files/mixed-07.onnx" in done.stderr
    before = (told / MEASURED).read_text()
    with pytest.raises(HaqError, match="were not measured"):
        read_kit(told, "board")
    bad.write_text(right)
    (told / MEASURED).write_text(before + '{"torn')
    assert run_here(told, "--command", "cat {file}", "--rounds", "1").returncode == 0
    lines = (told / MEASURED).read_text().splitlines()
    assert len(lines) == len(contents.files) + 3
    assert "\n".join(lines).startswith(before.rstrip("\n"))


def test_the_runner_says_what_a_command_that_dies_said(told):
    dies = told / "dies.py"
    dies.write_text("raise SystemExit('nope')")
    done = run_here(told, "--command", f"{sys.executable} {dies} {{file}}")
    assert done.returncode == 1 and "ended with code 1: nope" in done.stderr
    done = run_here(told, "--command", "no-such-program {file}")
    assert done.returncode == 1 and "does not start" in done.stderr
    done = run_here(told, "--command", "cat")
    assert done.returncode == 2 and "it needs {file}" in done.stderr
    assert not (told / MEASURED).exists()


def test_a_device_that_takes_the_same_for_all_layers_is_refused_in_its_first_round(told):
    for path in (told / "files").iterdir():
        path.write_text("12.5")
    done = run_here(told, "--command", "cat {file}")
    assert done.returncode == 1
    assert "round 1: each of 12 layers takes 12.5 us, so it is not the layer" in done.stderr


def test_a_device_that_gets_hot_is_told_of_and_refused(told):
    heats = told / "heats.py"
    heats.write_text(
        "import pathlib, sys\n"
        "count = pathlib.Path(__file__).with_suffix('.count')\n"
        "done = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(done + 1))\n"
        "print(float(open(sys.argv[1]).read().split()[-1]) * (1 + 0.01 * done))\n"
    )
    done = run_here(told, "--command", f"{sys.executable} -S {heats} {{file}}", "--rounds", "1")
    assert done.returncode == 0 and "that is +40%: the device changes its speed" in done.stdout
    with pytest.raises(HaqError, match=r"lines 2 and 42: .* \(\+40%\): the device changed"):
        read_kit(told, "board")


def test_all_files_that_a_kit_lacks_are_named_before_anything_is_measured(told):
    for name in ("mixed-03.onnx", "layer-01-w4a8.onnx"):
        (told / "files" / name).unlink()
    done = run_here(told, "--command", "cat {file}")
    assert done.returncode == 1 and not (told / MEASURED).exists()
    assert "2 of 39 files of the kit are not there (layer-01-w4a8.onnx, mixed-03.onnx)" in (
        done.stderr
    )
    with pytest.raises(HaqError, match=r"lacks 2 of its files \(.*\); nothing was measured"):
        run_kit(told)


def test_nothing_that_was_measured_is_lost_by_a_kill(told):
    """The command kills the runner without a warning, after seven files."""
    kills = told / "kills.py"
    kills.write_text(
        "import os, pathlib, signal, sys\n"
        "rows = pathlib.Path(__file__).with_name('measured.jsonl')\n"
        "if rows.exists() and rows.read_bytes().count(b'\\n') == 8 and len(sys.argv) > 2:\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "print(open(sys.argv[1]).read())\n"
    )
    command = f"{sys.executable} -S {kills} {{file}}"
    killed = run_here(told, "--command", f"{command} kill", "--rounds", "1")
    assert killed.returncode == -signal.SIGKILL
    before = (told / MEASURED).read_text()
    assert before.count("\n") == 8 and before.endswith("\n")
    (told / MEASURED).write_text(before.replace(" kill", ""))  # the same command but for that
    assert run_here(told, "--command", command, "--rounds", "1").returncode == 0
    after = (told / MEASURED).read_text()
    assert after.startswith(before.replace(" kill", "")) and read_kit(told, "board").rounds == 1


@pytest.mark.parametrize(
    "text, sentence",
    [("{\n", "line 1 is not as this program writes it"),
     ('{"device": {}}\n{"round": 0}\n', "line 2 is not as this program writes it"),
     ("[]\n", "line 1 is not as this program writes it"),
     ('{"device": {}}\n\n', "line 2 is not as this program writes it")],
)  # fmt: skip
def test_the_runner_refuses_figures_that_it_did_not_write(told, text, sentence):
    (told / MEASURED).write_text(text)
    done = run_here(told, "--command", "cat {file}")
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert (told / MEASURED).read_text() == text


def test_the_runner_says_what_keeps_it_from_starting(told):
    done = run_here(told, "--command", "cat '{file}")
    assert done.returncode == 1 and "No closing quotation" in done.stderr
    done = run_here(told)  # the files are no networks
    assert done.returncode == 1 and "does not run it" in done.stderr
    assert "Traceback" not in done.stderr and "files/" in done.stderr
    alone = subprocess.run(
        [sys.executable, "-S", str(told / RUNNER)], capture_output=True, text=True, check=False
    )  # without the packages
    assert alone.returncode == 1 and "install it with pip install onnxruntime" in alone.stderr
    slow = run_here(told, "--command", f"{sys.executable} -c 'input()' {{file}}", "--timeout", "0")
    assert slow.returncode == 2 and "--timeout above 0" in slow.stderr
    (told / "kit.json").write_text("{}")
    done = run_here(told, "--command", "cat {file}")
    assert done.returncode == 1 and "is not a kit's" in done.stderr


def test_rows_of_two_devices_are_not_mixed(told):
    assert run_here(told, "--command", "cat {file}", "--rounds", "1").returncode == 0
    done = run_here(told, "--command", "head -1 {file}", "--rounds", "2")
    assert done.returncode == 1 and "was begun on another device" in done.stderr


@pytest.fixture
def there(tmp_path_factory, monkeypatch):
    """The home of another machine, by an ssh that goes nowhere."""
    place = tmp_path_factory.mktemp("there")
    programs, home = place / "bin", place / "home"
    programs.mkdir()
    home.mkdir()
    (programs / "ssh").write_text(
        '#!/bin/sh\n[ -e "$THERE" ] || exit 255\ncd "$THERE" && exec sh -c "$2"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("THERE", str(home))
    return home


def test_the_commands_make_measure_over_ssh_and_read(tmp_path, there):
    """The same copies and commands as with a board, on this machine."""
    kit, runner = tmp_path / "kit", CliRunner()
    asked = ["kit", "make", "--model", "digits_mlp", "--out", str(kit), "--weight-bits", "4..5"]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    asked = [
        "kit",
        "run",
        str(kit),
        "--ssh",
        "me@board",
        "--python",
        sys.executable,
        "--rounds",
        "1",
    ]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    (folder,) = there.glob("haq-kit-kit-*")
    assert (folder / MEASURED).exists()
    before = (kit / MEASURED).read_text()
    (kit / MEASURED).write_text("".join(before.splitlines(keepends=True)[:5]))
    assert runner.invoke(app, asked).exit_code == 0
    assert (kit / MEASURED).read_text() == before  # nothing was measured again
    rows = [json.loads(line) for line in before.splitlines()]
    assert rows[0]["device"]["onnxruntime"] == onnxruntime.__version__
    assert {row["file"] for row in rows[1:]} == set(contents_of(kit).files)
    for row in rows[1:]:
        row["us"] = 10.0 + len(row["file"]) + row["place"] % 2  # what the clock said is no fact
    rows = [row | {"us": board_of(row, contents_of(kit))} if "file" in row else row for row in rows]
    (kit / MEASURED).write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "board.json"
    result = runner.invoke(app, ["kit", "read", str(kit), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "rank correlation" in result.output and load(str(out)).name == "board"
    assert "everywhere: w5a8" in result.output and "latency=90%w5a8" in result.output
    assert "hardly gain time" not in result.output


def board_of(row, contents):
    return float(board(contents, row["file"]))


def over_ssh(folder, command="cat {file}"):
    run_kit(folder, "me@board", sys.executable, ["--command", command, "--rounds", "1"])


def test_what_a_board_measured_until_it_failed_comes_back_and_is_gone_on_with(told, there):
    bad = told / "files" / "mixed-07.onnx"
    right = bad.read_text()
    bad.write_text("sorry")
    with pytest.raises(HaqError, match="the runner on me@board ended with code 1"):
        over_ssh(told)
    before = (told / MEASURED).read_text()
    assert before.count("\n") > 1
    bad.write_text(right)
    (told / MEASURED).unlink()  # lost here, not there
    over_ssh(told)
    assert (told / MEASURED).read_text().startswith(before)
    assert read_kit(told, "board").rounds == 1


def test_figures_that_are_here_are_not_overwritten_by_others(told, there):
    over_ssh(told)
    own = (told / MEASURED).read_text()
    (told / MEASURED).write_text(own.replace('"round": 0, "place": 2', '"round": 0, "place": 1'))
    changed = (told / MEASURED).read_text()
    with pytest.raises(HaqError, match="are different figures; take one of the two away"):
        over_ssh(told)
    assert (told / MEASURED).read_text() == changed
    assert not (told / f"{MEASURED}.part").exists()
    (folder,) = there.glob("haq-kit-*")
    (folder / MEASURED).write_text(own[: len(own) // 2])  # less there than here
    (told / MEASURED).write_text(own)
    over_ssh(told)
    assert (told / MEASURED).read_text() == own


def test_a_board_that_cannot_be_reached_is_said_and_nothing_is_lost(told, there, monkeypatch):
    over_ssh(told)
    own = (told / MEASURED).read_text()
    monkeypatch.setenv("THERE", str(there / "nowhere"))
    with pytest.raises(HaqError, match="ssh to me@board ended with code 255"):
        over_ssh(told)
    monkeypatch.setenv("PATH", str(there))
    with pytest.raises(HaqError, match="ssh to me@board: ssh does not start"):
        over_ssh(told)
    assert (told / MEASURED).read_text() == own


def test_a_kit_that_does_not_arrive_is_said(told, there, monkeypatch):
    ssh = there.parent / "bin" / "ssh"
    ssh.write_text(
        '#!/bin/sh\ncase "$2" in tar*) exit 3;; *) cd "$THERE" && exec sh -c "$2";; esac\n'
    )
    with pytest.raises(HaqError, match="copying to me@board ended with code 3"):
        over_ssh(told)
    assert not (told / MEASURED).exists()


def test_kits_of_one_name_lie_in_folders_of_their_own(tmp_path_factory, told, there):
    other = tmp_path_factory.mktemp("my kit") / told.name
    other.mkdir(parents=True)
    (other / "files").mkdir()
    for path in ("kit.json", RUNNER, *(f"files/{p.name}" for p in (told / "files").iterdir())):
        (other / path).write_bytes((told / path).read_bytes())
    (other / "kit.json").write_text((told / "kit.json").read_text() + " ")
    over_ssh(told)
    over_ssh(other)
    assert len(list(there.glob("haq-kit-*"))) == 2
