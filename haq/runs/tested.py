"""Which test labels the networks of a run have right, so that networks are compared in pairs.

Two networks of one run, or of two runs on the same test images, differ by less than two independent
networks would: most images that one has wrong, the other has wrong too.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haq.errors import RunError
from haq.runs.folder import read_json, write_json
from haq.training.paired import Paired, drop_interval, paired

FILE = "tested.json"


def packed_bits(right: Tensor) -> dict[str, Any]:
    """Return truth values (M,) as JSON has them: how many, and their bits in base64."""
    bits = np.packbits(right.numpy().astype(bool))
    return {"count": len(right), "bits": base64.b64encode(bits.tobytes()).decode()}


def unpacked_bits(record: Mapping[str, Any]) -> Tensor:
    """Return the truth values (M,) of ``packed_bits``."""
    content = np.frombuffer(base64.b64decode(record["bits"]), np.uint8)
    return torch.from_numpy(np.unpackbits(content, count=record["count"]).astype(bool))


def write_tested(folder: Path, rights: Mapping[str, Tensor]) -> None:
    """Write which test labels each of the networks has right, by their names."""
    write_json(folder / FILE, {name: packed_bits(right) for name, right in rights.items()})


def read_tested(folder: Path) -> dict[str, Tensor]:
    """Return which test labels the networks of a run have right; none for older runs.

    Raises:
        RunError: The file is damaged.
    """
    if not (folder / FILE).exists():
        return {}
    try:
        return {name: unpacked_bits(row) for name, row in read_json(folder / FILE).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder / FILE} is damaged: {error}") from error


def drop_record(floats: Tensor, final: Tensor) -> dict[str, Any]:
    """Return by how much the second of two networks is less accurate, for a summary.

    Args:
        floats: Which labels the first one has right, (M,).
        final: The same of the second one.

    Returns:
        ``{"drop", "interval", "lost", "gained"}``: shares of the labels, and how many only the
        first and only the second one has right.
    """
    pairs: Paired = paired(floats, final)
    return {"drop": pairs.drop, "interval": list(drop_interval(pairs)),
            "lost": pairs.lost, "gained": pairs.gained}  # fmt: skip
