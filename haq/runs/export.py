"""What a run leaves to take away: its network as a file of its own."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from haq.formats import checkpoint
from haq.runs.api import Run
from haq.runs.onnx_file import export_onnx
from haq.runs.restored import origin, restored


def export_checkpoint(
    run: Run | str | os.PathLike[str], out: str | os.PathLike[str], model: nn.Module | None = None
) -> checkpoint.Content:
    """Write the network of a run as a checkpoint for ``haq.load``.

    Args:
        run: As for ``restored``.
        out: Ends in .safetensors; folders that are missing are made, an old file is replaced.
        model: As for ``restored``.

    Returns:
        The metadata of the file; see ``haq.formats.checkpoint`` for the format.

    Raises:
        HaqError: As ``restored`` and ``haq.formats.checkpoint.save``.
    """
    found = restored(run, model)
    return checkpoint.save(out, found.network, found.policy, origin(found))


__all__ = ["FORMATS", "export_checkpoint", "export_onnx"]

FORMATS: Mapping[str, Callable[..., Any]] = {
    "onnx": export_onnx,
    "safetensors": export_checkpoint,
}
"""Name of a format to a function of the run and the file to write."""
