"""Where tables are printed."""

import os
import sys

from rich.console import Console

WIDE = 200
"""Columns of a table that goes to a file or another program: nothing there is to be cut off."""


def console() -> Console:
    """Return the console of standard output."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=not narrow, width=None if narrow else WIDE)


def holds(text: str) -> bool:
    """Return whether the encoding of standard output has all signs of a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
