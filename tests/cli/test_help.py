"""The help as it stands in a terminal of 80 columns."""

import os
import re
import subprocess
import sys

import pytest
import typer

from haq.cli.main import PANELS, app
from haq.runs.job import Job

COMMANDS = [*(name for panel in PANELS.values() for name in panel), "token create"]


def shown(*arguments: str) -> str:
    """Return what ``haq`` prints, 80 columns wide."""
    code = "import sys; from haq.cli.main import main; sys.argv[0] = 'haq'; main()"
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    return ended.stdout


def parameters(command: str) -> list[object]:
    root = typer.main.get_command(app)
    for name in command.split():
        root = root.commands[name]  # type: ignore[attr-defined]
    return [p for p in root.params if p.param_type_name == "option"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_cut_off_and_every_default_is_said(command):
    text = shown(*command.split(), "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    for parameter in parameters(command):
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
        assert parameter.help and re.search(r"[.)]$", parameter.help), parameter.name
        assert parameter.help.split(" [")[0].replace("\n", " ")[:30] in words
        is_switch = parameter.is_flag and not parameter.secondary_opts
        if not (parameter.required or is_switch or parameter.name in UNSET):
            assert parameter.show_default or parameter.default is not None, parameter.name


UNSET = {"help", "ray", "resume", "data", "weights"}
"""Options that stand for nothing unless they are given, as their sentences say."""


def test_the_defaults_of_a_search_are_those_of_its_job():
    job = {name: field.default for name, field in Job.model_fields.items()}
    for parameter in parameters("search"):
        if parameter.name in job and parameter.default is not None and parameter.name != "pins":
            value = parameter.default
            if parameter.name == "weight_bits":
                value = tuple(map(int, value.split("..")))
            assert value == job[parameter.name], parameter.name


def test_every_field_of_a_job_is_an_option_of_search():
    named = {parameter.name for parameter in parameters("search")}
    elsewhere = {
        "budgets": "budget",
        "pins": "pin",
        "per_channel": "per_tensor",
        "schemes": "scheme",
    }
    asked = Job.model_fields.keys() - {"transforms"}  # which the file of weights has
    assert {elsewhere.get(name, name) for name in asked} <= named


def test_the_version_is_printed():
    from importlib.metadata import version

    assert shown("--version") == f"haq {version('haq')}\n"


def test_the_commands_are_in_panels():
    text = shown("--help")
    for panel, commands in PANELS.items():
        assert panel in text
        for name in commands:
            assert re.search(rf"^│ {name} ", text, re.MULTILINE)
