"""Relatives of one network in one packet: which of them is the root of the others."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError, look_up
from haq.formats.update import packet
from haq.formats.update.entropies import divergence, shared
from haq.formats.update.network import Network, floats
from haq.formats.update.packet import Sent


class Root(NamedTuple):
    """What a family takes with one of its members as the root.

    Attributes:
        name: Of the member.
        size: Of the whole packet, in bytes: what decides.
        divergence: Sum of the relative entropies of the other members to this one, in nats.
        shared: Values of the other members that lie in tensors which this one has too.
    """

    name: str
    size: int
    divergence: float
    shared: int


def write(
    members: Mapping[str, Network], root: str = "auto", bits: int | None = None
) -> tuple[bytes, list[Root]]:
    """Return the packet of a family, and what it would take with each root that was tried.

    Relative entropy and shared values are told beside the bytes, and decide nothing: a network
    whose channels are permuted has the relative entropy of its twin, and predicts nothing.

    Args:
        members: By name.
        root: A name, or "auto" for the member with which the packet is smallest.
        bits: As for ``packet.write``.

    Raises:
        UpdateError: A member cannot be packed, or there is none of the name ``root``.
    """
    if len({network.id for network in members.values()}) < len(members):
        raise UpdateError("two members of the family are the same network; leave one out")
    if root != "auto":
        look_up(members, "member", root)
    weights = {name: weights_of(network) for name, network in members.items()}
    tried = []
    for name in members if root == "auto" else [root]:
        others = [weights[other] for other in members if other != name]
        data = _with_root(members, name, bits)
        apart = sum(divergence(other, weights[name]) for other in others)
        both = sum(shared(other, weights[name]) for other in others)
        tried.append((len(data), data, Root(name, len(data), apart, both)))
    _, best, _ = min(tried, key=lambda row: row[0])
    return best, [row for _, _, row in tried]


def _with_root(members: Mapping[str, Network], root: str, bits: int | None) -> bytes:
    base = members[root] if bits is None else packet.rounded(members[root], bits)
    first = Sent(root, members[root])
    others = (Sent(name, each, base) for name, each in members.items() if name != root)
    return packet.write([first, *others], bits)


def weights_of(network: Network) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a network by name: those of layers, and float32 tensors."""
    weights = {
        name: floats(tensor.data).reshape(tensor.shape)
        for name, tensor in network.tensors.items()
        if tensor.dtype == "F32" and len(tensor.data) and len(tensor.shape) > 1
    }
    for name in network.layers:
        values = network.values(name)
        if values is not None:
            weights[name] = values
    return weights
