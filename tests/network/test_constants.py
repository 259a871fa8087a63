"""Infinities are meant in buffers that nothing learns, and nowhere else."""

import pytest
import torch
from torch import nn

from haq.network.constants import constants, count_broken

INFINITE, UNKNOWN = float("-inf"), float("nan")


class Masked(nn.Module):
    """A mask as in attention, and a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((3, 3), INFINITE).triu(1))


def test_statistics_are_no_constants_and_a_mask_is_one():
    assert constants(Masked()) == {"mask", "norm.num_batches_tracked"}


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("mask", INFINITE, 0),
        ("mask", UNKNOWN, 6),
        ("norm.running_var", INFINITE, 6),
        ("norm.weight", UNKNOWN, 6),
        ("norm.num_batches_tracked", 7.0, 0),
    ],
)
def test_what_is_counted(name, value, count):
    assert count_broken(name, torch.full((2, 3), value), constants(Masked())) == count


def test_whole_numbers_are_never_broken():
    assert count_broken("order", torch.arange(3), set()) == 0
