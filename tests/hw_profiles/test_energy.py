import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from haq.errors import HaqError
from haq.hw_profiles.measure.energy import Counter, Meter, find_meter, rapl

RANGE = 262143328850  # of a real package, in uJ


def zone(folder: Path, entry: str, name: str, energy_uj: object, range_uj: int = RANGE) -> Path:
    """Record a zone as Linux shows it."""
    (folder / entry).mkdir(parents=True)
    (folder / entry / "name").write_text(f"{name}\n")
    (folder / entry / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / entry / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / entry / "energy_uj"


def counting(*counts: int) -> Iterator[int]:
    yield from counts


def test_a_package_counts_from_when_the_meter_was_made(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 58_123_456_789)
    meter = rapl(tmp_path)
    assert meter is not None and meter.name == "CPU package" and meter.joules() == 0
    counter.write_text(f"{58_123_456_789 + 2_500_000}\n")
    assert meter.joules() == pytest.approx(2.5)
    assert meter.joules() == pytest.approx(2.5)


def test_a_counter_that_wrapped_goes_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = rapl(tmp_path)
    assert meter is not None
    counter.write_text("500000\n")
    assert meter.joules() == pytest.approx(1.5)
    counter.write_text("700000\n")
    assert meter.joules() == pytest.approx(1.7)


def test_packages_are_added_up(tmp_path: Path) -> None:
    counters = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 1000) for n in (0, 1)]
    meter = rapl(tmp_path)
    assert meter is not None and meter.name == "2 CPU packages"
    for counter, joules in zip(counters, (1, 2), strict=True):
        counter.write_text(str(1000 + joules * 1_000_000))
    assert meter.joules() == pytest.approx(3)


def test_nothing_is_counted_twice(tmp_path: Path) -> None:
    counters = [
        zone(tmp_path, entry, name, 0)
        for entry, name in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "uncore"),
            ("intel-rapl:0:2", "dram"),
            ("intel-rapl:1", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        ]
    ]
    (tmp_path / "intel-rapl").mkdir()  # the control type itself: no counter
    meter = rapl(tmp_path)
    for counter in counters:
        counter.write_text("1000000")
    assert meter is not None and meter.joules() == pytest.approx(1)


def test_of_two_interfaces_the_first_is_read(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    own = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = rapl(tmp_path)
    own.write_text("3000000")
    assert meter is not None and meter.joules() == pytest.approx(3)


def test_without_a_package_there_is_no_meter(tmp_path: Path) -> None:
    assert rapl(tmp_path / "powercap") is None
    zone(tmp_path, "intel-rapl:1", "psys", 5)
    assert rapl(tmp_path) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_only_says_so(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).chmod(0)
    with pytest.raises(HaqError, match="energy_uj may be read by root only: run as root, or let"):
        rapl(tmp_path)


def test_a_refused_permission_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    read_text = Path.read_text

    def refusing(path: Path, encoding: str | None = None) -> str:
        if path == counter:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", refusing)
    with pytest.raises(HaqError, match=f"sudo chmod a\\+r {counter}$"):
        rapl(tmp_path)


@pytest.mark.parametrize("content", ["", "many", "1.5"])
def test_a_counter_without_a_number_is_refused(tmp_path: Path, content: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", content)
    with pytest.raises(HaqError, match="energy_uj cannot be read: invalid literal"):
        rapl(tmp_path)


def test_a_counter_that_vanishes_is_refused(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = rapl(tmp_path)
    assert meter is not None
    counter.unlink()
    with pytest.raises(HaqError, match="energy_uj cannot be read: .*No such file"):
        meter.joules()


def test_millijoules_of_a_card() -> None:
    counts = counting(8_000_000_123, 8_000_000_123, 8_000_350_123)
    meter = Meter("card", [Counter("of card", lambda: next(counts), 1e-3, None)])
    assert [meter.joules(), meter.joules()] == [0, pytest.approx(350)]


@pytest.mark.parametrize("wraps_at", [None, 900])
def test_a_counter_that_jumps_back_is_not_a_wrap(wraps_at: int | None) -> None:
    # Such as after a driver was loaded again, or above where the counter is said to wrap.
    counts = counting(1000, 10)
    meter = Meter("card", [Counter("of card", lambda: next(counts), 1e-3, wraps_at)])
    with pytest.raises(HaqError, match="the energy counter of card jumped back; measure again"):
        meter.joules()


@pytest.mark.parametrize("processor", ["cpu", "gpu"])
def test_the_meter_of_this_machine_if_it_has_one_never_falls(processor: str) -> None:
    try:
        meter = find_meter(processor)  # type: ignore[arg-type]
    except HaqError as error:
        assert "may be read by root only" in str(error)
        return
    if meter is not None:
        before = meter.joules()
        assert 0 <= before <= meter.joules()
