"""A second device on a machine that has none: tensors that say they are elsewhere, and hold data.

Within ``second_device()`` a tensor brought to ``DEVICE`` is computed with as on the CPU, but mixing
it with one that was not is refused, as a GPU does: but for tensors without axes, the source of a
copy, and indices. What leaves it by ``.cpu()``, ``.item()`` or ``.tolist()`` is an ordinary tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
"""A device without data of its own, so that torch never computes on it behind the tests' back."""

_MAY_MIX = ("copy_", "index", "index_put", "index_put_", "_to_copy")


class There(torch.Tensor):
    """A tensor on the second device; ``held`` is what it would hold there."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "There":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE, requires_grad=False,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"There({self.held!r})"

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        self.held = value.held

    def tolist(self):
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


def _computed(func, args, kwargs):
    name = func._schema.name.split("::")[1]
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in leaves if isinstance(x, There)]
    here = [x for x in leaves if not isinstance(x, There) and x.dim()]
    if there and here and name not in _MAY_MIX:
        raise RuntimeError(f"{name}: tensors on two devices")
    asked = kwargs.get("device")
    goes = bool(there) if asked is None else torch.device(asked) == DEVICE
    if name == "copy_":
        goes = isinstance(args[0], There)
    if name == "_local_scalar_dense":
        goes = False
    kwargs = {k: v for k, v in kwargs.items() if k != "device"} | (
        {"device": torch.device("cpu")} if asked is not None else {}
    )
    inner = pytree.tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
    given = func(*inner[0], **inner[1])
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], torch.Tensor):
        return args[0]
    return pytree.tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) and goes else x, given)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give a second device to what runs inside; inference mode is there without gradients alone."""

    def enter(self: torch.inference_mode) -> None:
        self._inference_mode_context = torch.no_grad()
        self._inference_mode_context.__enter__()

    with _Mode(), patch.object(torch.inference_mode, "__enter__", enter):
        yield DEVICE
