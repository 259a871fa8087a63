"""The log of a search: what its process says, in ``log.txt`` of the run's folder.

It is for the user: stages, warnings and the sentence it ended with, no tracebacks.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

NAME = "log.txt"

MOST_BYTES = 1 << 20
"""Of a log; what was before is in ``log.txt.1``, and what was before that is gone."""

LINES = 200
"""The last lines, which the page of a run shows."""


class _Lines(logging.Formatter):
    """Time in UTC, level and message; without the traceback, which is the operator's."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatException(self, ei: Any) -> str:
        return ""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split("\n")).rstrip()


@contextmanager
def written(folder: Path, on_progress: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Write the log of a search while it goes on.

    Args:
        folder: Of the run.
        on_progress: Is told where the search stands.

    Yields:
        What is to be told instead: it writes a line at every new stage too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        folder / NAME, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", delay=True
    )
    handler.setFormatter(_Lines())
    logger = logging.getLogger("haq")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    shown = warnings.showwarning
    warnings.showwarning = lambda message, category, *_, **__: logger.warning("%s", message)
    try:
        yield _staged(on_progress, logger)
    finally:
        warnings.showwarning = shown
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def _staged(on_progress: Callable[[Any], None], logger: logging.Logger) -> Callable[[Any], None]:
    last: tuple[str, str] = ("", "")
    due = 0.0

    def told(where: Any) -> None:
        nonlocal last, due
        on_progress(where)
        stage, done, total, note = (*where, "", "", "", "")[:4]
        if (stage, note) != last and (stage != last[0] or time.monotonic() >= due):
            last, due = (stage, note), time.monotonic() + 1.0
            logger.info("%s %s of %s%s", stage, done, total, f": {note}" if note else "")

    return told


def tail(folder: Path, lines: int = LINES) -> str:
    """Return the last lines of a log, as UTF-8 text; empty where there is none."""
    try:
        with (folder / NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def whole(folder: Path) -> str:
    """Return a log from its beginning, as far as it is there."""
    parts = [folder / f"{NAME}.1", folder / NAME]
    return "".join(p.read_text("utf-8", errors="replace") for p in parts if p.is_file())
