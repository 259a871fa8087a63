"""Stand-ins for TensorRT's package and for a GPU, as far as networks are measured with them.

An engine has a layer for each product of the ONNX file, which takes a known time: its precision is
that of what it reads, by the types of the file. Time passes on the device alone, by what it runs.
"""

import contextlib
import json
import sys
import types

import onnx
import torch

OF_TYPE = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}
PRICE = {"Float": 8.0, "Half": 4.0, "Int8": 1.0}
"""Microseconds of a layer's unit of work; its number in the file says how many it has."""

CHANGE = 0.5
"""Microseconds of a tensor that a layer in another precision reads."""


class Device:
    """Time that has passed, in microseconds, and the graph that is being captured."""

    now = 0.0
    capturing = None


def layers_of(text, version, stubborn=()):
    """Return the layers of an engine as its inspector lists them, with their times."""
    model = onnx.load_from_string(text)
    made = {name: node for node in model.graph.node for name in node.output}
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    floats = OF_TYPE[next(k for k in kinds.values() if k in OF_TYPE)]
    layers, before = [], None
    products = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    for number, node in enumerate(products, 1):
        weight = made.get(node.input[1])
        integers = weight is not None and weight.op_type == "DequantizeLinear"
        kind = "Int8" if integers and node.name not in stubborn else floats
        field = (
            {"DataType": kind, "Format": "kLINEAR"} if version >= 11 else {"Format/Datatype": kind}
        )
        us = number * PRICE[kind] + CHANGE * (before not in (None, kind))
        layers.append(
            ({"Name": f"{node.input[1]} + {node.name} + relu", "LayerType": "CaskConvolution",
              "Inputs": [{"Name": "x", **field}], "Outputs": [{"Name": "y", **field}],
              "Metadata": f"[ONNX Layer: {weight.name if integers else 'w'}]\x1e"
                          f"[ONNX Layer: {node.name}]"}, us)
        )  # fmt: skip
        before = kind
    return model, layers


class Context:
    def __init__(self, layers):
        self._layers, self.profiler, self.addresses = layers, None, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if Device.capturing is not None:
            Device.capturing.calls.append(self)
            return
        for layer, us in self._layers:
            Device.now += us
            if self.profiler:
                self.profiler.report_layer_time(layer["Name"], us / 1e3)


class Engine:
    def __init__(self, text, version, stubborn):
        self._model, self._layers = layers_of(text, version, stubborn)
        self._ends = [*self._model.graph.input, *self._model.graph.output]
        self.num_io_tensors = len(self._ends)

    def create_engine_inspector(self):
        text = json.dumps({"Layers": [layer for layer, _ in self._layers]})
        return types.SimpleNamespace(get_engine_information=lambda form: text)

    def create_execution_context(self):
        return Context(self._layers)

    def get_tensor_name(self, at):
        return self._ends[at].name

    def get_tensor_shape(self, name):
        end = next(end for end in self._ends if end.name == name)
        sizes = [size.dim_value for size in end.type.tensor_type.shape.dim]
        assert all(sizes)  # a batch that is still free would need a profile
        return sizes

    def get_tensor_dtype(self, name):
        return "FLOAT"


def package(version=10, stubborn=(), broken=False):
    """Return a module like TensorRT's.

    Args:
        version: Its major one.
        stubborn: Layers that do not run in int8, whatever the file says.
        broken: Whether no file is read.
    """

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            self._network = network

        def parse(self, text):
            self._network.text = text
            return not broken

        def get_error(self, at):
            return "In node 3: unsupported"

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            assert flags == 1 << 1
            return types.SimpleNamespace()

        def create_builder_config(self):
            config = types.SimpleNamespace()
            config.create_timing_cache = lambda text: types.SimpleNamespace(
                serialize=lambda: text + b"."
            )
            config.set_timing_cache = lambda cache, mismatch: setattr(config, "cache", cache)
            config.get_timing_cache = lambda: config.cache
            return config

        def build_serialized_network(self, network, config):
            assert config.profiling_verbosity == "DETAILED"
            return network.text

    class Profiler:
        pass

    module = types.ModuleType("tensorrt")
    module.__version__ = f"{version}.0.0"
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.Builder, module.OnnxParser, module.IProfiler = Builder, Parser, Profiler
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    module.ProfilingVerbosity = types.SimpleNamespace(DETAILED="DETAILED")
    module.LayerInformationFormat = types.SimpleNamespace(JSON="JSON")
    kinds = ("FLOAT", "HALF", "INT64", "INT32", "BOOL")
    module.DataType = types.SimpleNamespace(**{kind: kind for kind in kinds})
    module.Runtime = lambda logger: types.SimpleNamespace(
        deserialize_cuda_engine=lambda text: Engine(text, version, stubborn)
    )
    return module


class Graph:
    def __init__(self):
        self.calls = []

    def replay(self):
        for context in self.calls:
            context.execute_async_v3(0)


class Event:
    def __init__(self, enable_timing=False):
        self.at = None

    def record(self):
        self.at = Device.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) / 1e3


@contextlib.contextmanager
def capture(graph, stream):
    Device.capturing = graph
    yield
    Device.capturing = None


def install(monkeypatch, **options):
    """Let this machine seem to have a GPU and TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", package(**options))
    ones, cuda = torch.ones, torch.cuda
    stream = type("Stream", (), {"cuda_stream": 7, "synchronize": lambda self: None})
    for name, value in {
        "is_available": lambda: True, "Stream": stream, "CUDAGraph": Graph, "graph": capture,
        "Event": Event, "stream": lambda stream: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(
        torch, "ones",
        lambda *sizes, device=None, **more: ones(
            *sizes, device=None if device == "cuda" else device, **more
        ),
    )  # fmt: skip
