"""Reading an ONNX file that somebody else wrote, and refusing what is not a float network."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx.inliner
from onnx import AttributeProto, TensorProto, external_data_helper, helper

from haq.errors import ModelError

OPSET = 21
"""Of the operators that models are brought to, unless their own is later: the first with INT4."""

LARGEST = 2**31
"""Values of a tensor above which a file is not believed."""

_DOMAINS = ("", "ai.onnx")

_OTHERS = {
    b"PK\x03\x04": "a zip archive, as PyTorch and Keras write them",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"GGUF": "a GGUF file",
    b"TFL3": "a TensorFlow Lite file",
}

_QUANTIZED_TYPES: Mapping[int, str] = {
    getattr(TensorProto, name): name.lower()
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
}

_HALF: Mapping[int, str] = {
    TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64",
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Return the model of a file with all its data, its operators brought to opset 21 or later.

    Raises:
        ModelError: In one sentence: the file is missing, damaged, of another kind, quantized or
            half precision already, or its data lie elsewhere.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give an ONNX file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    model = _parsed(path, content)
    _check_external(path, model)
    _check_kind(path, model)
    external_data_helper.load_external_data_for_model(model, str(path.parent))
    for tensor in tensors(model.graph):
        _check_values(path, tensor)
    return _modern(path, model)


def _parsed(path: Path, content: bytes) -> onnx.ModelProto:
    for start, kind in _OTHERS.items():
        if content.startswith(start) or (start == b"TFL3" and content[4:8] == start):
            raise ModelError(f"{path} is {kind}, not an ONNX file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own
        raise ModelError(f"{path} is not an ONNX file, or was cut off") from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX file, or an empty one: it has no operators")
    if not model.graph.output:
        raise ModelError(f"{path} names no output, so that it gives nothing: export it again")
    _check_opset(path, model)
    return model


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise ModelError(f"{path} uses none of ONNX's own operators, which alone are read")
    if not 1 <= versions[0] <= newest:
        raise ModelError(
            f"{path} is of opset {versions[0]}, and onnx {onnx.__version__} knows 1 to {newest}: "
            f"export it with opset_version={min(OPSET, newest)}, or install a newer onnx and "
            "onnxruntime"
        )


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) and inner.node:
                    yield from graphs(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor that is stored in a graph or in one of its nodes."""
    for part in graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t


def _check_external(path: Path, model: onnx.ModelProto) -> None:
    """Refuse data in other files that are missing, or lie outside the file's folder."""
    folder = path.parent.resolve()
    for tensor in tensors(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        try:
            info = external_data_helper.ExternalDataInfo(tensor)
            offset, length = int(info.offset or 0), int(info.length or 0)
        except ValueError as error:
            raise ModelError(f"{path} is damaged: {tensor.name!r} has no readable place") from error
        place = (folder / info.location).resolve()
        if Path(info.location).is_absolute() or folder not in place.parents:
            raise ModelError(
                f"{path}: the data of {tensor.name!r} are said to lie in {info.location!r}, "
                "outside the file's folder, and are not read there"
            )
        if not place.is_file():
            raise ModelError(
                f"{path}: the data of {tensor.name!r} are missing: put {info.location!r} beside "
                "the file"
            )
        if offset < 0 or length < 0 or offset + length > place.stat().st_size:
            raise ModelError(f"{path}: {info.location!r} ends before the data of {tensor.name!r}")


def _check_kind(path: Path, model: onnx.ModelProto) -> None:
    for part in graphs(model.graph):
        if part.sparse_initializer:
            raise ModelError(f"{path} stores sparse tensors, which are not read")
        for node in part.node:
            if _is_quantized(node):
                raise ModelError(
                    f"{path} is already quantized ({node.op_type} in node {label(node)!r}): give "
                    "the float file that it was made from"
                )
    for tensor in tensors(model.graph):
        if tensor.data_type in _QUANTIZED_TYPES:
            raise ModelError(
                f"{path} is already quantized ({tensor.name!r} is of "
                f"{_QUANTIZED_TYPES[tensor.data_type]}): give the float file that it was made from"
            )
        if tensor.data_type in _HALF and math.prod(tensor.dims) > 1:
            raise ModelError(
                f"{path} has weights of {_HALF[tensor.data_type]} ({tensor.name!r}): give the file "
                "in float32"
            )


def _is_quantized(node: onnx.NodeProto) -> bool:
    kind = node.op_type
    return (
        kind in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits")
        or kind in ("QMoE", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "QAttention")
        or kind.startswith(("QLinear", "QGemm", "DynamicQuantize", "MatMulInteger", "ConvInteger"))
    )


def label(node: onnx.NodeProto) -> str:
    """Return what a node is called: its name, that of its result without one."""
    return node.name or next((name for name in node.output if name), node.op_type)


_FIELDS: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data", TensorProto.INT64: "int64_data",
    TensorProto.DOUBLE: "double_data", TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data", TensorProto.STRING: "string_data",
}  # fmt: skip


def _check_values(path: Path, tensor: TensorProto) -> None:
    """Refuse a tensor that says it has more values, or fewer, than the file holds."""
    count = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims) or count > LARGEST:
        shape = "x".join(map(str, tensor.dims))
        raise ModelError(f"{path} is damaged: {tensor.name!r} is said to be of {shape}")
    if tensor.HasField("raw_data"):
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        stored = len(tensor.raw_data) // size
    else:
        stored = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if stored != count:
        raise ModelError(
            f"{path} is damaged: {tensor.name!r} needs {count} values and the file has {stored}"
        )


def _modern(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which every operator has the form of opset 21, or its own later one."""
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check_nodes(path, model)
        onnx.checker.check_model(_with_shapes(model))
    except ModelError:
        raise
    except Exception as error:  # of several kinds without a base of their own
        raise ModelError(f"{path} is not valid ONNX: {_first_line(error)}") from error
    for part in graphs(model.graph):
        for node in part.node:
            if node.domain not in _DOMAINS:
                raise ModelError(
                    f"{path} has an operator of another library: {node.domain}.{node.op_type} in "
                    f"node {label(node)!r}; only ONNX's own are read"
                )
    return model


def _check_nodes(path: Path, model: onnx.ModelProto) -> None:
    """Refuse nodes of no operator, and such as read what nothing before them gives."""
    version = next(entry.version for entry in model.opset_import if entry.domain in _DOMAINS)
    for part in graphs(model.graph):
        for node in part.node:
            known = onnx.defs.has(node.op_type, version, "")
            if node.domain in _DOMAINS and not known:
                raise ModelError(
                    f"{path}: operator {node.op_type} in node {label(node)!r} is none of ONNX's "
                    f"opset {version}"
                )
    graph = model.graph
    given = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        missing = next((name for name in node.input if name not in given), None)
        if missing is not None:
            raise ModelError(
                f"{path} is damaged: node {label(node)!r} ({node.op_type}) reads {missing!r}, "
                "which neither an input nor a node before it gives"
            )
        given.update(node.output)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose outputs have types and shapes, which ONNX Runtime does without."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for part in graphs(whole.graph):
        for value in part.output:
            if not value.HasField("type"):
                value.type.tensor_type.elem_type = TensorProto.FLOAT
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()
    return whole


def brought_to_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without branches whose operators have the form of opset 21, or a later one.

    Raises:
        ModelError: An operator of an old opset has no such form.
    """
    version = next(entry.version for entry in model.opset_import if entry.domain in _DOMAINS)
    if version >= OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        raise ModelError(
            f"its operators of opset {version} cannot be brought to opset {OPSET}: "
            f"{_first_line(error)}"
        ) from error
    converted.graph.name = model.graph.name
    return converted


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
