"""Measuring networks in ONNX Runtime: sessions, times with their intervals, and who ran what.

Every candidate is measured under the same options, interleaved with all the others in random order,
so that what changes on the machine meanwhile changes for all of them. At one thread the clock is
the CPU time of that thread, which does not count the time in which other processes have the core.
"""

import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from haq.errors import TargetError, look_up

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

QUANTILE = 10
"""The percentile that stands for a latency: little of what disturbs a run, and no lucky extreme."""

FEWEST_ROUNDS = 20
"""Rounds before an interval is believed."""

_BETWEEN = 10  # rounds from one look at the intervals to the next
_RESAMPLES = 400


@dataclass(frozen=True)
class Setup:
    """Under which circumstances networks are measured; figures of two setups are not comparable.

    Attributes:
        provider: A name in ``PROVIDERS``.
        threads: For one operator; they do not spin while they wait.
        batch: Images computed at once.
    """

    provider: str = "cpu"
    threads: int = 1
    batch: int = 1

    @property
    def clock(self) -> str:
        """What is read: "thread CPU time" at one thread of the CPU, else "wall time"."""
        return "thread CPU time" if self.provider == "cpu" and self.threads == 1 else "wall time"

    @property
    def warm_ups(self) -> int:
        """Calls before the first that counts: a GPU chooses its kernels in them."""
        return 5 if self.provider == "cpu" else 50

    @property
    def options(self) -> dict[str, str | int | float | bool]:
        """Return what else decides how fast a network runs, as it is kept in a profile."""
        return {
            "provider": PROVIDERS[self.provider], "threads": self.threads,
            "inter_op_threads": 1, "spinning": False, "optimization": "ORT_ENABLE_ALL",
            "disabled_optimizers": "WeightBiasQuantization", "io_binding": True,
            "clock": self.clock, "statistic": f"p{QUANTILE}", "warm_ups": self.warm_ups,
        }  # fmt: skip


class Timing(NamedTuple):
    """How long one call takes, in microseconds.

    Attributes:
        us: The 10th percentile of the samples.
        low: End of the 95 % bootstrap interval of ``us``.
        high: The other end.
        p50: Median of the samples.
        p90: Their 90th percentile.
        samples: How many there are.
        contended: Share of the samples in which another process took a core away.
    """

    us: float
    low: float
    high: float
    p50: float
    p90: float
    samples: int
    contended: float

    def times(self, factor: float) -> "Timing":
        """Return the same in other units, or on a machine that is ``1 / factor`` as fast."""
        us, low, high, p50, p90 = (factor * value for value in self[:5])
        return Timing(us, low, high, p50, p90, self.samples, self.contended)

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.us


def check_provider(name: str) -> None:
    """Say so if ONNX Runtime cannot use a provider here.

    Raises:
        HaqError: There is no such provider.
        TargetError: The ONNX Runtime installed here does not have it.
    """
    provider = look_up(PROVIDERS, "provider", name)
    found = onnxruntime.get_available_providers()
    if provider not in found:
        raise TargetError(
            f"provider {name!r} needs {provider}, but ONNX Runtime {onnxruntime.__version__} finds "
            f"only {', '.join(found)} here; install the package with that provider, or measure "
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
        made = onnxruntime.InferenceSession(
            model, options, providers=_providers(setup.provider),
            # Otherwise a float layer between two integer ones is quantized behind our back.
            disabled_optimizers=["WeightBiasQuantization"],
        )  # fmt: skip
    except Exception as error:  # its exceptions have no common base of their own
        raise TargetError(f"ONNX Runtime cannot load the model on {provider}: {error}") from error
    if made.get_providers()[0] != provider:
        raise TargetError(f"{provider} does not start here: ONNX Runtime fell back on another")
    return made


def _providers(name: str) -> list[Any]:
    if name == "tensorrt":
        options = {"trt_int8_enable": True, "trt_fp16_enable": True}
        return [(PROVIDERS[name], options), PROVIDERS["cuda"], PROVIDERS["cpu"]]
    return [PROVIDERS["cuda"], PROVIDERS["cpu"]] if name == "cuda" else [PROVIDERS["cpu"]]


def answers(
    made: onnxruntime.InferenceSession, images: NDArray[np.float32], batch: int = 100
) -> NDArray[np.float32]:
    """Return the first output (N, ...) for images (N, C, H, W), computed in batches."""
    name = made.get_inputs()[0].name
    parts = [
        made.run(None, {name: images[start : start + batch]})[0]
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


class Bound:
    """A session with input and output in place, on the provider's device; ``run`` is one call."""

    def __init__(self, made: onnxruntime.InferenceSession, setup: Setup, seed: int = 0):
        self._session = made
        self._binding = made.io_binding()
        self._waits = setup.provider != "cpu"
        device = "cuda" if self._waits else "cpu"
        generator = np.random.default_rng(seed)
        self._held = []  # the binding does not keep its buffers alive
        for place in made.get_inputs():
            shape = [setup.batch if not isinstance(n, int) else n for n in place.shape]
            values = generator.standard_normal(shape).astype(np.float32)
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
            self._binding.bind_ortvalue_input(place.name, buffer)
            self._held.append(buffer)
        # The first call says how large the outputs are.
        for place in made.get_outputs():
            self._binding.bind_output(place.name, device, 0)
        made.run_with_iobinding(self._binding)
        outputs = self._binding.get_outputs()
        self._binding.clear_binding_outputs()
        for place, buffer in zip(made.get_outputs(), outputs, strict=True):
            self._binding.bind_ortvalue_output(place.name, buffer)
        self._held += outputs
        for _ in range(setup.warm_ups):
            self.run()

    def run(self) -> None:
        """Compute one batch, and wait until the device is done."""
        self._session.run_with_iobinding(self._binding)
        if self._waits:
            self._binding.synchronize_outputs()


def percentile(samples: Sequence[float], seed: int = 0) -> Timing:
    """Return the 10th percentile of samples in microseconds with its 95 % bootstrap interval."""
    values = np.asarray(samples, np.float64)
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))]
    low, high = np.percentile(np.percentile(drawn, QUANTILE, axis=1), [2.5, 97.5])
    us, p50, p90 = map(float, np.percentile(values, [QUANTILE, 50, 90]))
    return Timing(us, float(low), float(high), p50, p90, len(values), contended=0.0)


def measure(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    setup: Setup,
    rounds: int = 60,
    enough: float = 0.01,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Return how long one call of each network takes.

    Every round calls each of them twice, in random order, and takes the time of the second call.
    After ``FEWEST_ROUNDS``, it stops when every interval is narrow enough, or it took too long.

    Args:
        sessions: By name; put references among them.
        setup: That of the sessions.
        rounds: The most there are.
        enough: Half width of every interval, as a share of its value.
        seed: Of order, inputs and bootstrap.
        on_round: Called with (done, most) after each round.
        seconds: How long it may take, by the clock on the wall.
    """
    calls = {name: Bound(made, setup).run for name, made in sessions.items()}
    return sampled(calls, setup, rounds, enough, seed, on_round, seconds)


def sampled(
    calls: Mapping[str, Callable[[], None]],
    setup: Setup,
    rounds: int,
    enough: float,
    seed: int,
    on_round: Callable[[int, int], None] | None = None,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Return the times of some calls, interleaved; see ``measure``."""
    clock = time.thread_time_ns if setup.clock == "thread CPU time" else time.perf_counter_ns
    generator = np.random.default_rng(seed)
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    names = list(calls)
    begun = time.perf_counter()
    for done in range(1, rounds + 1):
        for place in generator.permutation(len(names)):
            call = calls[names[place]]
            call()  # what the candidate before it left in the caches is not this one's fault
            switches = _taken_away()
            started = clock()
            call()
            us = (clock() - started) / 1e3
            samples[names[place]].append(Sample(us, _taken_away() > switches))
        if on_round:
            on_round(done, rounds)
        if done >= FEWEST_ROUNDS and (done - FEWEST_ROUNDS) % _BETWEEN == 0:
            late = time.perf_counter() - begun > seconds
            if late or all(timing_of(s, seed).half_width < enough for s in samples.values()):
                break
    return {name: timing_of(some, seed) for name, some in samples.items()}


class Sample(NamedTuple):
    """What one call took, and whether another process had the core meanwhile."""

    us: float
    interrupted: bool


def timing_of(samples: Sequence[Sample], seed: int) -> Timing:
    """Return the timing of the samples that nobody interrupted, or of all if those are too few.

    The clock of a thread stands still while another process has the core, but the caches do not.
    """
    quiet = [sample.us for sample in samples if not sample.interrupted]
    used = quiet if len(quiet) >= FEWEST_ROUNDS else [sample.us for sample in samples]
    return percentile(used, seed)._replace(contended=1 - len(quiet) / len(samples))


def drift(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return by what a time of now must be multiplied to stand beside those of then.

    It is the geometric mean, over the networks that were measured both times, of then / now; 1
    where there are none.

    >>> drift({"fp32": 10.0, "w8a8": 40.0}, {"fp32": 5.0, "w8a8": 20.0, "other": 7.0})
    2.0
    """
    logs = [math.log(then[name] / us) for name, us in now.items() if name in then]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 1.0


def _taken_away() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def node_times(model: bytes, setup: Setup, runs: int) -> dict[str, float]:
    """Return the mean time of every node of the graph that is run, in microseconds.

    The mean is over the faster half of the runs: the clock of the profiler counts the time of other
    processes too, and gives whole microseconds.

    Raises:
        TargetError: The model does not load.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = session(model, setup, profile=Path(folder) / "nodes")
        bound = Bound(made, setup)
        for _ in range(runs):
            bound.run()
        events = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    return {name: _of_the_faster_half(some[-runs:]) for name, some in times.items()}


def _of_the_faster_half(values: Sequence[float]) -> float:
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
        made = session(model, setup, optimised=path)
        return Opened(made, onnx.load(path).graph)


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
        "cpu": name, "cores": os.cpu_count() or 1,
        "instructions": " ".join(flag for flag in known if flag in flags),
    }  # fmt: skip
