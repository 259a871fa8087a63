"""Packing files and unpacking them: ``haq pack`` and ``haq unpack``, and the same from Python."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haq.errors import UpdateError
from haq.files import write_bytes
from haq.formats.update import family, packet
from haq.formats.update import manifest as manifests
from haq.formats.update import network as networks
from haq.formats.update.chain import linked
from haq.formats.update.family import Root
from haq.formats.update.manifest import Manifest
from haq.formats.update.network import Network
from haq.formats.update.packet import Sent

Name = str | os.PathLike[str]

SUFFIX = ".haqz"


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        path: Of the packet.
        size: Of the packet, in bytes.
        files: Of what was packed, in bytes.
        manifest: Of the packet.
        roots: For a family, what it takes with each root that was tried.
        root: For a family, the root it has.
    """

    path: Path
    size: int
    files: int
    manifest: Manifest
    roots: tuple[Root, ...] = ()
    root: str | None = None


def pack(
    new: Name | Sequence[Name],
    out: Name,
    base: Name | None = None,
    bits: int | None = None,
    root: str = "auto",
) -> Packed:
    """Write networks as a packet that is as small as may be.

    Args:
        new: A safetensors file, such as ``haq.export_checkpoint`` writes; or several, which become
            a family: each can be unpacked with no other one than its root.
        out: The packet, which ends in .haqz; it is never seen half-written.
        base: The file that the receiver has. The packet then holds the difference, and only a
            receiver that has this network can unpack it.
        bits: Round the weights of float32 tensors to so many bits, 2 to 8. Without it, unpacking
            gives back the file byte for byte.
        root: Of a family, the name of a file without its suffix; "auto" tries all of them.

    Raises:
        UpdateError: A file is missing or damaged, or cannot be packed.

    >>> haq.pack("new.safetensors", "new.haqz", base="old.safetensors").size  # doctest: +SKIP
    40412
    """
    paths = [Path(new)] if isinstance(new, str | os.PathLike) else [Path(one) for one in new]
    target = target_of(out, SUFFIX)
    members = _members(paths)
    held = networks.read(Path(base)) if base is not None else None
    roots: list[Root] = []
    if len(members) == 1:
        ((name, network),) = members.items()
        data = packet.write([Sent(name, network, held)], bits)
    elif held is not None:
        raise UpdateError("a family takes no base: its members are predicted from its root")
    else:
        data, roots = family.write(members, root, bits)
    write_file(target, data)
    manifest = manifests.read(data)
    chosen = manifest.members[0].name if roots else None
    size = sum(path.stat().st_size for path in paths)
    return Packed(target, len(data), size, manifest, tuple(roots), chosen)


def unpack(
    packets: Name | Sequence[Name], out: Name, base: Name | None = None, only: str | None = None
) -> Network:
    """Write the network in a packet as the file it was packed from.

    Args:
        packets: The packet; or the packets of a chain, in any order, each the difference to the
            network that another one gives.
        out: The file to write. It is written in one step, after the network was found to be the
            one that was packed.
        base: The file that is held, where a packet is a difference.
        only: The name of a member of a family.

    Returns:
        The network; its ``id`` is what a service is asked with for the next one.

    Raises:
        UpdateError: A packet is damaged, or is a difference to another network. Nothing is written.
    """
    paths = [Path(packets)] if isinstance(packets, str | os.PathLike) else map(Path, packets)
    target = target_of(out)
    held = networks.read(Path(base)) if base is not None else None
    files = {path: _bytes(path) for path in paths}
    if not files:
        raise UpdateError("there is no packet to unpack")
    for path in linked({path: _manifest(path, data) for path, data in files.items()}, held, only):
        try:
            held = packet.read(files[path], held, only)
        except UpdateError as error:
            raise UpdateError(f"{path}: {error}") from None
    assert held is not None
    write_file(target, held.file())
    return held


def _members(paths: Sequence[Path]) -> dict[str, Network]:
    members: dict[str, Network] = {}
    for path in paths:
        if path.stem in members:
            raise UpdateError(f"two files are called {path.stem}: members go by their file's name")
        members[path.stem] = networks.read(path)
    if not members:
        raise UpdateError("there is no file to pack")
    return members


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        return manifests.read(data)
    except UpdateError as error:
        raise UpdateError(f"{path}: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UpdateError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def target_of(out: Name, suffix: str | None = None) -> Path:
    """Return where a file is to be written; of a suffix, where one is asked for."""
    target = Path(out)
    if suffix is not None and target.suffix != suffix:
        raise UpdateError(f"cannot write {target}: the name of a packet ends in {suffix}")
    if target.is_dir():
        raise UpdateError(f"{target} is a folder; give the name of a file")
    return target


def write_file(target: Path, data: bytes) -> None:
    """Write a file in one step, and its folder where there is none."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, data)
    except OSError as error:
        raise UpdateError(
            f"cannot write {target}: {(error.strerror or str(error)).lower()}"
        ) from None
