"""Meters: the energy that a CPU or a GPU took, as its own counter says.

Where there is no counter there is no meter, and no number either. A counter is that of the whole
package or card: it also counts what else runs there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from haq.errors import HaqError

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of CPUs."""


class Counter(NamedTuple):
    """A number that rises with the energy used.

    Attributes:
        name: For messages.
        read: Returns it as it is now.
        joules: What one count stands for.
        wraps_at: After this many counts it starts again from 0; None if it never does.
    """

    name: str
    read: Callable[[], int]
    joules: float
    wraps_at: int | None


class Meter:
    """The energy since it was made, of one or more counters together.

    It sees one wrap of a counter between two readings and cannot see a second one: a CPU's counter
    may wrap every few minutes under full load, so read it more often than that.

    Attributes:
        name: What is measured.
    """

    def __init__(self, name: str, counters: Sequence[Counter]) -> None:
        self.name = name
        self._counters = tuple(counters)
        self._counts = [counter.read() for counter in counters]
        self._joules = 0.0

    def joules(self) -> float:
        """Return the energy in joules.

        Raises:
            HaqError: A counter cannot be read any more, or has jumped back.
        """
        for place, counter in enumerate(self._counters):
            now, before = counter.read(), self._counts[place]
            if now < before and (counter.wraps_at is None or before > counter.wraps_at):
                raise HaqError(f"the energy counter {counter.name} jumped back; measure again")
            wrapped = counter.wraps_at if now < before and counter.wraps_at else 0
            self._joules += (now - before + wrapped) * counter.joules
            self._counts[place] = now
        return self._joules


def find_meter(processor: Literal["cpu", "gpu"]) -> Meter | None:
    """Return the meter of this machine's CPU packages or of its first GPU, None if it has none.

    Raises:
        HaqError: There is one, but this user may not read it.
    """
    return rapl() if processor == "cpu" else nvml()


def rapl(folder: Path = POWERCAP) -> Meter | None:
    """Return the meter of all CPU packages.

    Only zones called package-N count: their sub-zones (core, uncore, dram) and psys, the whole
    machine, would count the same energy again, as would a second interface to the same package.

    Args:
        folder: With one folder a zone, as Linux has it.

    Raises:
        HaqError: The counters are there, but cannot be read.

    Source: docs.kernel.org/power/powercap/powercap.html.
    """
    zones: dict[str, Path] = {}
    # The interface through memory (intel-rapl-mmio) shows packages that intel-rapl has as well.
    for zone in sorted(folder.glob("*"), key=lambda path: ("mmio" in path.name, path.name)):
        if (zone / "name").is_file() and (zone / "energy_uj").exists():
            zones.setdefault((zone / "name").read_text(encoding="utf-8").strip(), zone)
    packages = [zone for name, zone in sorted(zones.items()) if name.startswith("package-")]
    if not packages:
        return None
    counters = [
        Counter(
            name=str(zone / "energy_uj"),
            read=partial(_number, zone / "energy_uj"),
            joules=1e-6,
            wraps_at=_number(zone / "max_energy_range_uj"),
        )
        for zone in packages
    ]
    return Meter("CPU package" if len(packages) == 1 else f"{len(packages)} CPU packages", counters)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except PermissionError as error:
        raise HaqError(
            f"the energy counter {path} may be read by root only: run as root, "
            f"or let everybody read it with: sudo chmod a+r {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise HaqError(f"the energy counter {path} cannot be read: {error}") from error


def nvml(index: int = 0) -> Meter | None:
    """Return the meter of an NVIDIA GPU.

    None without the package nvidia-ml-py, a driver, such a GPU or a counter in it (there is none
    before Volta). The counter rises some ten times a second, so measure for seconds.

    Args:
        index: As nvidia-smi counts the GPUs, whatever CUDA_VISIBLE_DEVICES says.

    Source: nvmlDeviceGetTotalEnergyConsumption in NVIDIA's NVML reference: mJ since the driver was
    loaded.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        read = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, device)
        name = pynvml.nvmlDeviceGetName(device)
        return Meter(name, [Counter(f"of {name}", read, joules=1e-3, wraps_at=None)])
    except pynvml.NVMLError:
        return None
