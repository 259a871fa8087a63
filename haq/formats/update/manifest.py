"""The manifest of a packet: what it holds, for whom, and the tables of its coder.

docs/updates.md describes the bytes. What is read here has been checked against its digest, and is
believed no more for that: every number is checked before anything is done with it.
"""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from haq.errors import UpdateError
from haq.formats.coder import tables
from haq.formats.update.coefficients import LIMIT, Key
from haq.formats.update.network import HEADER, Outline, outline
from haq.formats.update.options import Lossy, is_lossy
from haq.formats.update.order import coefficients_of
from haq.formats.update.plan import Tables
from haq.formats.update.units import BASED, LOSSY, MODES, contexts_of, symbols_of, units

MAGIC = b"\x89HAQZ\r\n\x1a"
VERSION = 2
PREFIX = struct.Struct("<8sHHII")  # magic, version, zero, bytes of the manifest: stored, expanded
HEAD = PREFIX.size + 32
"""Bytes before the manifest: the prefix, and the digest of prefix and manifest."""

MOST_EXPANDED = 2**26
"""The longest manifest that is read, in bytes, expanded."""

MOST_MEMBERS = 1024

_ID = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"c[2-8][dvql]|c[5-8][DVQL]|p1[0][dv]|p2[01][dv]|p4[0-3][dv]|p8[0-7][dv]")


@dataclass(frozen=True)
class Section:
    """Some units of a member, coded together.

    Attributes:
        size: In bytes.
        units: How many.
        digest: SHA-256 of its bytes.
    """

    size: int
    units: int
    digest: bytes


@dataclass(frozen=True)
class Member:
    """A network in a packet.

    Attributes:
        name: How it is asked for.
        id: Of its tensors, see ``network.Network.id``.
        base: The id of the network it is predicted from: another member, or one that the receiver
            holds; None where it needs none.
        header: Deflated, with the ``words`` of its base as dictionary.
        expanded: Bytes of the header.
        modes: A letter a unit.
        lossy: Place of a unit to how it is rounded.
        sections: In order.
    """

    name: str
    id: str
    base: str | None
    header: bytes
    expanded: int
    modes: str
    lossy: Mapping[int, Lossy]
    sections: Sequence[Section]

    def outline(self, base: Outline | None) -> Outline:
        """Return what its header says, given its base's.

        Raises:
            UpdateError: The header is damaged, or does not fit the modes.
        """
        known = outline(self.text(base))
        every = units(known)
        if len(every) != len(self.modes):
            raise UpdateError(
                f"{self.name!r} has {len(every)} tensors and layers by its header, and "
                f"{len(self.modes)} by its manifest"
            )
        for place, (unit, mode) in enumerate(zip(every, self.modes, strict=True)):
            rounded = mode in LOSSY
            if rounded != (place in self.lossy) or (rounded and not is_lossy(unit)):
                raise UpdateError(f"{unit.name!r} cannot be in mode {mode!r}")
            if (mode in "DV" and not unit.bits) or (mode in BASED and self.base is None):
                raise UpdateError(f"{unit.name!r} cannot be in mode {mode!r}")
        return known

    def text(self, base: Outline | None) -> bytes:
        """Return the bytes of its header."""
        stream = zlib.decompressobj(-15, base.words if base else b"")
        try:
            text = stream.decompress(self.header, self.expanded + 1)
        except zlib.error as error:
            raise UpdateError(f"the header of {self.name!r} cannot be expanded ({error})") from None
        if len(text) != self.expanded or not stream.eof or stream.unused_data:
            raise UpdateError(f"the header of {self.name!r} is not as long as it says")
        return text


@dataclass(frozen=True)
class Manifest:
    """All that a packet says of itself.

    Attributes:
        members: In the order of their sections.
        sets: The tables of each set that is coded.
        coefficients: For each kernel and kind.
        begin: Where the first section begins in the packet.
    """

    members: Sequence[Member]
    sets: Mapping[str, Tables]
    coefficients: Mapping[Key, Sequence[int]]
    begin: int = 0

    def places(self) -> dict[str, list[tuple[int, int]]]:
        """Return where each section of each member begins and ends in the packet."""
        places: dict[str, list[tuple[int, int]]] = {}
        at = self.begin
        for member in self.members:
            places[member.name] = []
            for section in member.sections:
                places[member.name].append((at, at + section.size))
                at += section.size
        return places

    @property
    def size(self) -> int:
        """How long the packet is, in bytes."""
        return self.begin + sum(s.size for member in self.members for s in member.sections)


def deflated(header: bytes, base: Outline | None) -> bytes:
    """Return a header as ``Member.header`` has it."""
    words = base.words if base else b""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, words)
    return stream.compress(header) + stream.flush()


def written(manifest: Manifest) -> bytes:
    """Return the first bytes of a packet, up to its first section."""
    fields = {
        "members": [_fields(member) for member in manifest.members],
        "sets": {key: len(known.levels) for key, known in manifest.sets.items()},
        "near": [[kernel, kind, *row] for (kernel, kind), row in manifest.coefficients.items()],
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    blobs = [known.context.tobytes() + known.levels.tobytes() for known in manifest.sets.values()]
    blobs += [member.header for member in manifest.members]
    blobs += [s.digest for member in manifest.members for s in member.sections]
    expanded = struct.pack("<I", len(text)) + text + b"".join(blobs)
    stored = zlib.compress(expanded, 9)
    prefix = PREFIX.pack(MAGIC, VERSION, 0, len(stored), len(expanded))
    return prefix + hashlib.sha256(prefix + stored).digest() + stored


def _fields(member: Member) -> dict[str, Any]:
    lossy = {str(at): [bits, step.tobytes().hex()] for at, (bits, step) in member.lossy.items()}
    return {
        "name": member.name, "id": member.id, "base": member.base,
        "header": [len(member.header), member.expanded], "modes": member.modes,
        **({"lossy": lossy} if lossy else {}),
        "sections": [[section.size, section.units] for section in member.sections],
    }  # fmt: skip


def read(packet: bytes) -> Manifest:
    """Return the manifest of a packet, of which the beginning is enough.

    Raises:
        UpdateError: It is no packet, of another version, cut short, or damaged.
    """
    stored, expanded = lengths(packet)
    if len(packet) < HEAD + stored:
        raise UpdateError(
            f"cut short: the manifest ends at byte {HEAD + stored}, and {len(packet)} are there"
        )
    prefix, digest = packet[: PREFIX.size], packet[PREFIX.size : HEAD]
    body = packet[HEAD : HEAD + stored]
    if hashlib.sha256(prefix + body).digest() != digest:
        raise UpdateError("the manifest is damaged: its SHA-256 is not the one it is sent with")
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(body, expanded + 1)
    except zlib.error as error:
        raise UpdateError(f"the manifest cannot be expanded ({error})") from None
    if len(whole) != expanded or not stream.eof or stream.unused_data:
        raise UpdateError("the manifest is not as long as it says")
    try:
        return _parsed(whole, HEAD + stored)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UpdateError(f"the manifest is malformed ({str(error)[:80]})") from None
    except RecursionError:
        raise UpdateError("the manifest is malformed (nested too deeply)") from None


def lengths(packet: bytes) -> tuple[int, int]:
    """Return how long the manifest of a packet is, stored and expanded.

    Raises:
        UpdateError: It is no packet, of another version, or says what cannot be.
    """
    if packet[: len(MAGIC)] != MAGIC[: len(packet)] or len(packet) < len(MAGIC):
        raise UpdateError("not a packet of HAQ: it does not begin as one; haq pack writes them")
    if len(packet) < HEAD:
        raise UpdateError(f"cut short: a packet has at least {HEAD} bytes, and this {len(packet)}")
    _, version, zero, stored, expanded = PREFIX.unpack(packet[: PREFIX.size])
    if version != VERSION or zero:
        raise UpdateError(
            f"the packet has version {version}.{zero}, and this HAQ reads {VERSION}.0; install "
            "the version that wrote it"
        )
    if expanded > MOST_EXPANDED:
        raise UpdateError(
            f"the manifest is said to have {expanded} bytes, and none has over {MOST_EXPANDED}"
        )
    return stored, expanded


class _Cursor:
    """Takes bytes off, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if type(count) is not int or not 0 <= count <= len(self.data) - self.at:
            raise ValueError("its parts do not fit its length")
        self.at += count
        return self.data[self.at - count : self.at]


def _parsed(whole: bytes, begin: int) -> Manifest:
    rest = _Cursor(whole)
    (length,) = struct.unpack("<I", rest.take(4))
    fields = json.loads(rest.take(length).decode())
    if fields.keys() != {"members", "sets", "near"}:
        raise ValueError("it has other fields")
    sets = {key: _set(key, count, rest) for key, count in fields["sets"].items()}
    near = {}
    for kernel, kind, *row in fields["near"]:
        near[_kernel(kernel), _one_of(kind, "dvql")] = _coefficients(kernel, kind, row)
    rows = fields["members"]
    if not 1 <= len(rows) <= MOST_MEMBERS:
        raise ValueError(f"it has {len(rows)} members")
    headers = [rest.take(row["header"][0]) for row in rows]
    members = [_member(row, header, rest) for row, header in zip(rows, headers, strict=True)]
    if rest.at != len(whole):
        raise ValueError("bytes are left over")
    for what in ("name", "id"):
        if len({getattr(member, what) for member in members}) < len(members):
            raise ValueError(f"two members have the same {what}")
    return Manifest(members, sets, near, begin)


def _set(key: str, count: int, rest: _Cursor) -> Tables:
    if not _KEY.fullmatch(key) or type(count) is not int or not 1 <= count <= tables.MOST_TABLES:
        raise ValueError(f"it has a set of tables {key[:20]!r}")
    context = np.frombuffer(rest.take(contexts_of(key)), np.uint8)
    if int(context.max()) >= count:
        raise ValueError(f"a context of the set {key!r} has no table")
    levels = np.frombuffer(rest.take(count * symbols_of(key)), np.uint8)
    return Tables(context, levels.reshape(count, symbols_of(key)))


def _kernel(kernel: Any) -> tuple[int, ...]:
    if len(kernel) > 4 or not all(type(n) is int and 1 <= n <= 64 for n in kernel):
        raise ValueError(f"it has a kernel of {str(kernel)[:40]}")
    return tuple(kernel)


def _one_of(value: str, known: str) -> str:
    if not isinstance(value, str) or len(value) != 1 or value not in known:
        raise ValueError(f"it has a kind {str(value)[:20]!r}")
    return value


def _coefficients(kernel: Sequence[int], kind: str, row: Sequence[int]) -> list[int]:
    if len(row) != coefficients_of(kernel, kind == "v"):
        raise ValueError("it has too few or too many coefficients")
    if not all(type(n) is int and -LIMIT <= n <= LIMIT for n in row):
        raise ValueError("a coefficient is out of range")
    return list(row)


def _member(row: Mapping[str, Any], header: bytes, rest: _Cursor) -> Member:
    name, base = row["name"], row["base"]
    if not isinstance(name, str) or not 1 <= len(name) <= 200:
        raise ValueError("a member has no name")
    if not _ID.fullmatch(row["id"]) or not (base is None or _ID.fullmatch(base)):
        raise ValueError(f"{name[:80]!r} has no id")
    expanded, modes = row["header"][1], row["modes"]
    if type(expanded) is not int or not 0 <= expanded <= HEADER or set(modes) - set(MODES):
        raise ValueError(f"{name[:80]!r} has no header or unknown modes")
    lossy = {int(at): _lossy(*pair) for at, pair in row.get("lossy", {}).items()}
    sections = [_section(size, count, rest) for size, count in row["sections"]]
    if sum(section.units for section in sections) != len(modes):
        raise ValueError(f"the sections of {name[:80]!r} do not have its tensors")
    return Member(name, row["id"], base, header, expanded, modes, lossy, sections)


def _lossy(bits: int, step: str) -> Lossy:
    value = np.frombuffer(bytes.fromhex(step), "<f4")
    if type(bits) is not int or not 2 <= bits <= 8 or len(value) != 1:
        raise ValueError("a rounding has no bits or no step")
    if not (np.isfinite(value[0]) and value[0] > 0):
        raise ValueError(f"a step is {value[0]}; steps are positive and finite")
    return Lossy(bits, np.float32(value[0]))


def _section(size: int, count: int, rest: _Cursor) -> Section:
    if not all(type(n) is int and 0 <= n < 2**40 for n in (size, count)):
        raise ValueError("a section has no size")
    return Section(size, count, rest.take(32))
