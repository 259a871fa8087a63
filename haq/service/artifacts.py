"""The files of a run that may be taken away, by their names."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

_FILES = (
    "policy.json", "weights.safetensors", "float.safetensors", "clips.safetensors",
    "summary.json", "transforms.json", "trials.jsonl",
)  # fmt: skip

ABOUT: Mapping[str, str] = {
    "model.onnx": "the quantized network, for ONNX Runtime",
    "checkpoint.safetensors": "the quantized network, packed to its bits",
    "policy.json": "the bits of every layer",
    "weights.safetensors": "the float values of the fine-tuned weights",
    "float.safetensors": "the float network that the search began with",
    "clips.safetensors": "where tensors are clipped, at every bit-width",
    "summary.json": "all figures of the run",
    "transforms.json": "what was changed before the bits were chosen",
    "trials.jsonl": "every policy that was tried",
}
"""What each file is, in a few words."""

_ONE_AT_A_TIME = threading.Lock()  # an export takes a model's memory


def _onnx(folder: Path, out: Path) -> None:
    from haq.runs.export import export_onnx

    export_onnx(folder, out)


def _checkpoint(folder: Path, out: Path) -> None:
    from haq.runs.export import export_checkpoint

    export_checkpoint(folder, out)


EXPORTS: Mapping[str, Callable[[Path, Path], None]] = {
    "model.onnx": _onnx,
    "checkpoint.safetensors": _checkpoint,
}
"""Files made of a finished run when they are first asked for."""


def listed(folder: Path, finished: bool) -> list[tuple[str, Path | None]]:
    """Return the names of the files that may be asked for, with those that are there already."""
    files = [(name, folder / name) for name in _FILES if (folder / name).is_file()]
    if not finished:
        return [*files]
    exports = [(name, folder / "exports" / name) for name in EXPORTS]
    return [*files, *((name, path if path.is_file() else None) for name, path in exports)]


def get(folder: Path, name: str, finished: bool) -> Path | None:
    """Return the file of this name; None if there is none.

    Raises:
        HaqError: The run cannot be exported.
    """
    if name in _FILES:
        file = folder / name
        return file if file.is_file() else None
    if name not in EXPORTS or not finished:
        return None
    file = folder / "exports" / name
    with _ONE_AT_A_TIME:
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            EXPORTS[name](folder, file)
    return file


def sha256(file: Path) -> bytes:
    """Return the digest of a file, which is remembered for as long as the file stays as it is."""
    stat = file.stat()
    return _sha256(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=4096)
def _sha256(file: Path, *state: int) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
