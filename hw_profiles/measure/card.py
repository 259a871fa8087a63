"""What an NVIDIA card says of itself: its driver, its clocks, and why it runs slower than it could.

Read by NVIDIA's own package ``nvidia-ml-py``, which comes with PyTorch for CUDA and with zeus.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_REASONS = {
    "GpuIdle": "idle", "ApplicationsClocksSetting": "clocks set", "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown", "SyncBoost": "sync boost", "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "hardware heat", "HwPowerBrakeSlowdown": "power brake",
    "DisplayClockSetting": "display",
}  # fmt: skip
"""What NVIDIA calls a reason, and what it is called here."""

SLOWED = ("power cap", "hardware slowdown", "heat", "hardware heat", "power brake")
"""Reasons for which figures are those of a card that was held back."""


def state(nvml: Any = None, index: int = 0) -> dict[str, str | int | float | bool]:
    """Return name, driver, clocks, temperature and power of a card, and what holds it back.

    Nothing where the package or the driver is missing; what a card does not tell is left out.

    Args:
        nvml: The module ``pynvml``; None imports it.
        index: Of the card.
    """
    try:
        nvml = nvml or import_module("pynvml")
        nvml.nvmlInit()
        card = nvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # whatever is missing, there is nothing to tell
        return {}
    asked: Mapping[str, Callable[[], Any]] = {
        "card": lambda: _text(nvml.nvmlDeviceGetName(card)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        "held_back_by": lambda: ", ".join(_reasons(nvml, card)) or "nothing",
    }
    told: dict[str, str | int | float | bool] = {}
    for what, ask in asked.items():
        try:
            told[what] = ask()
        except Exception:  # not every card knows everything
            continue
    return told


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _reasons(nvml: Any, card: Any) -> list[str]:
    try:
        mask = nvml.nvmlDeviceGetCurrentClocksEventReasons(card)
    except AttributeError:  # what it was called before
        mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
    reasons = []
    for theirs, ours in _REASONS.items():
        names = (f"nvmlClocksEventReason{theirs}", f"nvmlClocksThrottleReason{theirs}")
        bit = next((getattr(nvml, name) for name in names if hasattr(nvml, name)), 0)
        if mask & bit:
            reasons.append(ours)
    return reasons


def slowed(states: Mapping[str, str | int | float | bool]) -> list[str]:
    """Return for what reasons a card was held back, of those that change figures.

    >>> slowed({"held_back_by": "idle, power cap"})
    ['power cap']
    """
    reasons = str(states.get("held_back_by", "")).split(", ")
    return [reason for reason in reasons if reason in SLOWED]
