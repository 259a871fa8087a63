"""Operations that are computed as they are, but in float64, so that libraries give the same."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

WIDE = {
    "_log_softmax", "bilinear", "cdist", "cosine_similarity", "cumsum", "instance_norm",
    "linalg_vector_norm", "log_softmax", "logsumexp", "norm", "rms_norm", "std",
    "upsample_linear1d", "upsample_trilinear3d", "var",
}  # fmt: skip
"""Operations that add up, and are computed as they are but in float64."""

WIDE_GATES = {"celu", "cos", "elu", "log", "mish", "pow", "selu", "sin", "softplus"}
"""The same of functions of each value, where no step is chosen for them."""


@cache
def in_float64(operation: Any) -> Callable[..., Any]:
    """Return an operation that computes on floats in float64 and gives what type it is given.

    Whole numbers, as the positions that ``cumsum`` makes of a mask, it computes as it is.

    >>> in_float64(torch.cumsum)(torch.tensor([1, 1, 0]), 0)
    tensor([1, 2, 2])
    """

    def compute(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        dtype = next((x.dtype for x in tensors if x.is_floating_point()), torch.float)
        wide = tree_map(_widened, (args, kwargs))
        result = operation(*wide[0], **wide[1])
        return result.to(dtype) if result.is_floating_point() else result

    compute.__name__ = f"{operation}_in_float64".replace(".", "_")
    compute.computes = operation  # type: ignore[attr-defined]
    return compute


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
