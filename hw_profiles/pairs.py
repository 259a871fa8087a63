"""Pairs of bits as text."""

from collections.abc import Collection, Sequence

from haq.allocation.policy import FLOAT, Bits


def listed(choices: Collection[Bits]) -> str:
    """Return the pairs as text; many that fill a rectangle are one, also where a few are missing.

    >>> listed([Bits(weight, act) for weight in (2, 4, 8) for act in (6, 7, 8)])
    'w2,4,8 a6..8'
    >>> widths = range(2, 9)
    >>> listed([Bits(weight, act) for weight in widths for act in widths if weight + act < 16])
    'w2..8 a2..8 without w8a8'
    >>> listed([Bits(4, 8), Bits(8, 8), Bits(32, 32)])
    'w4a8, w8a8, fp32'
    >>> listed([Bits(weight, 32, 32) for weight in widths] + [Bits(7, 32, 0, "token")])
    'w2..8g32, w7t8'
    """
    inner = {bits for bits in choices if FLOAT not in bits}
    sides = [sorted({bits[side] for bits in inner}) for side in (0, 1)]
    whole = {Bits(weight, act) for weight in sides[0] for act in sides[1]}
    missing = sorted(whole - inner)
    if len(inner) > max(4, 8 * len(missing)):
        grid = ["w{} a{}".format(*map(_widths, sides))]
        if missing:
            grid[0] += f" without {' and '.join(map(str, missing))}"
    else:
        grid = list(map(str, sorted(inner)))
    rest = sorted(set(choices) - inner)
    formats: dict[tuple[int, str], list[Bits]] = {}
    for bits in rest:
        if bits.is_special:
            formats.setdefault(bits.scheme[1:], []).append(bits)
    special = [
        str(some[0]).replace(f"w{some[0].weight}", f"w{_widths([b.weight for b in some])}", 1)
        for some in formats.values()
    ]
    plain = [str(bits) for bits in rest if not bits.is_special]
    return ", ".join([*grid, *special, *plain])


def _widths(widths: Sequence[int]) -> str:
    if len(widths) > 2 and widths[-1] - widths[0] == len(widths) - 1:
        return f"{widths[0]}..{widths[-1]}"
    return ",".join(map(str, widths))
