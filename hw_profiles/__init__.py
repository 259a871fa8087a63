"""Targets: what a layer costs on a piece of hardware, at each pair of bit-widths.

A target is a profile: a JSON file next to this one and a line in ``TARGETS``. A kind of formula is
a module with its constants and a name in ``profile.Model``.
"""

from collections.abc import Mapping
from pathlib import Path

from haq.errors import TargetError, look_up
from haq.hw_profiles import document, table
from haq.hw_profiles.answers import CostAnswer, Explained
from haq.hw_profiles.formula import Constants
from haq.hw_profiles.measured import Measured, OwnDevice
from haq.hw_profiles.measured_target import MeasuredTarget, OwnDeviceTarget
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.target import ProfileTarget

__all__ = [
    "TARGETS",
    "CostAnswer",
    "Explained",
    "Profile",
    "ProfileTarget",
    "build",
    "find",
    "load",
]

_HERE = Path(__file__).parent

TARGETS: Mapping[str, Path] = {
    name: _HERE / f"{name}.json"
    for name in (
        "bismo-cloud",
        "bismo-edge",
        "bitfusion-default",
        "bitfusion-eyeriss",
        "bitfusion-stripes",
        "ethos-u55-32",
        "ethos-u55-64",
        "ethos-u55-128",
        "ethos-u55-256",
        "ethos-u65-256",
        "ethos-u65-512",
        "gap9-ne16",
        "mpic",
        "roofline-45nm",
    )
}
"""The profiles that come with the package."""


def find(name: str) -> Profile:
    """Return the profile that a name stands for.

    Args:
        name: One of ``TARGETS``, the path of a profile that ends in ".json", or "table:" and the
            path of a CSV, JSON or parquet file, as ``hw_profiles.table`` reads them.

    Raises:
        HaqError: There is no such target.
        TargetError: The file cannot be read or used.
    """
    if name.startswith("table:"):
        return table.read(name.removeprefix("table:"))
    if name.endswith(".json"):
        return document.read(name)
    if name.endswith((".csv", table.PARQUET)):
        raise TargetError(f"target {name!r}: write table:{name} for a table of costs")
    return document.read(look_up(TARGETS, "target", name))


def build(profile: Profile, batch: int | None = None) -> ProfileTarget:
    """Return the target of a profile.

    Args:
        profile: What is known.
        batch: Images computed together; the profile's reference where None.

    Raises:
        TargetError: The profile does not say what such a batch costs, or its table has no answer
            for bits that it declares.
    """
    size = profile.batch.reference if batch is None else batch
    model = profile.model
    if isinstance(model, Measured):
        return MeasuredTarget(profile, size)
    if isinstance(model, OwnDevice):
        return OwnDeviceTarget(profile, size)
    if isinstance(model, Constants):
        return ProfileTarget(profile, size, model.formula(profile.clock_hz or 0.0, size))
    return ProfileTarget(profile, size)


def load(name: str, batch: int | None = None) -> ProfileTarget:
    """Return a target by its name, its profile or its table.

    Args:
        name: As in ``find``.
        batch: As in ``build``.

    Raises:
        HaqError: There is no such target.
        TargetError: The target cannot run such a batch, or its file cannot be used.

    >>> load("bismo-cloud").batch, load("bismo-cloud", batch=1).batch
    (16, 1)
    """
    return build(find(name), batch)
