"""What ONNX Runtime does with a file, as a program of its own: a file may crash it.

``python child.py FOLDER`` loads ``model.onnx`` of the folder as ``request.json`` says: it writes
what became of it to ``optimized.onnx``, or runs it on ``inputs.npz`` and writes ``outputs.npz``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

_MEMORY = 16 * 2**30
"""Address space of the process in bytes, where the system can limit it."""


def main(folder: Path) -> None:
    """Do what the request in a folder says."""
    _limit_memory()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL
    if request["task"] == "optimize":
        options.graph_optimization_level = level.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=request.get("without", []),
    )  # fmt: skip
    if request["task"] == "run":
        with np.load(folder / "inputs.npz") as inputs:
            feeds = {name: inputs[str(n)] for n, name in enumerate(request["inputs"])}
        results = session.run(request["outputs"], feeds)
        np.savez(folder / "outputs.npz", **{str(n): value for n, value in enumerate(results)})


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        print(str(error).strip() or type(error).__name__, file=sys.stderr)
        sys.exit(1)
