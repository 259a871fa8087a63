"""What the site adds to its generator: help of the command line, tables of docstrings, links."""

import re
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from sphinx import addnodes
from typer.cli import get_docs_for_click

from haq.cli.main import app as commands

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(^\|.*\n?){2,}", re.MULTILINE)


def setup_site(app: Any) -> None:
    """Connect the functions below to the events of Sphinx."""
    app.connect("source-read", with_commands)
    app.connect("doctree-read", show_folders_as_text)
    app.connect("autodoc-process-docstring", with_tables)


def with_commands(_: Any, page: str, source: list[str]) -> None:
    """Append the help of all commands to their page."""
    if page == "docs/reference/commands":
        source[0] += command_reference()


def command_reference() -> str:
    """Return the help of every command as Markdown, as typer writes it, without its own list."""
    group = typer.main.get_command(commands)
    context = typer.Context(group, info_name="haq")
    written = get_docs_for_click(obj=group, ctx=context, name="haq")
    return written[written.index("## ") :]


def show_folders_as_text(_: Any, page: nodes.document) -> None:
    """Show links to folders of the repository as text: the site has only pages and files."""
    for link in page.findall(addnodes.pending_xref):
        if (
            link.get("reftype") == "myst"
            and (Path(page["source"]).parent / link["reftarget"]).is_dir()
        ):
            link.replace_self(link.children)


def with_tables(_: Any, kind: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Turn the Markdown tables of a docstring into those of its generator."""
    written = "\n".join(lines)
    lines[:] = TABLE.sub(lambda found: list_table(found[0]), written).split("\n")


def list_table(markdown: str) -> str:
    """Return a table of Markdown as a list-table of reStructuredText."""
    head, _, *rows = markdown.strip().splitlines()
    texts = []
    for row in (head, *rows):
        first, *others = (cell.strip() for cell in row.strip().strip("|").split("|"))
        texts += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(["", ".. list-table::", "   :header-rows: 1", "", *texts, ""])
