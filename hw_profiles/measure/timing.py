"""How long calls take, with their intervals.

Every candidate is measured under the same options, interleaved with all the others in random order,
so that what changes on the machine meanwhile changes for all of them. At one thread the clock is
the CPU time of that thread, which does not count the time in which other processes have the core.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

try:
    import resource
except ImportError:  # not on every platform
    resource = None  # type: ignore[assignment]

CLOCKS: Mapping[str, Callable[[], int]] = {
    "thread CPU time": time.thread_time_ns,
    "wall time": time.perf_counter_ns,
}
"""What can be read before and after a call, in nanoseconds."""

QUANTILE = 10
"""The percentile that stands for a latency: little of what disturbs a run, and no lucky extreme."""

FEWEST_ROUNDS = 20
"""Rounds before an interval is believed."""

_BETWEEN = 10  # rounds from one look at the intervals to the next

_RESAMPLES = 400


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
        drift: By how much the last quarter of the samples is slower than the first, a share.
    """

    us: float
    low: float
    high: float
    p50: float
    p90: float
    samples: int
    contended: float
    drift: float = 0.0

    def times(self, factor: float) -> "Timing":
        """Return the same in other units, or on a machine that is ``1 / factor`` as fast."""
        us, low, high, p50, p90 = (factor * value for value in self[:5])
        return Timing(us, low, high, p50, p90, self.samples, self.contended, self.drift)

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.us


def percentile(samples: Sequence[float], seed: int = 0) -> Timing:
    """Return the 10th percentile of samples in microseconds with its 95 % bootstrap interval."""
    values = np.asarray(samples, np.float64)
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))]
    low, high = np.percentile(np.percentile(drawn, QUANTILE, axis=1), [2.5, 97.5])
    us, p50, p90 = map(float, np.percentile(values, [QUANTILE, 50, 90]))
    return Timing(us, float(low), float(high), p50, p90, len(values), contended=0.0)


def median_of(timings: Sequence[Timing]) -> Timing:
    """Return the median of timings of one thing, which counts the samples of all.

    >>> some = [percentile([us]) for us in (1.0, 9.0, 2.0)]
    >>> median_of(some).us, median_of(some).samples
    (2.0, 3)
    """
    medians = (float(statistics.median(each)) for each in zip(*timings, strict=True))
    us, low, high, p50, p90, _, contended, drift = medians
    samples = sum(timing.samples for timing in timings)
    return Timing(us, low, high, p50, p90, samples, contended, drift)


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
    contended = 1 - len(quiet) / len(samples)
    return percentile(used, seed)._replace(contended=contended, drift=_drift_of(used))


def _drift_of(values: Sequence[float]) -> float:
    few = max(1, len(values) // 4)
    return float(np.median(values[-few:]) / np.median(values[:few])) - 1


def sampled(
    calls: Mapping[str, Callable[[], float | None]],
    clock: Callable[[], int],
    rounds: int,
    enough: float,
    seed: int,
    on_round: Callable[[int, int], None] | None = None,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Return the times of some calls, interleaved.

    Every round does each of them twice, in random order, and takes the time of the second one.
    After ``FEWEST_ROUNDS``, it stops when every interval is narrow enough, or it took too long.

    Args:
        calls: By name. One that returns a number says itself how long it took, in microseconds.
        clock: In nanoseconds, such as one of ``CLOCKS``.
        rounds: The most there are.
        enough: Half width of every interval, as a share of its value.
        seed: Of order and bootstrap.
        on_round: Called with (done, most) after each round.
        seconds: How long it may take, by the clock on the wall.
    """
    generator = np.random.default_rng(seed)
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    names = list(calls)
    begun = time.perf_counter()
    for done in range(1, rounds + 1):
        for place in generator.permutation(len(names)):
            samples[names[place]].append(_sample(calls[names[place]], clock))
        if on_round:
            on_round(done, rounds)
        if done >= FEWEST_ROUNDS and (done - FEWEST_ROUNDS) % _BETWEEN == 0:
            late = time.perf_counter() - begun > seconds
            if late or all(timing_of(some, seed).half_width < enough for some in samples.values()):
                break
    return {name: timing_of(some, seed) for name, some in samples.items()}


def _sample(call: Callable[[], float | None], clock: Callable[[], int]) -> Sample:
    call()  # what the candidate before it left in the caches is not this one's fault
    interruptions = _interruptions()
    started = clock()
    own = call()
    us = (clock() - started) / 1e3 if own is None else own
    return Sample(us, _interruptions() > interruptions)


def _interruptions() -> int:
    """Return how often another process took the core from this one; 0 where nothing counts it."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def drift(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return by what a time of now must be multiplied to stand beside those of then.

    It is the geometric mean, over the networks that were measured both times, of then / now; 1
    where there are none.

    >>> drift({"fp32": 10.0, "w7a8": 40.0}, {"fp32": 5.0, "w7a8": 20.0, "other": 7.0})
    2.0
    """
    logs = [math.log(then[name] / us) for name, us in now.items() if name in then]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 1.0
