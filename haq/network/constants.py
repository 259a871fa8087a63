"""Buffers that nothing learns, such as the mask of an attention: their infinities are meant."""

from collections.abc import Container

from torch import Tensor, nn

LEARNED = ("running_mean", "running_var")
"""Last parts of the names of buffers that training changes: the statistics of BatchNorms."""


def constants(network: nn.Module) -> set[str]:
    """Return the names of the buffers of a network that training does not change."""
    names = {name for name, _ in network.named_buffers()}
    return {name for name in names if name.rpartition(".")[2] not in LEARNED}


def count_broken(name: str, value: Tensor, constant: Container[str]) -> int:
    """Return how many values of a tensor of a network no network can work with.

    Args:
        name: Of the tensor, as in the network's ``state_dict``.
        value: Any shape and type.
        constant: From ``constants``: names of tensors in which infinity is a number as any other.
    """
    broken = value.isnan() if name in constant else ~value.isfinite()
    return int(broken.sum())
