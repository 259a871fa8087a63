"""HAQ: how many bits each layer of a network should have, on the hardware it will run on.

>>> import haq
>>> run = haq.search("digits_cnn", "digits", budgets=["avg_weight_bits=3"])  # doctest: +SKIP
>>> run.policy["conv2"]  # doctest: +SKIP
Bits(weight=4, act=8)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haq.app.api import Run, search

__all__ = ["Run", "search"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'haq' has no attribute {name!r}")
    from haq.app import api

    return getattr(api, name)
