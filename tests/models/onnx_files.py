"""Small ONNX files made node by node."""

from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from haq.models.onnx.build import network_of
from haq.models.onnx.inputs import inputs_of, with_fixed_inputs


class Given(NamedTuple):
    """An input without its batch axis."""

    shape: tuple[int, ...]
    kind: str = "normal"
    axis: int = 0


def array(*shape, seed=1, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(np.float32)


def floats(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def graph_of(nodes, inputs, outputs, constants=(), opset=21, name="network"):
    """Return a model; inputs are names with (type, shape), outputs are names."""
    return helper.make_model(
        helper.make_graph(
            nodes, name,
            [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
            [floats(n) if isinstance(n, str) else n for n in outputs],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in dict(constants).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip


_TYPES = {"ids": TensorProto.INT64, "bool": TensorProto.BOOL}


def model_of(operator, operands, attributes, outputs=1, opset=21):
    """Return a model of one operator; operands are ``Given``, constants, or left out (None)."""
    names, inputs, constants = [], {}, {}
    for place, operand in enumerate(operands):
        name = "" if operand is None else f"operand{place}"
        names.append(name)
        if isinstance(operand, Given):
            shape = list(operand.shape)
            shape.insert(operand.axis, "batch")
            inputs[name] = (_TYPES.get(operand.kind, TensorProto.FLOAT), shape)
        elif operand is not None:
            constants[name] = operand
    results = [f"result{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, results, "node", **attributes)
    untyped = [onnx.ValueInfoProto(name=name) for name in results]
    return graph_of([node], inputs, untyped, constants, opset)


def values_of(operands, rows, seed=0):
    generator = np.random.default_rng(seed)
    values = []
    for operand in operands:
        if isinstance(operand, Given):
            shape = (rows, *operand.shape)
            values.append({
                "normal": lambda shape=shape: generator.normal(size=shape).astype(np.float32),
                "positive": lambda shape=shape: generator.uniform(0.1, 3, shape).astype(np.float32),
                "ids": lambda shape=shape: generator.integers(0, 4, shape),
                "bool": lambda shape=shape: generator.integers(0, 2, shape).astype(bool),
            }[operand.kind]())  # fmt: skip
    return values


def network_from(model):
    """Return the network of a model without calling ONNX Runtime, and the model's inputs."""
    inputs = inputs_of("file", model, {}, {})
    two, three = (with_fixed_inputs(model, inputs, rows) for rows in (2, 3))
    return network_of(model, inputs, two, three), inputs


def reference(model, feeds, outputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, feeds)


def both(model, values):
    """Return all outputs of a model, in PyTorch and in ONNX Runtime."""
    network, inputs = network_from(model)
    with torch.no_grad():
        own = network.tensors([torch.from_numpy(value) for value in values])
    feeds = {one.name: one.fed(value) for one, value in zip(inputs.given, values, strict=True)}
    names = [out.name for out in model.graph.output]
    return [own[name].numpy() for name in names], reference(model, feeds, names)
