"""Chains: packets each of which is the difference to what another one gives."""

from collections.abc import Mapping
from typing import TypeVar

from haq.errors import UpdateError
from haq.formats.update.manifest import Manifest
from haq.formats.update.network import Network
from haq.formats.update.packet import find

T = TypeVar("T")

MAX_CHAIN = 64
"""Packets in a row; after so many, send a whole network again."""


def linked(packets: Mapping[T, Manifest], held: Network | None, only: str | None) -> list[T]:
    """Return packets in the order in which they are unpacked, whatever order they came in.

    Args:
        packets: Their manifests.
        held: The network that is held.
        only: The name of a member, for packets of several.

    Raises:
        UpdateError: They are no chain, or a longer one than ``MAX_CHAIN``.
    """
    if len(packets) == 1:
        return list(packets)  # its base is checked when it is unpacked
    if len(packets) > MAX_CHAIN:
        raise UpdateError(
            f"a chain of {len(packets)} packets: at most {MAX_CHAIN} are taken in a row; "
            "pack the newest network without a base"
        )
    left = {key: find(manifest, only) for key, manifest in packets.items()}
    whole = [key for key, member in left.items() if member.base is None]
    if len(whole) > 1:
        raise UpdateError("two of the packets are whole networks: unpack each by itself")
    order: list[T] = []
    at = held.id if held is not None and not whole else None
    while left:
        following = [key for key, member in left.items() if member.base == at]
        if len(following) != 1:
            raise UpdateError(_broken(len(following), at, [m.base for m in left.values()]))
        order += following
        at = left.pop(following[0]).id
    return order


def _broken(count: int, at: str | None, bases: list[str | None]) -> str:
    known = f"network {at[:12]}" if at else "nothing"
    if count > 1:
        return f"{count} packets follow {known}: a chain has one way"
    needed = ", ".join(sorted(base[:12] for base in bases if base))
    return f"no packet follows {known}: those that are left are differences to {needed}"
