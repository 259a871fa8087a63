"""Route-constrained distillation: the teacher as it was on its way, from easy to hard."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from haq.errors import HaqError


def files_of(route: Sequence[str]) -> Iterator[Path]:
    """Yield the files of a route; of a folder its weights in the order of their names.

    ``haq train --keep-states`` writes such a folder.

    Raises:
        HaqError: A folder holds no weights.
    """
    for entry in map(Path, route):
        files = sorted(entry.glob("*.safetensors")) if entry.is_dir() else [entry]
        if not files:
            raise HaqError(
                f"distill route:{entry}: the folder holds no .safetensors; haq train --keep-states "
                "writes the states of a training"
            )
        yield from files


def anchor_at(done: int, total: int, anchors: int) -> int:
    """Return which of the teacher's states teaches after ``done`` of ``total`` epochs, from 0.

    Each of them teaches for as many epochs as the others; the last one is the final teacher.

    Args:
        done: Epochs that are over, fewer than ``total``.
        total: All of them.
        anchors: How many states there are, at most ``total``.

    Raises:
        ValueError: There are more states than epochs.

    Source: Jin et al., "Knowledge distillation via route constrained optimization",
    arXiv:1904.09149, section 3, with equal intervals.

    >>> [anchor_at(epoch, 10, 4) + 1 for epoch in range(10)]
    [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    """
    if not 1 <= anchors <= total:
        raise ValueError(f"{anchors} states of a teacher do not go into {total} epochs")
    return done * anchors // total
