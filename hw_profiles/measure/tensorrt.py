"""Networks in TensorRT: engines in the types of their files, timed by events around CUDA graphs.

TensorRT computes in the types that stand in a file: int8 between quantizers whose zero points are
0, float32 or float16 elsewhere. Which precision a layer really has is read from the engine.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx

from haq.allocation.policy import Policy
from haq.errors import TargetError
from haq.hw_profiles.measure import engine
from haq.hw_profiles.measure.nvidia import cuda, tensorrt
from haq.hw_profiles.measure.onnx_runtime import Setup

_TIMED: dict[str, bytes] = {}
"""What kernels took when engines were built, so that equal layers are not tried again."""

LEAST_US = 200.0
"""How long a sample lasts at least: events tell half a microsecond."""


def with_batch(model: bytes, batch: int) -> bytes:
    """Return a file whose inputs are for a number of images, where that was free."""
    fixed = onnx.load_from_string(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for size in value.type.tensor_type.shape.dim[:1]:
            if not size.dim_value:
                size.dim_value = batch
    serialized: bytes = fixed.SerializeToString()
    return serialized


def built(model: bytes) -> Any:
    """Return the engine of a file, in the types that stand in it, with all details.

    Raises:
        TargetError: TensorRT does not read the file, or makes no engine of it.
    """
    trt = tensorrt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # From version 11 on there are no others.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors))
        raise TargetError(f"TensorRT {trt.__version__} does not read the network: {errors}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = config.create_timing_cache(_TIMED.get(str(trt.__version__), b""))
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    _TIMED[str(trt.__version__)] = bytes(config.get_timing_cache().serialize())
    made = None if plan is None else trt.Runtime(logger).deserialize_cuda_engine(plan)
    if made is None:
        raise TargetError(f"TensorRT {trt.__version__} makes no engine of the network")
    return made


def described(made: Any) -> list[engine.Ran]:
    """Return the layers of an engine, by its inspector.

    Raises:
        TargetError: As ``haq.hw_profiles.measure.engine.read_engine``.
    """
    inspector = made.create_engine_inspector()
    text = inspector.get_engine_information(tensorrt().LayerInformationFormat.JSON)
    return engine.read_engine(text)


class Engine:
    """A network in TensorRT, as ``haq.hw_profiles.measure.network`` has them."""

    def __init__(self, model: bytes, setup: Setup, layers: Sequence[str]):
        self._setup = setup
        self._built = built(with_batch(model, setup.batch))
        self.ran = described(self._built)
        self.owners: Mapping[str, str] = engine.owners(self.ran, layers)

    def misplaced(self, policy: Policy) -> Iterator[tuple[str, str]]:
        """Yield layers that run in another precision, and in which."""
        return engine.misplaced(self.ran, policy)

    def check(self, policy: Policy) -> None:
        """Say so if a layer runs in another precision than its bits claim."""
        engine.check_precisions(self.ran, policy)

    def reopened(self) -> "Engine":
        """Return itself: every call has tensors of its own."""
        return self

    def call(self) -> Callable[[], float]:
        """Return what computes one batch as a CUDA graph, and says how long that took."""
        torch = cuda()
        context, held = self._context(torch)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        for _ in range(self._setup.warm_ups):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            context.execute_async_v3(stream.cuda_stream)

        def timed(times: int) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.stream(stream):
                begin.record()
                for _ in range(times):
                    graph.replay()
                end.record()
            end.synchronize()
            assert context and held  # they must live as long as the graph
            return float(1e3 * begin.elapsed_time(end) / times)

        timed(self._setup.warm_ups)
        times = max(1, math.ceil(LEAST_US / max(timed(10), 1e-3)))
        return lambda: timed(times)

    def node_times(self, runs: int) -> Mapping[str, float]:
        """Return the times that TensorRT's profiler tells of its layers."""
        trt, torch = tensorrt(), cuda()
        context, held = self._context(torch)
        sums: dict[str, float] = {}

        base: Any = trt.IProfiler  # the package has no types

        class Times(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                sums[layer_name] = sums.get(layer_name, 0.0) + 1e3 * ms

        stream = torch.cuda.Stream()
        for _ in range(self._setup.warm_ups):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        context.profiler = times = Times()
        for _ in range(runs):
            context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
        assert times and held
        return {name: total / runs for name, total in sums.items()}

    def _context(self, torch: Any) -> tuple[Any, list[Any]]:
        """Return a context with all tensors in place, and these tensors."""
        trt, held = tensorrt(), []
        kinds = {
            trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16,
            trt.DataType.INT64: torch.int64, trt.DataType.INT32: torch.int32,
            trt.DataType.BOOL: torch.bool,
        }  # fmt: skip
        context = self._built.create_execution_context()
        for at in range(self._built.num_io_tensors):
            name = self._built.get_tensor_name(at)
            sizes = tuple(self._built.get_tensor_shape(name))
            kind = kinds[self._built.get_tensor_dtype(name)]
            held.append(torch.ones(sizes, dtype=kind, device="cuda"))
            context.set_tensor_address(name, held[-1].data_ptr())
        return context, held
