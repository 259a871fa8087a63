"""The ceilings of a target: what it could do at most, to hold a layer's cost against."""

from typing import NamedTuple

from haq.allocation.costs import Target
from haq.allocation.policy import Bits
from haq.hw_profiles import bitfusion, bitserial, roofline
from haq.hw_profiles.lookup import ProfileTarget


class Ceilings(NamedTuple):
    """The two lines of a roofline.

    Attributes:
        macs_per_second: With every unit of the array busy, at some bits.
        bytes_per_second: Of all channels to the memory together.
    """

    macs_per_second: float
    bytes_per_second: float


def ceilings(target: Target, bits: Bits) -> Ceilings | None:
    """Return the most multiply-accumulates and bytes a second, or None where it is not known.

    It is known where a formula stands behind the target, not for a table of costs.

    Args:
        target: As ``load`` returns it.
        bits: Of weights and activations; the fewer, the higher the rate may be.
    """
    if not isinstance(target, ProfileTarget):
        return None
    formula, clock_hz = target.formula, target.profile.clock_hz or 0.0
    if isinstance(formula, bitserial.Formula):
        overlay = formula.overlay
        lanes = overlay.rows * overlay.columns * overlay.word_bits
        macs = lanes * clock_hz / (bits.weight * bits.act)
        return Ceilings(macs, 2 * overlay.port_bits / 8 * clock_hz)
    if isinstance(formula, bitfusion.Formula):
        array = formula.array
        macs = array.rows * array.columns * array.products(bits) * clock_hz
        return Ceilings(macs, array.dram_bits / 8 * clock_hz)
    if isinstance(formula, roofline.Formula):
        return Ceilings(formula.machine.peak(bits), formula.machine.bytes_per_second)
    return None
