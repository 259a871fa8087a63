"""--quiet and --log: what a command says beside its result, and where."""

import logging
import re
import sys

import pytest
import typer

from haq.cli import completion
from haq.cli.main import SPEAKING, app, main
from haq.cli.terminal.output import output, say, warn
from haq.cli.terminal.progress import progress
from haq.errors import HaqError
from haq.runs.progress import Progress


def lines_of(path):
    return [line.split(" ", 2)[1:] for line in path.read_text(encoding="utf-8").splitlines()]


def words(line):
    return [line[0], line[1].strip()]


def test_a_log_has_what_was_asked_for_and_all_that_was_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["haq", "train", "--out", "two words"])
    log = tmp_path / "haq.log"
    with output(quiet=False, log=log):
        say("half of it")
        warn("one layer stays float")
    first, *said, last = map(words, lines_of(log))
    assert re.fullmatch(r"haq \S+: haq train --out 'two words'", first[1])
    assert said == [["INFO", "half of it"], ["WARNING", "one layer stays float"]]
    assert last == ["INFO", "ended"]
    assert capsys.readouterr().err == "half of it\nhaq: one layer stays float\n"


def test_quiet_leaves_out_progress_and_no_warning(tmp_path, capsys):
    log = tmp_path / "haq.log"
    with output(quiet=True, log=log), progress() as on_progress:
        on_progress(Progress("search", 1, 2))
        warn("one layer stays float")
    assert capsys.readouterr().err == "haq: one layer stays float\n"
    assert ["INFO", "search 1/2"] in map(words, lines_of(log))


def test_a_command_after_a_quiet_one_speaks_again(tmp_path, capsys):
    log = tmp_path / "haq.log"
    with output(quiet=True, log=log):
        pass
    say("later")
    assert capsys.readouterr().err == "later\n"
    assert "later" not in log.read_text(encoding="utf-8")


def test_a_quiet_command_whose_log_is_refused_silences_no_other(tmp_path, capsys):
    with pytest.raises(HaqError), output(quiet=True, log=tmp_path):
        pass
    say("later")
    assert capsys.readouterr().err == "later\n"


def test_a_log_is_added_to(tmp_path):
    for _ in range(2):
        with output(quiet=True, log=tmp_path / "haq.log"):
            say("here")
    assert [line[1] for line in map(words, lines_of(tmp_path / "haq.log"))].count("here") == 2


@pytest.mark.parametrize(
    "error, line",
    [
        (HaqError("no such agent"), ["ERROR", "no such agent"]),
        (KeyboardInterrupt(), ["WARNING", "interrupted"]),
        (typer.Exit(1), ["INFO", "ended with exit code 1"]),
    ],
)
def test_the_log_says_how_a_command_ended(tmp_path, error, line):
    with pytest.raises(type(error)), output(quiet=True, log=tmp_path / "haq.log"):
        raise error
    assert words(lines_of(tmp_path / "haq.log")[-1]) == line


def test_a_fault_of_ours_stands_in_the_log_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), output(quiet=True, log=tmp_path / "haq.log"):
        1 / 0  # noqa: B018
    text = (tmp_path / "haq.log").read_text(encoding="utf-8")
    assert "Traceback" in text and text.endswith("ZeroDivisionError: division by zero\n")


def test_a_log_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    out = tmp_path / "float.safetensors"
    where = tmp_path / "no" / "haq.log"
    monkeypatch.setattr(sys, "argv", ["haq", "train", "--out", str(out), "--log", str(where)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"haq: --log {where} cannot be written: No such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_log_the_library_of_a_program_says_nothing(capsys):
    logging.getLogger("haq").warning("for whoever listens")
    assert capsys.readouterr().err == ""


def test_every_command_that_takes_long_has_both_options():
    root = typer.main.get_command(app)
    for name in SPEAKING:
        options = {o for p in root.commands[name].params for o in p.opts}  # type: ignore[attr-defined]
        assert {"--quiet", "-q", "--log"} <= options, name


def test_what_a_shell_completes_is_what_there_is():
    from haq.agents import AGENTS
    from haq.allocation.costs import WITHOUT_TARGET
    from haq.allocation.schemes import SCHEMES
    from haq.datasets import DATASETS
    from haq.metrics import METRICS
    from haq.models import MODELS
    from haq.models.sources import SOURCES
    from haq.quantization.clipping import CLIPPING
    from haq.runs.tracking import TRACKERS

    def bare(names):
        return {name.rstrip(":=") for name in names}

    assert bare(completion.AGENTS) == set(AGENTS)
    assert bare(completion.MODELS) == {*MODELS, *SOURCES}
    assert bare(completion.DATA) == set(DATASETS)
    assert bare(completion.METRICS) == set(METRICS)
    assert bare(completion.SCHEMES) == set(SCHEMES)
    assert bare(completion.CLIPPING) == set(CLIPPING)
    assert bare(completion.TRACKERS) == set(TRACKERS)
    assert bare(completion.QUANTITIES) == {*WITHOUT_TARGET, "latency", "energy"}


@pytest.mark.parametrize(
    "typed, offered",
    [
        (["search", "--agent", "gu"], ["guided"]),
        (["search", "--target", "ethos-u65"], ["ethos-u65-256", "ethos-u65-512"]),
        (["sweep", "--metric", "top"], ["top1", "top5"]),
        (["show", "mi"], ["mine"]),
        (["search", "--resume", ""], ["mine", "other"]),
    ],
)
def test_a_shell_completes_values(tmp_path, monkeypatch, typed, offered):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "job.json").write_text("{}")
    (tmp_path / "results" / "empty").mkdir()
    assert completions(monkeypatch, typed) == offered


def completions(monkeypatch, typed):
    from typer.testing import CliRunner

    environment = {
        "_HAQ_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["haq", *typed]),
        "COMP_CWORD": str(len(typed)),
    }
    ended = CliRunner().invoke(app, [], prog_name="haq", env=environment)
    return ended.stdout.split()
