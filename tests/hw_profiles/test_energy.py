"""Energy: of machines as zeus sees them, whose counters are moved by what runs."""

import sys
from pathlib import Path

import pytest

zeus_cpu = pytest.importorskip("zeus.device.cpu", reason="zeus is not installed (haq[energy])")

import zeus.device.gpu as zeus_gpu  # noqa: E402 - only where there is zeus
import zeus.device.soc as zeus_soc  # noqa: E402
from zeus.device.cpu.common import CPU, CpuDramMeasurement, CPUs  # noqa: E402
from zeus.device.cpu.rapl import RAPLCPU  # noqa: E402

from haq.errors import HaqError  # noqa: E402
from haq.hw_profiles.measure.energy import (  # noqa: E402
    Meter,
    Window,
    energy_of,
    find_meter,
    idle_watts,
)


class Zone(CPU):
    """A counter under zeus's own interface, in mJ."""

    def __init__(self, cpu_index: int, name: str = "package-0") -> None:
        super().__init__(cpu_index)
        self.millijoules = 1e9
        self.rapl_file = type("File", (), {"name": name})()

    def get_total_energy_consumption(self) -> CpuDramMeasurement:
        return CpuDramMeasurement(cpu_mj=self.millijoules, dram_mj=None)

    def supports_get_dram_energy_consumption(self) -> bool:
        return False


class Machine(CPUs):
    """Some zones, and a clock of their own."""

    def __init__(self, *names: str) -> None:
        self.zones = [Zone(at, name) for at, name in enumerate(names)]
        self.now = 0.0

    def __del__(self) -> None: ...

    @property
    def cpus(self) -> list[Zone]:
        return self.zones

    def runs(self, seconds: float, watts: float) -> None:
        self.now += seconds
        for zone in self.zones:
            zone.millijoules += 1e3 * seconds * watts


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return what makes zeus find some zones, and nothing else."""

    def found(*names: str) -> Machine:
        own = Machine(*names)
        monkeypatch.setattr(zeus_cpu, "_cpus", own)
        monkeypatch.setattr("zeus.monitor.energy.time", lambda: own.now)
        return own

    monkeypatch.setattr(zeus_gpu, "_gpus", None)
    monkeypatch.setattr(zeus_soc, "_soc", None)
    return found


def meter_of(processor: str = "cpu") -> Meter:
    meter = find_meter(processor)
    assert meter is not None
    return meter


def test_a_window_has_the_joules_and_the_seconds_of_what_ran(machine) -> None:
    own = machine("package-0")
    meter = meter_of()
    own.runs(5, 100)  # before the window
    assert meter.name == "CPU package"
    assert meter.window(lambda: own.runs(2, 30)) == Window(pytest.approx(60), pytest.approx(2))
    assert meter.window(lambda: own.runs(1, 7)).joules == pytest.approx(7)


def test_packages_are_added_up_and_the_whole_machine_is_not_counted_again(machine) -> None:
    own = machine("package-0", "package-1", "psys")
    meter = meter_of()
    assert meter.name == "2 CPU packages"
    assert meter.window(lambda: own.runs(1, 10)).joules == pytest.approx(20)


def test_a_call_takes_what_it_takes_above_idle(machine) -> None:
    own = machine("package-0")
    meter = meter_of()
    idle = idle_watts(meter, 2, lambda seconds: own.runs(seconds, 12))
    assert idle == pytest.approx(12)
    energy = energy_of(lambda: own.runs(0.01, 12 + 40), meter, idle, clock=lambda: own.now)
    assert energy.joules == pytest.approx(0.4)
    assert energy.spread == pytest.approx(0, abs=1e-6) and energy.idle_watts == idle
    assert 300 <= energy.calls <= 303  # three windows of a second


def test_windows_that_differ_are_refused(machine) -> None:
    own = machine("package-0")
    watts = iter([40, 40, 44])

    def call() -> None:
        own.runs(2, next(watts))

    with pytest.raises(HaqError, match=r"differ by 9.7%, and at most 5%"):
        energy_of(call, meter_of(), 0, clock=lambda: own.now)


def test_what_is_not_above_idle_is_refused(machine) -> None:
    own = machine("package-0")
    with pytest.raises(HaqError, match="no more than 50.00 W"):
        energy_of(lambda: own.runs(2, 40), meter_of(), 50, clock=lambda: own.now)


def test_a_counter_that_stands_still_or_goes_backwards_is_no_meter(machine) -> None:
    own = machine("package-0")
    meter = meter_of()
    idle = idle_watts(meter, 1, lambda seconds: own.runs(seconds, 0))
    assert idle == 0
    with pytest.raises(HaqError, match="the counter did not move in 3 windows of 1 s"):
        energy_of(lambda: own.runs(2, 0), meter, idle, clock=lambda: own.now)
    with pytest.raises(HaqError, match=r"the counter says -10 J for 2.00 s, which is no energy"):
        idle_watts(meter, 2, lambda seconds: own.runs(seconds, -5))


def test_the_spread_that_is_published_is_that_of_the_windows(machine) -> None:
    own = machine("package-0")
    watts = iter([40, 41, 40.5])
    energy = energy_of(lambda: own.runs(2, next(watts)), meter_of(), 20, clock=lambda: own.now)
    assert energy.joules == pytest.approx(2 * 20.5) and energy.calls == 3
    assert energy.spread == pytest.approx(1 / 20.5)


def test_a_machine_without_counters_has_no_meter(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zeus_cpu, "_cpus", None)
    monkeypatch.setattr(zeus_cpu, "rapl_is_available", lambda: False)
    monkeypatch.setattr(zeus_gpu, "nvml_is_available", lambda: False)
    monkeypatch.setattr(zeus_gpu, "amdsmi_is_available", lambda: False)
    monkeypatch.setattr(zeus_gpu, "_gpus", None)
    monkeypatch.setattr(zeus_soc, "_soc", None)
    assert find_meter("cpu") is None and find_meter("gpu") is None


def test_a_counter_of_root_says_how_to_open_it(monkeypatch, tmp_path: Path) -> None:
    import zeus.device.cpu.common as common

    def refused() -> CPUs:
        raise common.ZeusCPUNoPermissionError("no")

    monkeypatch.setattr(zeus_cpu, "_cpus", None)
    monkeypatch.setattr(zeus_cpu, "rapl_is_available", lambda: True)
    monkeypatch.setattr(zeus_cpu, "RAPLCPUs", refused)
    with pytest.raises(HaqError, match="sudo chmod a\\+r"):
        find_meter("cpu")


def test_without_zeus_there_is_no_meter(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert find_meter("cpu") is None


def test_a_zone_of_zeus_has_the_name_that_is_asked_for() -> None:
    """The fake zones above have the field that zeus's own have."""
    assert "rapl_file" in RAPLCPU._get_powerzone.__annotations__ or "rapl_file" in (
        RAPLCPU._get_powerzone.__code__.co_names
    )


class Card(zeus_gpu.EmptyGPUs):
    """A card with a counter, as zeus shows one."""

    millijoules = 0.0
    counts = True

    def __len__(self) -> int:
        return 1

    def get_name(self, gpu_index: int) -> str:
        return "a card"

    def supports_get_total_energy_consumption(self, gpu_index: int) -> bool:
        return self.counts

    def get_total_energy_consumption(self, gpu_index: int) -> float:
        return self.millijoules


def test_the_first_card_is_measured_if_it_has_a_counter(monkeypatch) -> None:
    card = Card()
    monkeypatch.setattr(zeus_gpu, "_gpus", card)
    monkeypatch.setattr(zeus_soc, "_soc", None)
    meter = meter_of("gpu")
    assert meter.name == "a card"
    assert meter.window(lambda: setattr(card, "millijoules", 2500.0)).joules == 2.5
    card.counts = False
    assert find_meter("gpu") is None
