"""What a source of models is, and what a model of one says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from haq.errors import ModelError, closest

_SHOWN = 3


@dataclass(frozen=True)
class Card:
    """What is known of a model before it is built.

    Attributes:
        shape: Of one input without the batch axis, such as (3, 224, 224); None where it takes
            something else than images.
        classes: Outputs where nothing else is asked for; None where it has no classes.
        mean: What its images are to be subtracted, per channel of x / 255; empty where nobody says.
        std: What they are divided by afterwards; likewise.
        sizes: Whether it takes images of other heights and widths than its own.
        weights: Whether its weights come with it, so that none have to be given.
        tokens: How many values its tokens may have, from 0 up; None where it takes no tokens.
        inputs: Names of the tensors that its forward takes, where they have names.
        facts: What else a report may show.
    """

    shape: tuple[int, ...] | None
    classes: int | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sizes: bool = True
    weights: bool = False
    tokens: int | None = None
    inputs: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Wanted(NamedTuple):
    """What a network is asked for with; None stands for the model's own.

    Attributes:
        classes: Outputs.
        size: Height and width of images.
        metric: Name of what the network will be scored by.
    """

    classes: int | None = None
    size: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Source:
    """Where models with a prefix come from.

    Attributes:
        what: What such a name stands for, for help and lists.
        example: A whole name.
        card: From what follows the prefix to what the model says of itself, without building it.
        build: From what follows the prefix and what is wanted to the network. Where the card says
            so it has its weights, else those are drawn from torch's current random state.
        names: All names there are; None where a path follows the prefix.
        files: From what follows the prefix to the files that such a model is made of; None where it
            is made of none.
        located: From what follows the prefix to the same with a whole path; None without files.
    """

    what: str
    example: str
    card: Callable[[str], Card]
    build: Callable[[str, Wanted], nn.Module]
    names: Callable[[], Sequence[str]] | None = None
    files: Callable[[str], Sequence[Path]] | None = None
    located: Callable[[str], str] | None = None


class Named(NamedTuple):
    """A name with a prefix, taken apart."""

    prefix: str
    rest: str
    source: Source


def check_known(prefix: str, rest: str, names: Sequence[str]) -> None:
    """Refuse a name that a library does not have, and say which were probably meant.

    Raises:
        ModelError: It is not among them.
    """
    if rest in names:
        return
    close = alike(rest, names)
    meant = f"; did you mean {' or '.join(f'{prefix}:{one}' for one in close)}?" if close else ""
    raise ModelError(f"{prefix} has no model {rest!r}{meant} (haq models {prefix} lists them)")


def alike(name: str, names: Sequence[str]) -> list[str]:
    """Return the few names most like one, the most similar first.

    >>> alike("resnet51", ["vgg11", "resnet50", "resnet18"])
    ['resnet50', 'resnet18']
    """
    left, chosen = list(names), list[str]()
    while len(chosen) < _SHOWN:
        best = closest(name, left)
        if best is None:
            break
        chosen.append(best)
        left.remove(best)
    return chosen
