"""Three lines of Python that run the ONNX file of a run."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

_DTYPES = {
    "F32": "float32", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
"""What safetensors calls the types of inputs, and numpy."""


def snippet(folder: Path) -> str | None:
    """Return code that gives the file ``model.onnx`` of a run an input and prints the answer.

    Returns:
        None where the run's folder does not say what its inputs are.
    """
    try:
        with safe_open(folder / "sample.safetensors", "np") as sample:
            about = sample.metadata() or {}
            given = [sample.get_slice(str(n)) for n in range(len(list(sample.keys())))]
            arrays = [_ones(one.get_shape(), one.get_dtype()) for one in given]
        names = json.loads(about.get("names", "[]")) or _numbered(len(arrays))
        pairs = ", ".join(f'"{name}": {a}' for name, a in zip(names, arrays, strict=True))
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    return (
        "import numpy, onnxruntime\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f"print(session.run(None, {{{pairs}}}))"
    )


def _ones(shape: list[int], dtype: str) -> str:
    return f"numpy.ones({(1, *shape[1:])!r}, numpy.{_DTYPES[dtype]})"


def _numbered(count: int) -> list[str]:
    return ["images"] if count == 1 else [f"input{place}" for place in range(count)]
