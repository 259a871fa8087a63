"""HAQ: how many bits each layer of a network should have, on the hardware it will run on.

>>> import haq
>>> run = haq.search("digits_cnn", "digits", budgets=["avg_weight_bits=3"])  # doctest: +SKIP
>>> run.policy["conv2"]  # doctest: +SKIP
Bits(weight=4, act=8)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haq.formats.checkpoint import load
    from haq.runs.api import Run, load_run, search
    from haq.runs.export import export_checkpoint, export_onnx

__all__ = ["Run", "export_checkpoint", "export_onnx", "load", "load_run", "search"]

_MODULES = {
    "export_checkpoint": "haq.runs.export",
    "export_onnx": "haq.runs.export",
    "load": "haq.formats.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for: torch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'haq' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "haq.runs.api")), name)
