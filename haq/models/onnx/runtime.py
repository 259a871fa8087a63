"""ONNX Runtime as the one that normalises files and says what they answer, in a process apart."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from haq.errors import ModelError

Array = NDArray[Any]

SECONDS = 300
"""After so long ONNX Runtime is taken to hang."""

_CHILD = Path(__file__).with_name("child.py")

_KEPT_APART = [
    "CommonSubexpressionElimination", "ConstantSharing", "ConvBNFusion", "ConvAddFusion",
    "ConvMulFusion", "MatMulAddFusion", "MatMul_BatchNormalization_Fusion", "GemmSumFusion",
    "GemmTransposeFusion", "DivMulFusion", "ReluClipFusion", "FuseReluClip", "TransposeOptimizer",
    "PadFusion", "Pad_Fusion", "ReshapeFusion", "RemoveDuplicateCastTransformer", "QDQFinalCleanup",
    "LabelEncoderFusion", "EnsureUniqueDQForNodeUnit", "WeightBiasQuantization",
]  # fmt: skip
"""Optimizers of the level "basic" that would put other operators in the places of a file's own."""


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what ONNX Runtime makes of a model whose shapes are fixed: constants are worked out.

    Raises:
        ModelError: It does not load the model, or crashes.
    """
    with tempfile.TemporaryDirectory() as folder:
        _call(Path(folder), model, {"task": "optimize", "without": _KEPT_APART})
        return onnx.load(Path(folder) / "optimized.onnx")


def answers(
    model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str]
) -> list[Array]:
    """Return tensors of a model for some inputs, computed as the file says, without optimizations.

    Args:
        model: Left as it is.
        feeds: Inputs by name.
        outputs: Tensors of the outermost graph.

    Raises:
        ModelError: ONNX Runtime does not load or run the model, or crashes.
    """
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    known = {value.name for value in wanted.graph.output}
    for name in dict.fromkeys(outputs):
        if name not in known:
            wanted.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, Any] = {str(n): value for n, value in enumerate(feeds.values())}
        np.savez(Path(folder) / "inputs.npz", **arrays)
        request = {"task": "run", "inputs": list(feeds), "outputs": list(outputs)}
        _call(Path(folder), wanted, request)
        with np.load(Path(folder) / "outputs.npz") as results:
            return [results[str(place)] for place in range(len(outputs))]


def _call(folder: Path, model: onnx.ModelProto, request: Mapping[str, Any]) -> None:
    onnx.save(model, folder / "model.onnx")
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-P", str(_CHILD), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"ONNX Runtime did not finish with it within {SECONDS} s") from error
    if done.returncode < 0 or done.returncode > 1:
        raise ModelError(f"ONNX Runtime crashes on it (exit code {done.returncode})")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ModelError(f"ONNX Runtime does not take it: {plain(lines[-1])}")


def plain(reason: str) -> str:
    """Return a message of ONNX Runtime without its codes, its source files and temporary paths.

    >>> plain("[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/x/model.onnx failed:No node")
    'No node'
    """
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    reason = re.sub(r"^Load model from \S+ failed: ?", "", reason)
    return re.sub(r"^\S*onnxruntime\S*:\d+ [^)]*\)( const)? ?", "", reason)
