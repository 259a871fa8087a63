"""docs/operating.md, followed to the letter where a test can: commands, settings, limits, modes."""

import os
import re
import shlex
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
from service_parts import opened, run_of

from haq.cli.main import app
from haq.runs.job import Job
from haq.service import place, store
from haq.service.database import connect, migrate
from haq.service.limits import Limits
from haq.service.serve import settings_of

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")


@pytest.fixture
def umask():
    """Give back the umask that commands change for the whole process."""
    old = os.umask(0o022)
    os.umask(old)
    yield
    os.umask(old)


def commands(*names):
    """Return the words of the commands in the page's blocks that begin so, in its order."""
    lines = re.findall(r"^    (haq .*)$", PAGE, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if line.split()[1] in names]


def test_the_commands_of_the_page_look_after_a_service(
    tmp_path, database, monkeypatch, capsys, umask
):
    settings, engine = opened(tmp_path, database)
    waiting = run_of(engine, Job(episodes=3))
    monkeypatch.setenv("HAQ_FILES", str(settings.files))
    monkeypatch.setenv("HAQ_DATABASE", settings.url)
    done = []
    for words in commands("token", "service"):
        words = [word.replace("/backup", str(tmp_path)) for word in words]
        if words[1:3] == ["service", "restore"]:
            monkeypatch.setenv("HAQ_FILES", str(tmp_path / "new"))
            monkeypatch.setenv("HAQ_DATABASE", f"sqlite:///{tmp_path}/new/haq.sqlite")
        app(words[1:], standalone_mode=False)
        done.append(" ".join(words[1:3]))
    assert set(done) == {
        "token create", "token list", "token revoke",
        "service backup", "service restore", "service clean",
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.count("1 runs and 0 uploads") == 2
    new = settings_of(tmp_path / "new", None)
    assert [run.id for run in store.listed(connect(new.url))] == [waiting]
    assert place.missing(new, migrate(connect(new.url))) is None


def test_every_file_is_for_the_services_own_user(tmp_path, umask):
    os.umask(0o022)
    app(["token", "create", "ada", "--files", str(tmp_path / "files")], standalone_mode=False)
    settings = settings_of(tmp_path / "files", None)
    place.prepare(settings, migrate(connect(settings.url)))
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in [settings.files, *settings.files.rglob("*")]
    }
    assert {"files/haq.sqlite", "files/.store", "files/runs", "files/uploads"} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_the_environment_variables_of_the_page_are_those_of_the_commands():
    group = _command(app)
    given = {
        name
        for command in ("serve", "worker", "service", "token")
        for name in _variables(group.commands[command])
    }
    named = set(re.findall(r"\bHAQ_[A-Z_]+\b", PAGE))
    assert named == given


def _command(typer_app):
    from typer.main import get_command

    return get_command(typer_app)


def _variables(command):
    below = [_variables(one) for one in getattr(command, "commands", {}).values()]
    own = {parameter.envvar for parameter in command.params if parameter.envvar}
    return own.union(*below)


UNITS = {
    "": 1, "million": 10**6, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "d": 86_400, "min": 60,
}  # fmt: skip


def test_the_limits_of_the_page_are_those_that_there_are():
    rows = re.findall(r"^\| `(\w+)` \| ([\d ]+?) ?([A-Za-z]*) \| .* \|$", PAGE, re.MULTILINE)
    told = {name: int(number.replace(" ", "")) * UNITS[unit] for name, number, unit in rows}
    assert told == asdict(Limits())
