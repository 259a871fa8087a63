"""Energy as measured: joules of one call, by the counters that the package zeus reads.

Zeus knows the counters of NVIDIA and AMD GPUs, of CPUs (RAPL), Jetson and Apple silicon. Where
there is no counter there is no meter, and no number either. A counter is that of the whole package
or card: it also counts what else runs there, so what is taken while nothing runs is taken off.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from haq.errors import HaqError

SECONDS = 1.0
"""How long a window lasts at least: counters move every 10 to 100 ms."""

WINDOWS = 3
"""Windows of each call; their spread says what the number is worth."""

SPREAD = 0.05
"""The most that windows may differ, as a share of their mean."""

_KEY = "haq"

_SOC_MJ = {"cpu": ("cpu_total_mj", "cpu_energy_mj"), "gpu": ("gpu_mj", "gpu_energy_mj")}
"""What zeus calls the energy of a processor of an SoC: Apple's, a Jetson's."""


class Window(NamedTuple):
    """What was taken while something ran."""

    joules: float
    seconds: float


@dataclass(frozen=True)
class Meter:
    """The counters of one kind of processor.

    Attributes:
        name: What is measured.
        monitor: ``ZeusMonitor`` of these counters alone.
        joules_of: From a ``Measurement`` of it to joules.
    """

    name: str
    monitor: Any
    joules_of: Callable[[Any], float]

    def window(self, run: Callable[[], None]) -> Window:
        """Return the joules and seconds of a run; what it computes must be done when it ends.

        Raises:
            HaqError: The counter went backwards, or said nothing.
        """
        self.monitor.begin_window(_KEY, sync_execution=False, restart=True)
        run()
        measured = self.monitor.end_window(_KEY, sync_execution=False)
        window = Window(float(self.joules_of(measured)), float(measured.time))
        if not 0 <= window.joules < math.inf:
            raise HaqError(
                f"{self.name}: the counter says {window.joules:g} J for {window.seconds:.2f} s, "
                "which is no energy; measure again, or leave --energy out"
            )
        return window


def find_meter(processor: Literal["cpu", "gpu"]) -> Meter | None:
    """Return the meter of this machine's CPU or of its first GPU.

    None if there is no counter, or zeus is not installed.

    Raises:
        HaqError: There is one, but this user may not read it.
    """
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
    meter = _of_cpus(ZeusMonitor) if processor == "cpu" else _of_gpu(ZeusMonitor)
    return meter or _of_soc(ZeusMonitor, processor)


def _of_cpus(monitor: Any) -> Meter | None:
    from zeus.device import get_cpus
    from zeus.device.cpu import ZeusCPUInitError
    from zeus.device.cpu.common import ZeusCPUNoPermissionError

    try:
        cpus = get_cpus()
    except ZeusCPUNoPermissionError as error:
        raise HaqError(
            "the energy counters of the CPU may be read by root only: run as root, or let "
            "everybody read them with: sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"
        ) from error
    except ZeusCPUInitError:
        return None
    packages = [at for at, cpu in enumerate(cpus.cpus) if _is_package(cpu)]
    if not packages:
        return None
    name = "CPU package" if len(packages) == 1 else f"{len(packages)} CPU packages"
    watched = monitor(gpu_indices=[], cpu_indices=packages)
    return Meter(name, watched, lambda measured: sum((measured.cpu_energy or {}).values()))


def _is_package(cpu: Any) -> bool:
    """Return whether a zone is a package; psys, the whole machine, would count it again."""
    zone = getattr(cpu, "rapl_file", None)
    return zone is None or str(zone.name).startswith("package")


def _of_gpu(monitor: Any) -> Meter | None:
    from zeus.device import get_gpus
    from zeus.device.gpu.common import ZeusGPUInitError

    try:
        gpus = get_gpus()
    except ZeusGPUInitError:
        return None
    # A card without a counter would be asked for its power from time to time, which is no meter.
    if not len(gpus) or not gpus.supports_get_total_energy_consumption(0):
        return None
    watched = monitor(gpu_indices=[0], cpu_indices=[])
    return Meter(str(gpus.get_name(0)), watched, lambda measured: measured.total_energy)


def _of_soc(monitor: Any, processor: str) -> Meter | None:
    watched = monitor(gpu_indices=[], cpu_indices=[])
    if not watched.soc_is_present:
        return None
    known = watched.soc.get_available_metrics()
    field = next((name for name in _SOC_MJ[processor] if name in known), None)
    if field is None:
        return None
    name = f"{processor.upper()} of {type(watched.soc).__name__}"
    return Meter(name, watched, lambda measured: getattr(measured.soc_energy, field) / 1e3)


class Energy(NamedTuple):
    """What one call takes.

    Attributes:
        joules: Mean over the windows, idle taken off.
        spread: Largest less smallest window, as a share of the mean.
        idle_watts: What was taken while nothing ran.
        calls: In all windows.
    """

    joules: float
    spread: float
    idle_watts: float
    calls: int


def idle_watts(
    meter: Meter, seconds: float = SECONDS, rest: Callable[[float], None] = time.sleep
) -> float:
    """Return what is taken while this program does nothing."""
    window = meter.window(lambda: rest(seconds))
    return window.joules / window.seconds


def energy_of(
    call: Callable[[], object],
    meter: Meter,
    idle: float,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Return the joules of one call, from windows in which it is repeated.

    Args:
        call: Done when it returns.
        meter: Where it computes.
        idle: From ``idle_watts``, shortly before.
        seconds: How long a window lasts at least.
        clock: In seconds.

    Raises:
        HaqError: The windows differ by more than ``SPREAD``, or nothing is left above idle.
    """
    joules, calls = [], 0
    for _ in range(WINDOWS):
        done = 0

        def repeat() -> None:
            nonlocal done
            until = clock() + seconds
            while not done or clock() < until:
                call()
                done += 1

        window = meter.window(repeat)
        joules.append((window.joules - idle * window.seconds) / done)
        calls += done
    mean = sum(joules) / len(joules)
    if mean <= 0 and not idle:
        raise HaqError(
            f"{meter.name}: the counter did not move in {WINDOWS} windows of {seconds:g} s, as "
            "those of virtual machines do not; leave --energy out"
        )
    if mean <= 0:
        raise HaqError(
            f"{meter.name}: a call takes no more than {idle:.2f} W, which is taken while nothing "
            "runs; something else was running then: measure again on a quiet machine"
        )
    spread = (max(joules) - min(joules)) / mean
    if spread > SPREAD:
        raise HaqError(
            f"{meter.name}: {WINDOWS} windows of one network differ by {spread:.1%}, and at most "
            f"{SPREAD:.0%} are let pass; measure again on a quiet machine of a fixed clock"
        )
    return Energy(mean, spread, idle, calls)
