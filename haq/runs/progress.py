"""Where a run stands, for whoever shows it."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Where a run stands: what it does, how far it is, what to say beside it."""

    stage: str
    done: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
