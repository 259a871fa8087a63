"""The ceilings of a target: what it could do at most, to hold a layer's cost against."""

from haq.allocation.costs import Target
from haq.allocation.policy import Bits
from haq.hw_profiles.formula import Ceilings
from haq.hw_profiles.target import ProfileTarget


def ceilings(target: Target, bits: Bits) -> Ceilings | None:
    """Return the most multiply-accumulates and bytes a second, or None where it is not known.

    It is known where a formula stands behind the target, not for a table of costs.

    Args:
        target: As ``load`` returns it.
        bits: Of weights and activations; the fewer, the higher the rate may be.
    """
    if not isinstance(target, ProfileTarget) or target.formula is None:
        return None
    return target.formula.ceilings(bits, target.profile.clock_hz or 0.0)
