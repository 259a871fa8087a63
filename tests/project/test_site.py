"""The documentation site's own code; .ci/run builds the whole site."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="needs haq[docs]")
SITE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "haq_site.py"))


def test_a_table_of_markdown_becomes_one_of_restructured_text():
    lines = ["Numbers:", "", "| a | b |", "|---|---|", "| 1 | [0, 1] |", "", "End."]
    SITE["with_tables"](None, "class", "A", None, None, lines)
    rows = ["   * - a", "     - b", "   * - 1", "     - [0, 1]"]
    table = ["", ".. list-table::", "   :header-rows: 1", "", *rows, ""]
    assert lines == ["Numbers:", "", *table, "End."]


def test_the_page_of_commands_holds_all_of_them():
    source = ["# Command line\n"]
    SITE["with_commands"](None, "docs/reference/commands", source)
    for title in ("## `haq search`", "## `haq kit`", "### `haq kit make`", "* `--max-drop POINTS`"):
        assert title in source[0]
    SITE["with_commands"](None, "docs/search", other := ["# The search\n"])
    assert other == ["# The search\n"]
