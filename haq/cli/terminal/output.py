"""What a command says beside its result: on standard error, and in a log where one is asked for.

``--quiet`` leaves out how far the command is; warnings and mistakes are said all the same. The log
is written by the ``logging`` of Python under the name "haq", whatever is shown in the terminal.
"""

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from haq.cli.options import RUN, option
from haq.errors import HaqError

LOG = logging.getLogger("haq")
LOG.addHandler(logging.NullHandler())

LINE = "%(asctime)s %(levelname)-7s %(message)s"
DATE = "%Y-%m-%dT%H:%M:%S%z"

Quiet = Annotated[
    bool, option(RUN, "Do not show how far the command is.", "--quiet", "-q")
]  # fmt: skip
Log = Annotated[
    Path | None,
    option(RUN, "File to which progress, warnings and mistakes are added, with times.", "--log",
           metavar="FILE", show_default="none"),
]  # fmt: skip

_quiet = ContextVar("quiet", default=False)


def is_quiet() -> bool:
    """Return whether the command that runs is not to show how far it is."""
    return _quiet.get()


def say(text: str) -> None:
    """Say how far a command is."""
    LOG.info(text)
    if not is_quiet():
        typer.echo(text, err=True)


def warn(text: str) -> None:
    """Say what a user should know, also with ``--quiet``."""
    LOG.warning(text)
    typer.echo(f"haq: {text}", err=True)


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--quiet`` and ``--log``."""

    @wraps(command)
    def spoken(*args: Any, quiet: bool, log: Path | None, **options: Any) -> None:
        with output(quiet, log):
            command(*args, **options)

    named = list(signature(command).parameters.values())
    more = [
        Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
        Parameter("log", Parameter.KEYWORD_ONLY, default=None, annotation=Log),
    ]
    spoken.__signature__ = Signature([*named, *more])  # type: ignore[attr-defined]
    spoken.__annotations__ = {p.name: p.annotation for p in (*named, *more)}
    return spoken


@contextmanager
def output(quiet: bool, log: Path | None) -> Iterator[None]:
    """Say no more than asked for while a command runs, and write what is said to a log.

    Raises:
        HaqError: The log cannot be written.
    """
    handler = _handler(log) if log else logging.NullHandler()
    before, level = _quiet.set(quiet), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO if log else level)
    try:
        LOG.info("haq %s: %s", version("haq"), shlex.join(["haq", *sys.argv[1:]]))
        with _ending():
            yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()
        _quiet.reset(before)


def _handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    except OSError as error:
        raise HaqError(
            f"--log {path} cannot be written: {error.strerror}; give a file in a folder that "
            "is there"
        ) from error
    handler.setFormatter(logging.Formatter(LINE, DATE))
    return handler


@contextmanager
def _ending() -> Iterator[None]:
    """Write into the log how a command ends."""
    try:
        yield
    except HaqError as error:
        LOG.error(str(error))
        raise
    except typer.Exit as end:
        LOG.info("ended with exit code %d", end.exit_code)
        raise
    except KeyboardInterrupt:
        LOG.warning("interrupted")
        raise
    except Exception:
        LOG.exception("failed")
        raise
    LOG.info("ended")
