"""Mistakes of a user: one sentence each, with the offending value and the way out.

The command line prints a ``HaqError`` without a traceback and exits with 2; a mistake of a caller
(wrong type, impossible argument) is a ``ValueError`` instead.
"""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile
from typing import TypeVar

T = TypeVar("T")


class HaqError(Exception):
    """Something the user asked for cannot be done; the message says what and how to go on."""


class BudgetError(HaqError):
    """A budget that cannot be read, or that no policy meets."""


class CheckpointError(HaqError):
    """A quantized network that cannot be kept in a file, or not be had from one."""


class ConversionError(HaqError):
    """A quantized network whose integer form gives other answers: a fault of this library."""


class DataError(HaqError):
    """Images, labels or a data folder that cannot be used."""


class DivergedError(HaqError):
    """A training whose loss is no longer a finite number."""


class ModelError(HaqError):
    """A model or a checkpoint that cannot be used."""


class PolicyError(HaqError):
    """A policy that does not fit the layers of the model."""


class RunError(HaqError):
    """A run's folder that is missing, damaged or belongs to another job."""


class UpdateError(HaqError):
    """A packet between networks that cannot be made, or is not what it should be."""


class TargetError(HaqError):
    """A target that does not exist or cannot give the cost asked for."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant: the most similar, then the longest start.

    >>> closest("resnet21", ["resnet20", "resnet32", "resnet56"])
    'resnet20'
    >>> closest("zzz", ["resnet20"]) is None
    True
    """

    def likeness(other: str) -> tuple[float, int]:
        equal = (mine == its for mine, its in zip(name, other, strict=False))
        return SequenceMatcher(None, other, name).ratio(), sum(takewhile(bool, equal))

    return max(get_close_matches(name, known, n=10), key=likeness, default=None)


def meant(name: str, known: Iterable[str]) -> str:
    """Return the part of a sentence that says which name was probably meant; empty without one.

    >>> meant("resnet21", ["resnet20", "vgg11"])
    "; did you mean 'resnet20'?"
    """
    close = closest(name, known)
    return f"; did you mean {close!r}?" if close else ""


def look_up(table: Mapping[str, T], kind: str, name: str) -> T:
    """Return ``table[name]``, or say which name was probably meant.

    Args:
        table: What is known, by name.
        kind: What the table holds, for the message: "agent", "model", ….
        name: What was asked for.

    Raises:
        HaqError: ``name`` is not in the table.

    >>> look_up({"ddpg": 1, "random": 2}, "agent", "dpg")
    Traceback (most recent call last):
    ...
    haq.errors.HaqError: unknown agent 'dpg'; did you mean 'ddpg'? (known: ddpg, random)
    """
    if name in table:
        return table[name]
    raise HaqError(
        f"unknown {kind} {name!r}{meant(name, table)} (known: {', '.join(sorted(table))})"
    )
