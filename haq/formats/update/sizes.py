"""What the codes of layers take in a packet, at each width: a cost for a search."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.options import ways
from haq.formats.update.plan import best, bits_of_part, bytes_of_tables
from haq.formats.update.units import Unit


def coded_bytes(codes: Mapping[str, NDArray[np.integer]], bits: int) -> dict[str, float]:
    """Return the bytes that each layer's codes take in a packet of all of them.

    The tables are shared by all layers; each layer bears as much of them as it has codes.

    Args:
        codes: Layer to whole numbers in the shape of its weights.
        bits: Of all of them, from 2 to 8.
    """
    chosen = best([[
        ways("d", Unit(name, z.shape, bits, ""), z.ravel().astype(np.int32), bits)
        for name, z in codes.items()
    ]])  # fmt: skip
    (every,) = chosen.members
    each = bytes_of_tables(chosen.sets) / max(sum(way.unit.values for way in every), 1)
    return {
        way.unit.name: sum(bits_of_part(part, chosen.sets) for part in way.parts) / 8
        + each * way.unit.values
        for way in every
    }
