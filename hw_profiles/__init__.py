"""Targets: what a layer costs on a piece of hardware, at each pair of bit-widths.

A target is a function and a line in ``TARGETS``; its constants, and how far they can be trusted,
stand in the profile ``<name>.json`` next to this file.
"""

from collections.abc import Callable, Mapping
from functools import partial

from haq.costs import Target
from haq.errors import look_up
from haq.hw_profiles import bitserial

TARGETS: Mapping[str, Callable[[int | None], Target]] = {
    "bismo-cloud": partial(bitserial.read, "bismo-cloud"),
    "bismo-edge": partial(bitserial.read, "bismo-edge"),
}


def load(name: str, batch: int | None = None) -> Target:
    """Return a target by its name.

    Args:
        name: One of ``TARGETS``.
        batch: Images computed together; the profile's own where None.

    Raises:
        HaqError: There is no such target.
        TargetError: The target cannot run such a batch.

    >>> load("bismo-cloud").batch, load("bismo-cloud", batch=1).batch
    (16, 1)
    """
    return look_up(TARGETS, "target", name)(batch)
