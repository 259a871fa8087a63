"""What TensorRT made of a network: the precision of every layer of an engine, by its own account.

An engine fuses layers, moves data between formats, and may run a layer in another precision than
its quantizers say. What its inspector prints (``IEngineInspector`` at verbosity DETAILED, as
``trtexec --exportLayerInfo`` writes it) is read here, so that a row that claims int8 is one.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from haq.allocation.policy import Bits, Policy
from haq.errors import TargetError

Precision = Literal["float32", "float16", "bfloat16", "int8", "fp8", "other"]

_WORDS: tuple[tuple[str, Precision], ...] = (
    ("int8", "int8"), ("fp8", "fp8"), ("e4m3", "fp8"), ("bfloat16", "bfloat16"),
    ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"),
    ("float", "float32"),
)  # fmt: skip
"""Words of a tensor's format, in the order in which they are looked for."""

_PRODUCTS = (
    "convolution", "deconvolution", "gemm", "matmul", "matrixmultiply", "matrix_multiply",
    "fullyconnected", "fully_connected", "cask", "myelin", "kgen",
)  # fmt: skip
"""Kinds of layers that may multiply; others only move or change values."""


class Ran(NamedTuple):
    """A layer of an engine.

    Attributes:
        name: As the engine calls it: the nodes that were fused, joined by " + ".
        kind: Its type, in lower case.
        inputs: Precisions of the tensors that it reads.
        outputs: And of those that it gives.
    """

    name: str
    kind: str
    inputs: tuple[Precision, ...]
    outputs: tuple[Precision, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it may hold a product."""
        return any(word in self.kind for word in _PRODUCTS)


def read_engine(text: str) -> list[Ran]:
    """Return the layers of an engine from what its inspector prints.

    Args:
        text: JSON with "Layers", each with "Name", "LayerType", "Inputs" and "Outputs".

    Raises:
        TargetError: It is no such text, or was made without details.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"the engine's description is not that of TensorRT's inspector ({error})"
        ) from error
    if not isinstance(layers, list) or any(not isinstance(layer, dict) for layer in layers):
        raise TargetError(
            "the engine's description has names of layers alone; build it with "
            "ProfilingVerbosity.DETAILED"
        )
    return [_ran(layer) for layer in layers]


def _ran(layer: Mapping[str, Any]) -> Ran:
    try:
        sides = [
            tuple(_precision(str(tensor["Format/Datatype"])) for tensor in layer[side])
            for side in ("Inputs", "Outputs")
        ]
        return Ran(str(layer["Name"]), str(layer["LayerType"]).lower(), *sides)
    except (KeyError, TypeError) as error:
        raise TargetError(
            f"a layer of the engine's description is not as TensorRT's inspector writes it "
            f"({error}); build the engine with ProfilingVerbosity.DETAILED"
        ) from error


def _precision(written: str) -> Precision:
    """Return the precision of a tensor from its format.

    >>> _precision("Four wide channel vectorized row major Int8 format"), _precision("Half")
    ('int8', 'float16')
    """
    low = written.lower()
    return next((precision for word, precision in _WORDS if word in low), "other")


def precisions(engine: Collection[Ran], layers: Collection[str]) -> dict[str, Precision]:
    """Return in which precision each layer of a network is computed.

    A layer runs in that of what it reads first, in the engine's layer that its node went into.

    Args:
        engine: From ``read_engine``.
        layers: Names of the network's layers, as their nodes are called or begin.

    Raises:
        TargetError: A layer is in no layer of the engine that multiplies.
    """
    ran: dict[str, Precision] = {}
    for one in engine:
        if one.multiplies and one.inputs:
            for node in one.name.split(" + "):
                for layer in layers:
                    if _is_of(node.strip(), layer):
                        ran.setdefault(layer, one.inputs[0])
    missing = [layer for layer in layers if layer not in ran]
    if missing:
        raise TargetError(
            f"the engine says nothing of layer{'s' * (len(missing) > 1)} {', '.join(missing)}: it "
            "cannot be told in which precision they run"
        )
    return ran


def _is_of(node: str, layer: str) -> bool:
    return node == layer or node.startswith((f"{layer}.", f"{layer}/", f"{layer}:"))


def check_precisions(engine: Collection[Ran], policy: Policy) -> None:
    """Refuse an engine in which a layer runs in another precision than its bits claim.

    Of a quantized layer that is int8, of a float one any float.

    Raises:
        TargetError: The latency would be that of something else.
    """
    for layer, ran in precisions(engine, list(policy)).items():
        bits: Bits = policy[layer]
        claimed = ("float32", "float16", "bfloat16") if bits.floats else ("int8",)
        if ran not in claimed:
            raise TargetError(
                f"layer {layer!r} at {bits} runs in {ran} in TensorRT's engine, so its latency is "
                "that of something else; leave it float, or build the engine anew"
            )
