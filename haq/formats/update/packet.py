"""Packets in memory: from networks to bytes, and from bytes to the one network that was meant."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError
from haq.formats.update import manifest as manifests
from haq.formats.update.manifest import Manifest, Member, Section, deflated
from haq.formats.update.network import EXPANSION, FREE_BYTES, SCALES, Network, Outline, Tensor
from haq.formats.update.options import Coded, is_lossy
from haq.formats.update.plan import plan
from haq.formats.update.sections import Reader, Steps, cut, encode
from haq.formats.update.units import Unit, units

Fetch = Callable[[int, int], bytes]
"""Gives the bytes of a packet from one place up to another."""


class Sent(NamedTuple):
    """A network to be sent.

    Attributes:
        name: In the packet.
        network: As it is; for a lossy packet, before rounding.
        base: What the receiver has, or another one of the packet; None for none.
    """

    name: str
    network: Network
    base: Network | None = None


def write(sent: Sequence[Sent], bits: int | None = None) -> bytes:
    """Return the packet of some networks; what it gives back has been compared with them.

    Args:
        sent: A member that is another one's base stands before it.
        bits: As for ``plan``.

    Raises:
        UpdateError: A network cannot be packed.
    """
    if bits is not None and not 2 <= bits <= 8:
        raise UpdateError(f"{bits} bits: give 2 to 8, or none for an exact packet")
    for one in sent:
        _check_codes(one)
    for one in sent if bits is not None else ():
        if not any(map(is_lossy, units(one.network.outline))):
            raise UpdateError(
                f"{one.name!r} has no float32 tensor of two or more dimensions that {bits} bits "
                "could round; leave the bits out"
            )
    chosen = plan([(one.network, one.base) for one in sent], bits)
    coded = [[(part, encode(part, chosen.sets)) for part in cut(m)] for m in chosen.members]
    members = [_member(*pair) for pair in zip(sent, coded, strict=True)]
    manifest = Manifest(members, chosen.sets, chosen.coefficients)
    for place, (one, sections) in enumerate(zip(sent, coded, strict=True)):
        data = [section for _, section in sections]
        result = decoded(manifest, members[place], one.base, data, check=False)
        if bits is None and result.id != one.network.id:
            raise UpdateError(f"{one.name!r} would not come out as it is; please report it")
        members[place] = Member(**{**vars(members[place]), "id": result.id})
    body = b"".join(data for sections in coded for _, data in sections)
    packet = manifests.written(manifest) + body
    _check_size(sum(one.network.outline.expanded for one in sent), len(packet), None)
    return packet


def _check_codes(one: Sent) -> None:
    for layer in one.network.layers.values():
        data = one.network.tensors["codes"].data[layer.place].tobytes()
        if layer.coding != "dense" and layer.bytes(layer.codes(data)) != data:
            raise UpdateError(
                f"{one.name!r}: the codes of layer {layer.name!r} are not as HAQ writes them in "
                f"format {layer.coding!r}; export it anew"
            )


def rounded(network: Network, bits: int) -> Network:
    """Return what a lossy packet of a network alone gives back."""
    return read(write([Sent("network", network)], bits))


def _member(one: Sent, coded: Sequence[tuple[Sequence[Coded], bytes]]) -> Member:
    every = [unit for part, _ in coded for unit in part]
    outline = one.base.outline if one.base else None
    return Member(
        one.name, one.network.id, one.base.id if one.base else None,
        deflated(one.network.header, outline), len(one.network.header),
        "".join(unit.mode for unit in every),
        {at: unit.lossy for at, unit in enumerate(every) if unit.lossy},
        [Section(len(data), len(part), hashlib.sha256(data).digest()) for part, data in coded],
    )  # fmt: skip


def read(packet: bytes, base: Network | None = None, only: str | None = None) -> Network:
    """Return a network of a packet.

    Args:
        packet: All of it.
        base: What is held.
        only: The name of a member; needed where there are several.

    Raises:
        UpdateError: The packet is damaged, is for another base, or has no such member.
    """
    manifest = manifests.read(packet)
    if len(packet) != manifest.size:
        raise UpdateError(
            f"the packet should have {manifest.size} bytes, and has {len(packet)}: it was "
            f"{'cut short' if len(packet) < manifest.size else 'added to'}"
        )
    return member(manifest, lambda begin, end: packet[begin:end], base, only)


def member(
    manifest: Manifest, fetch: Fetch, base: Network | None = None, only: str | None = None
) -> Network:
    """Return a member of a packet, of which only its own bytes and its base's are fetched.

    Raises:
        UpdateError: As ``read``.
    """
    one = find(manifest, only)
    held = _base(manifest, fetch, one, base)
    places = manifest.places()[one.name]
    data = [_fetched(fetch, *pair) for pair in zip(one.sections, places, strict=True)]
    return decoded(manifest, one, held, data)


def values(
    manifest: Manifest,
    fetch: Fetch,
    name: str,
    base: Network | None = None,
    only: str | None = None,
) -> NDArray[np.generic]:
    """Return the codes of one layer, or the bytes of one tensor, of a member of a packet.

    Only the section in which it lies is fetched, and, for a layer that is predicted by the weights
    of the base, the one with the scales. The network's id, which needs all of it, is not checked.

    Raises:
        UpdateError: As ``read``, or there is no such layer or tensor.
    """
    one = find(manifest, only)
    held = _base(manifest, fetch, one, base)
    outline = one.outline(held.outline if held else None)
    every = units(outline)
    names = [unit.name for unit in every]
    if name not in names:
        raise UpdateError(f"{one.name!r} has no tensor or layer {name!r}")
    ends = np.cumsum([section.units for section in one.sections])
    at = names.index(name)
    needed = {int(np.searchsorted(ends, at, side="right"))}
    if every[at].bits and one.modes[at] in "vV":
        scales = [place for place, unit in enumerate(every) if unit.name in SCALES]
        needed |= {int(number) for number in np.searchsorted(ends, scales, side="right")}
    places = manifest.places()[one.name]
    data = [
        _fetched(fetch, section, place) if number in needed else None
        for number, (section, place) in enumerate(zip(one.sections, places, strict=True))
    ]
    found = _values(manifest, one, held, outline, data)
    unit = every[at]
    return found[unit].reshape(unit.shape) if unit.bits else found[unit]


def _base(manifest: Manifest, fetch: Fetch, one: Member, base: Network | None) -> Network | None:
    """Return what a member is predicted from: what is held, or another member."""
    if one.base is None:
        return None
    if base is None or base.id != one.base:
        inside = next((m for m in manifest.members if m.id == one.base and m is not one), None)
        if inside is not None:
            if inside.base is not None and (base is None or inside.base != base.id):
                raise UpdateError(
                    f"{one.name!r} needs {inside.name!r}, which needs another network"
                )
            base = member(manifest, fetch, base, inside.name)
    check_base(one, base)
    return base


def _fetched(fetch: Fetch, section: Section, place: tuple[int, int]) -> bytes:
    data = fetch(*place)
    if hashlib.sha256(data).digest() != section.digest:
        raise UpdateError(f"bytes {place[0]} to {place[1]} are damaged: their SHA-256 is wrong")
    return data


def find(manifest: Manifest, only: str | None) -> Member:
    """Return a member by its name, or the only one.

    Raises:
        UpdateError: There is no such member, or there are several and none is named.
    """
    names = [member.name for member in manifest.members]
    if only is None and len(names) > 1:
        raise UpdateError(f"the packet holds {', '.join(names)}: say which one, with --only NAME")
    if only is not None and only not in names:
        raise UpdateError(f"the packet has no {only!r}, only {', '.join(names)}")
    return manifest.members[names.index(only) if only is not None else 0]


def check_base(one: Member, held: Network | None) -> None:
    """See that what is held is what a member is predicted from.

    Raises:
        UpdateError: It is another network, or none.
    """
    if one.base is None:
        return
    if held is None:
        raise UpdateError(
            f"{one.name!r} is a difference to network {one.base[:12]}: give that one, with --base"
        )
    if held.id != one.base:
        raise UpdateError(
            f"{one.name!r} is a difference to network {one.base[:12]}, and the base given is "
            f"{held.id[:12]}"
        )


def decoded(
    manifest: Manifest,
    one: Member,
    base: Network | None,
    sections: Sequence[bytes],
    check: bool = True,
) -> Network:
    """Return the network in the sections of a member.

    Args:
        manifest: Of the packet.
        one: The member.
        base: What it is predicted from.
        sections: Their bytes, their digests checked.
        check: Whether the network must have the member's id.

    Raises:
        UpdateError: The sections are damaged, or give another network.
    """
    try:
        network = _decoded(manifest, one, base, sections)
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        raise UpdateError(
            f"{one.name!r} is malformed ({type(error).__name__}: {str(error)[:80]})"
        ) from error
    if check and network.id != one.id:
        raise UpdateError(
            f"what came out is network {network.id[:12]}, and {one.name!r} is {one.id[:12]}: "
            "nothing was written"
        )
    return network


def _decoded(
    manifest: Manifest, one: Member, base: Network | None, sections: Sequence[bytes]
) -> Network:
    outline = one.outline(base.outline if base else None)
    _check_size(outline.expanded, sum(map(len, sections)), base)
    every = _values(manifest, one, base, outline, sections)
    return _network(one.text(base.outline if base else None), outline, every)


def _values(
    manifest: Manifest,
    one: Member,
    base: Network | None,
    outline: Outline,
    sections: Sequence[bytes | None],
) -> dict[Unit, NDArray[np.generic]]:
    """Return the units of the sections that are there."""
    steps, reader = Steps(outline.layers), Reader(manifest, base)
    rows = [
        (unit, mode, one.lossy.get(at))
        for at, (unit, mode) in enumerate(zip(units(outline), one.modes, strict=True))
    ]
    found: dict[Unit, NDArray[np.generic]] = {}
    at = 0
    for section, data in zip(one.sections, sections, strict=True):
        if data is not None:
            found |= reader.decode(data, rows[at : at + section.units], steps)
        at += section.units
    return found


def _check_size(size: int, packet: int, base: Network | None) -> None:
    """See that a network is no bomb: so large for its packet, and four times its base."""
    most = FREE_BYTES + EXPANSION * packet + 4 * (base.outline.expanded if base else 0)
    if size > most:
        raise UpdateError(
            f"a packet of {packet} bytes is said to hold a network of {size}, and {most} at most "
            "are taken from it"
        )


def _network(
    header: bytes, outline: Outline, values: Mapping[Unit, NDArray[np.generic]]
) -> Network:
    found = {(unit.name, unit.bits > 0): data for unit, data in values.items()}
    tensors = {}
    for name, (dtype, shape, size) in outline.tensors.items():
        if name == "codes" and outline.layers:
            every = outline.layers.values()
            parts = (layer.bytes(found[layer.name, True].astype(np.int8)) for layer in every)
            data = np.frombuffer(b"".join(parts), np.uint8)
            if data.size != size:
                raise UpdateError("its sparse codes take another number of bytes than it says")
        else:
            data = found[name, False].view(np.uint8) if size else np.zeros(0, np.uint8)
        tensors[name] = Tensor(dtype, shape, data)
    return Network(header, tensors)
