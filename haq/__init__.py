"""HAQ: how many bits each layer of a network should have, on the hardware it will run on.

>>> import haq
>>> run = haq.search("digits_cnn", "digits", budgets=["avg_weight_bits=3"])  # doctest: +SKIP
>>> run.policy["conv2"]  # doctest: +SKIP
Bits(weight=4, act=8)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haq.formats.checkpoint import load
    from haq.formats.update.difference import diff
    from haq.formats.update.pack import pack, unpack
    from haq.models.onnx.load import load_onnx
    from haq.runs.api import Run, search
    from haq.runs.export import export_checkpoint, export_onnx
    from haq.runs.frames import load_run
    from haq.runs.make_env import make_env
    from haq.runs.quick import quick_policy
    from haq.runs.saved_agent import load_agent

    __version__: str

__all__ = [
    "Run",
    "__version__",
    "diff",
    "export_checkpoint",
    "export_onnx",
    "load",
    "load_agent",
    "load_onnx",
    "load_run",
    "make_env",
    "pack",
    "quick_policy",
    "search",
    "unpack",
]

_MODULES = {
    "Run": "haq.runs.api",
    "diff": "haq.formats.update.difference",
    "export_checkpoint": "haq.runs.export",
    "export_onnx": "haq.runs.export",
    "load": "haq.formats.checkpoint",
    "load_agent": "haq.runs.saved_agent",
    "load_onnx": "haq.models.onnx.load",
    "load_run": "haq.runs.frames",
    "make_env": "haq.runs.make_env",
    "pack": "haq.formats.update.pack",
    "quick_policy": "haq.runs.quick",
    "search": "haq.runs.api",
    "unpack": "haq.formats.update.pack",
}


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first asked for: torch takes a second."""
    if name == "__version__":
        return version("haq")
    if name not in _MODULES:
        raise AttributeError(f"module 'haq' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
