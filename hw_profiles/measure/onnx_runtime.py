"""Networks in ONNX Runtime: setups, sessions, the graph that is run, and the times of its nodes."""

import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from haq.errors import HaqError, TargetError, look_up
from haq.hw_profiles.measure.nvidia import check_tensorrt
from haq.hw_profiles.measure.timing import CLOCKS, QUANTILE, Timing, sampled

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class Setup:
    """Under which circumstances networks are measured; figures of two setups are not comparable.

    Attributes:
        provider: A name in ``PROVIDERS``.
        threads: For one operator; they do not spin while they wait.
        batch: Images computed at once.
        floats: What float layers compute in: "float32", or "float16" on a GPU.
    """

    provider: str = "cpu"
    threads: int = 1
    batch: int = 1
    floats: str = "float32"

    @property
    def clock(self) -> str:
        """Which of ``CLOCKS`` is read: that of the thread where one thread of the CPU computes.

        Windows advances it 64 times a second only, so there it is the wall's.
        """
        alone = self.provider == "cpu" and self.threads == 1
        return "thread CPU time" if alone and sys.platform != "win32" else "wall time"

    @property
    def warm_ups(self) -> int:
        """Calls before the first that counts: a GPU chooses its kernels in them."""
        return 5 if self.provider == "cpu" else 50

    @property
    def options(self) -> dict[str, str | int | float | bool]:
        """Return what else decides how fast a network runs, as it is kept in a profile."""
        if self.provider == "tensorrt":
            return {
                "provider": PROVIDERS[self.provider], "threads": self.threads,
                "floats": self.floats, "codes": "int8, zero point 0", "typing": "strong",
                "cuda_graph": True, "clock": "CUDA events", "statistic": f"p{QUANTILE}",
                "warm_ups": self.warm_ups,
            }  # fmt: skip
        own = {} if self.provider == "cpu" else {"floats": self.floats}
        return {
            "provider": PROVIDERS[self.provider], "threads": self.threads, **own,
            "inter_op_threads": 1, "spinning": False, "optimization": "ORT_ENABLE_ALL",
            "disabled_optimizers": "WeightBiasQuantization", "io_binding": True,
            "clock": self.clock, "statistic": f"p{QUANTILE}", "warm_ups": self.warm_ups,
        }  # fmt: skip


FLOATS = ("float32", "float16")
"""What float layers may compute in."""


def check_floats(name: str, provider: str) -> None:
    """Say so if float layers cannot compute in some type.

    Raises:
        HaqError: There is no such type, or it is of GPUs alone.
    """
    look_up(dict.fromkeys(FLOATS), "type of floats", name)
    if provider == "cpu" and name != "float32":
        raise HaqError(
            f"floats {name}: ONNX Runtime's CPU kernels compute in float32 and convert; leave "
            "--floats out, or measure a GPU by --provider"
        )


def check_provider(name: str) -> None:
    """Say so if ONNX Runtime cannot use a provider here.

    TensorRT is asked without ONNX Runtime: see ``haq.hw_profiles.measure.network``.

    Raises:
        HaqError: There is no such provider.
        TargetError: The ONNX Runtime installed here does not have it, or TensorRT is not there.
    """
    provider = look_up(PROVIDERS, "provider", name)
    if name == "tensorrt":
        check_tensorrt()
        return
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise TargetError(
            f"provider {name!r} needs {provider}, but ONNX Runtime {onnxruntime.__version__} finds "
            f"only {', '.join(available)} here; install the package with that provider, or measure "
            "with --provider cpu"
        )


def session(
    model: bytes, setup: Setup, optimised: Path | None = None, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Return a session with all graph optimisations that leaves float layers float.

    Args:
        model: A serialised model.
        setup: Provider and threads.
        optimised: Where to write the graph as it is run.
        profile: How the file with the times of single nodes begins, where those are recorded.

    Raises:
        TargetError: ONNX Runtime does not load the model, or not on the provider asked for.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = setup.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    provider = PROVIDERS[setup.provider]
    try:
        started = onnxruntime.InferenceSession(
            model, options, providers=_providers(setup.provider),
            # It quantizes the weights of a float layer that stands between two integer ones.
            disabled_optimizers=["WeightBiasQuantization"],
        )  # fmt: skip
    except Exception as error:  # its exceptions have no common base of their own
        raise TargetError(f"ONNX Runtime cannot load the model on {provider}: {error}") from error
    if started.get_providers()[0] != provider:
        raise TargetError(f"{provider} does not start here: ONNX Runtime fell back on another")
    return started


def _providers(name: str) -> list[Any]:
    return [PROVIDERS["cuda"], PROVIDERS["cpu"]] if name == "cuda" else [PROVIDERS["cpu"]]


def answers(
    network: onnxruntime.InferenceSession, images: NDArray[np.float32], batch: int = 100
) -> NDArray[np.float32]:
    """Return the first output (N, ...) for images (N, C, H, W), computed in batches."""
    name = network.get_inputs()[0].name
    parts = [
        network.run(None, {name: images[start : start + batch]})[0]
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


_NUMPY: Mapping[str, type[np.generic]] = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip

Feed = Mapping[str, NDArray[Any]]
"""Name of an input to its values, (N, ...)."""


class Bound:
    """A session with input and output in place, on the provider's device; ``run`` is one call."""

    def __init__(
        self,
        network: onnxruntime.InferenceSession,
        setup: Setup,
        seed: int = 0,
        given: Feed | None = None,
    ):
        """Put inputs in place: those that are given, or normal random numbers, or tokens of 1."""
        self._session = network
        self._binding = network.io_binding()
        self._waits = setup.provider != "cpu"
        device = "cuda" if self._waits else "cpu"
        generator = np.random.default_rng(seed)
        self._held = []  # the binding does not keep its buffers alive
        for place in network.get_inputs():
            if given is not None and place.name in given:
                rows = given[place.name]
                values = np.resize(rows, (setup.batch, *rows.shape[1:]))
            else:
                shape = [setup.batch if not isinstance(n, int) else n for n in place.shape]
                kind = _NUMPY.get(place.type)
                values = (
                    generator.standard_normal(shape).astype(np.float32)
                    if kind is None
                    else np.ones(shape, kind)
                )
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
            self._binding.bind_ortvalue_input(place.name, buffer)
            self._held.append(buffer)
        # The first call says how large the outputs are.
        for place in network.get_outputs():
            self._binding.bind_output(place.name, device, 0)
        network.run_with_iobinding(self._binding)
        outputs = self._binding.get_outputs()
        self._binding.clear_binding_outputs()
        for place, buffer in zip(network.get_outputs(), outputs, strict=True):
            self._binding.bind_ortvalue_output(place.name, buffer)
        self._held += outputs
        for _ in range(setup.warm_ups):
            self.run()

    def run(self) -> None:
        """Compute one batch, and wait until the device is done."""
        self._session.run_with_iobinding(self._binding)
        if self._waits:
            self._binding.synchronize_outputs()


def measure(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    setup: Setup,
    rounds: int = 60,
    enough: float = 0.01,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
    seconds: float = math.inf,
    given: Feed | None = None,
) -> dict[str, Timing]:
    """Return how long one call of each network takes, all of them interleaved.

    Args:
        sessions: By name; put references among them.
        setup: That of the sessions; it says by which clock.
        rounds: As in ``timing.sampled``, like all that follow.
        enough: Half width of every interval at which it stops, as a share of its value.
        seed: Of the order and the bootstrap.
        on_round: Called with (done, most) after each round.
        seconds: How long it may take.
        given: What inputs are fed with, by their names; random numbers where nothing is.
    """
    calls = {name: Bound(network, setup, given=given).run for name, network in sessions.items()}
    return sampled(calls, CLOCKS[setup.clock], rounds, enough, seed, on_round, seconds)


def node_times(model: bytes, setup: Setup, runs: int) -> dict[str, float]:
    """Return the mean time of every node of the graph that is run, in microseconds.

    The mean is over the faster half of the runs: the clock of the profiler counts the time of other
    processes too, and gives whole microseconds.

    Raises:
        TargetError: The model does not load.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = session(model, setup, profile=Path(folder) / "nodes")
        bound = Bound(network, setup)
        for _ in range(runs):
            bound.run()
        events = json.loads(Path(network.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    return {name: _mean_of_faster_half(some[-runs:]) for name, some in times.items()}


def _mean_of_faster_half(values: Sequence[float]) -> float:
    ordered: NDArray[np.float64] = np.sort(np.asarray(values, np.float64))
    return float(ordered[: max(1, len(ordered) // 2)].mean())


class Opened(NamedTuple):
    """A network that is ready to run, and the graph that is run."""

    session: onnxruntime.InferenceSession
    graph: onnx.GraphProto


def opened(model: bytes, setup: Setup) -> Opened:
    """Return a session together with the graph that ONNX Runtime made of the model.

    Raises:
        TargetError: As ``session``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        network = session(model, setup, optimised=path)
        return Opened(network, onnx.load(path).graph)


def machine() -> dict[str, str | int | float | bool]:
    """Return what of the processor decides its speed: name, cores, instruction sets for int8."""
    name, flags = "", []
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() == "flags":
                flags = value.split()
    except OSError:
        pass
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    return {
        "cpu": name or platform.processor() or platform.machine(), "cores": os.cpu_count() or 1,
        "instructions": " ".join(flag for flag in known if flag in flags),
    }  # fmt: skip
