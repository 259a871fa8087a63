"""Pages of the repository: their links lead somewhere, and their commands exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

import haq
from haq.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")})
COMMANDS = typer.main.get_command(app).commands
LINK = re.compile(r"\]\(([^)#\s]+)")
FENCE = re.compile(r"```(?:bash|sh|\{code-cell\}.*?)?\n(.*?)```", re.DOTALL)


def lines_of(page):
    """Return the command lines of a page that begin with haq, continued lines joined."""
    fences = "".join(FENCE.findall(page.read_text(encoding="utf-8")))
    joined = fences.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0] for line in joined if line.startswith("haq ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_pages_have_the_options_that_they_show(page):
    for line in lines_of(page):
        words = shlex.split(line.split("|")[0])
        command = COMMANDS.get(words[1])
        command = getattr(command, "commands", {}).get("".join(words[2:3]), command)
        assert command is not None, line
        known = {name for parameter in command.params for name in parameter.opts}
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert [name for name in given if name not in {*known, "--help"}] == [], line


def test_the_first_page_is_short_and_has_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    commands = [line for line in text.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2


def test_every_public_name_is_on_the_page_of_the_python_reference():
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    on_page = re.findall(r"^\.\. auto\w+:: haq\.(\w+)$", text, re.MULTILINE)
    assert set(haq.__all__) - set(on_page) == {"__version__"}
    assert len(on_page) == len(set(on_page))
    assert "`haq.__version__`" in text


def test_every_page_of_docs_is_reached_from_the_first_one():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL))
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix()
             for page in ROOT.glob("docs/**/*.md")}  # fmt: skip
    assert pages - {"index"} <= set(trees.split())


def test_headings_do_not_skip_a_level():
    for page in PAGES:
        headings = re.findall(r"^(#+) ", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(len(after) <= len(before) + 1 for before, after in pairwise(headings)), page
