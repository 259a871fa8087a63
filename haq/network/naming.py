"""Names that a forward gives to its tensors, so that they can be told in the captured graph."""

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("haq", "FRAGMENT")
_LIBRARY.define("named(Tensor values, str name) -> Tensor")


def _named(values: Tensor, name: str) -> Tensor:
    return values.clone()


_LIBRARY.impl("named", _named, "CompositeExplicitAutograd")
torch.library.register_autograd("haq::named", lambda _, gradient: (gradient, None), lib=_LIBRARY)

NAMED = torch.ops.haq.named.default

TENSORS = "tensors"
"""Key in ``GraphModule.meta`` of a captured graph: tensor to the name of the node that gives it."""

ORIGIN = "origin"
"""Key in ``GraphModule.meta``: what the model says of where it comes from, as ``model.origin``."""


def named(values: Tensor, name: str) -> Tensor:
    """Return the same values; in the captured graph the node that computes them has the name."""
    result: Tensor = NAMED(values, name)
    return result
