"""What a card says of itself, by NVIDIA's own names and bits."""

import pytest
from measured_parts import measured_profile

from haq.hw_profiles.measure.card import slowed, state
from haq.hw_profiles.profile import Profile
from haq.runs.profiling.profile import with_card

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed (haq[tensorrt])")


class Nvml:
    """Answers of a card under the names of ``pynvml``; the rest is that module's."""

    def __init__(self, reasons):
        self._reasons = reasons

    def __getattr__(self, name):
        if not name.startswith(("nvmlClocks", "NVML_")):
            raise AttributeError(name)
        return getattr(pynvml, name)

    def nvmlInit(self): ...

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, card):
        return b"NVIDIA H200"  # older versions give bytes

    def nvmlSystemGetDriverVersion(self):
        return "580.65"

    def nvmlDeviceGetClockInfo(self, card, which):
        return {pynvml.NVML_CLOCK_SM: 1830, pynvml.NVML_CLOCK_MEM: 3201}[which]

    def nvmlDeviceGetTemperature(self, card, sensor):
        return 61

    def nvmlDeviceGetPowerUsage(self, card):
        raise pynvml.NVMLError(3)  # not every card tells

    def nvmlDeviceGetCurrentClocksEventReasons(self, card):
        return self._reasons


HOT = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonSwPowerCap


def test_a_card_says_its_clocks_and_what_holds_it_back():
    told = state(Nvml(HOT))
    assert told == {
        "card": "NVIDIA H200", "driver": "580.65", "sm_mhz": 1830, "memory_mhz": 3201,
        "celsius": 61, "held_back_by": "power cap, heat",
    }  # fmt: skip
    assert slowed(told) == ["power cap", "heat"]
    assert state(Nvml(0))["held_back_by"] == "nothing" and slowed(state(Nvml(0))) == []
    idle = state(Nvml(pynvml.nvmlClocksEventReasonGpuIdle))
    assert idle["held_back_by"] == "idle" and slowed(idle) == []


def test_where_there_is_no_card_there_is_nothing_to_say():
    class Missing:
        def nvmlInit(self):
            raise pynvml.NVMLError(9)

    assert state(Missing()) == {}


def test_a_profile_says_how_its_card_was_before_and_after():
    profile = with_card(measured_profile(), state(Nvml(0)), state(Nvml(HOT)))
    options = profile.runtime.options
    assert options["held_back_by_before"] == "nothing"
    assert options["held_back_by_after"] == "power cap, heat" and options["sm_mhz_after"] == 1830
    assert "card_after" not in options
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
