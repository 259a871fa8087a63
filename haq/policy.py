"""A policy: how many bits the weights and the activations of each layer have.

A policy is a plain mapping from the layer's name to its ``Bits``; in a file it is JSON.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from haq.errors import PolicyError
from haq.layers import Layer

FLOAT = 32
"""The bit-width that stands for "not quantized"."""


class Bits(NamedTuple):
    """Bit-widths of one layer: of its weights and of the tensor it reads. 32 is float."""

    weight: int
    act: int


Policy = Mapping[str, Bits]
