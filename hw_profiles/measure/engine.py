"""What TensorRT made of a network: the precision of every layer of an engine, by its own account.

An engine fuses layers, moves data between formats, and may run a layer in another precision than
its quantizers say. What its inspector prints (``IEngineInspector`` at verbosity DETAILED, as
``trtexec --exportLayerInfo`` writes it) is read here, so that a row that claims int8 is one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from haq.allocation.policy import Policy
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
    "fullyconnected", "fully_connected", "cask", "fusion",
)  # fmt: skip
"""Kinds of layers that multiply."""

_MAYBE = ("myelin", "kgen")
"""Kinds of layers that multiply or do something else: believed where no other names a layer."""

_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")  # in "Metadata"
_JOINT = re.compile(r"\s*\+\s*")
_SUFFIX = re.compile(r"_myl\d+_\d+$")  # what the engine adds to names


class Ran(NamedTuple):
    """A layer of an engine.

    Attributes:
        name: As the engine calls it.
        kind: Its type, in lower case.
        inputs: Precisions of the tensors that it reads.
        outputs: And of those that it gives.
        nodes: Names of the nodes of the ONNX file that went into it.
    """

    name: str
    kind: str
    inputs: tuple[Precision, ...]
    outputs: tuple[Precision, ...]
    nodes: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        """Whether it holds a product."""
        return any(word in self.kind for word in _PRODUCTS)

    @property
    def may_multiply(self) -> bool:
        """Whether it may hold one."""
        return self.multiplies or any(word in self.kind for word in _MAYBE)


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
        reads, gives = (
            tuple(_precision(_format(tensor)) for tensor in layer[side])
            for side in ("Inputs", "Outputs")
        )
        name = str(layer["Name"])
        nodes = _NODE.findall(str(layer.get("Metadata", ""))) or _JOINT.split(name)
        cut = tuple(_SUFFIX.sub("", node) for node in nodes)
        return Ran(name, str(layer["LayerType"]).lower(), reads, gives, cut)
    except (KeyError, TypeError, AttributeError) as error:
        raise TargetError(
            f"a layer of the engine's description is not as TensorRT's inspector writes it "
            f"({error}); build the engine with ProfilingVerbosity.DETAILED"
        ) from error


def _format(tensor: Mapping[str, Any]) -> str:
    """Return what is said of a tensor's values: in one field, or since version 11 in one alone."""
    if "Format/Datatype" in tensor:
        return str(tensor["Format/Datatype"])
    return str(tensor["DataType"])


def _precision(written: str) -> Precision:
    """Return the precision of a tensor from its format.

    >>> _precision("Four wide channel vectorized row major Int8 format"), _precision("Half")
    ('int8', 'float16')
    """
    low = written.lower()
    return next((precision for word, precision in _WORDS if word in low), "other")


def owners(engine: Collection[Ran], layers: Collection[str]) -> dict[str, str]:
    """Return which layer of a network the time of each layer of an engine belongs to.

    It is the last of the network's layers among its nodes; what has none belongs to the one before.

    Args:
        engine: From ``read_engine``, in the order in which it is run.
        layers: Names of the network's layers, in order of execution.
    """
    latest = next(iter(layers))
    owner = {}
    for one in engine:
        named = [layer for layer in layers if any(_belongs(node, layer) for node in one.nodes)]
        latest = named[-1] if named else latest
        owner[one.name] = latest
    return owner


def precisions(
    engine: Collection[Ran], layers: Collection[str]
) -> dict[str, tuple[Precision, ...]]:
    """Return in which precisions each layer of a network is computed: one, unless it is cut up.

    A layer runs in that of what it reads first, in the engine's layers that its node went into.

    Args:
        engine: From ``read_engine``.
        layers: Names of the network's layers, as their nodes are called.

    Raises:
        TargetError: A layer is in no layer of the engine that multiplies.
    """
    ran: dict[str, tuple[Precision, ...]] = {}
    for layer in layers:
        of_layer = [one for one in engine if one.inputs and any(_is(n, layer) for n in one.nodes)]
        sure = [one for one in of_layer if one.multiplies]
        chosen = sure or [one for one in of_layer if one.may_multiply]
        if chosen:
            ran[layer] = tuple(dict.fromkeys(one.inputs[0] for one in chosen))
    missing = [layer for layer in layers if layer not in ran]
    if missing:
        raise TargetError(
            f"the engine says nothing of layer{'s' * (len(missing) > 1)} {', '.join(missing)}: it "
            "cannot be told in which precision they run"
        )
    return ran


def _is(node: str, layer: str) -> bool:
    """Return whether a node computes a layer: its name, or that of another call of it.

    >>> _is("conv1", "conv1"), _is("conv1/1", "conv1"), _is("conv1.quantized", "conv1")
    (True, True, False)
    """
    return node == layer or node.startswith(f"{layer}/")


def _belongs(node: str, layer: str) -> bool:
    return _is(node, layer) or node.startswith(f"{layer}.")


_FLOATS = ("float32", "float16", "bfloat16")


def misplaced(engine: Collection[Ran], policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the layers that run in another precision than their bits claim, and in which they do.

    Of a quantized layer that is int8, of a float one any float.

    Raises:
        TargetError: As ``precisions``.
    """
    for layer, ran in precisions(engine, list(policy)).items():
        claimed = _FLOATS if policy[layer].floats else ("int8",)
        if not set(ran) <= set(claimed):
            yield layer, " and ".join(ran)


def check_precisions(engine: Collection[Ran], policy: Policy) -> None:
    """Refuse an engine in which a layer runs in another precision than its bits claim.

    Raises:
        TargetError: The latency would be that of something else.
    """
    for layer, ran in misplaced(engine, policy):
        raise TargetError(
            f"layer {layer!r} at {policy[layer]} runs in {ran} in TensorRT's engine, so its "
            "latency is that of something else; leave it float, or build the engine anew"
        )
