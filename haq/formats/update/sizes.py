"""What the codes of layers take in a packet, at each width: a cost for a search."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.options import Whole, coded, fitted
from haq.formats.update.plan import bits_of_part, bytes_of_tables, sets_of
from haq.formats.update.units import Unit


def coded_bytes(codes: Mapping[str, NDArray[np.integer]], bits: int) -> dict[str, float]:
    """Return the bytes that each layer's codes take in a packet of all of them.

    The tables are shared by all layers; each layer bears as much of them as it has codes.

    Args:
        codes: Layer to whole numbers in the shape of its weights.
        bits: Of all of them, from 2 to 8.
    """
    wholes = [
        Whole(Unit(name, z.shape, bits, ""), "d", z.ravel().astype(np.int32))
        for name, z in codes.items()
    ]
    coefficients = fitted(wholes)
    ways = [coded(whole, coefficients) for whole in wholes]
    sets = sets_of(ways)
    each = bytes_of_tables(sets) / max(sum(way.unit.values for way in ways), 1)
    return {
        way.unit.name: sum(bits_of_part(part, sets) for part in way.parts) / 8
        + each * way.unit.values
        for way in ways
    }
