"""Packets whose digests are right and whose content is not: what a fuzzer or an enemy sends."""

import hashlib
import json
import struct
import zlib

import numpy as np
import update_files as files

from haq.errors import UpdateError
from haq.formats.update import packet
from haq.formats.update.manifest import HEAD, MAGIC, PREFIX, VERSION
from haq.formats.update.network import parse
from haq.formats.update.packet import Sent


def taken_apart(data):
    """Return the fields, the rest of the manifest, and the sections of a packet."""
    stored = PREFIX.unpack(data[: PREFIX.size])[3]
    whole = zlib.decompress(data[HEAD : HEAD + stored])
    (length,) = struct.unpack("<I", whole[:4])
    return json.loads(whole[4 : 4 + length]), whole[4 + length :], data[HEAD + stored :]


def signed(fields, rest, sections, version=VERSION, zero=0, expanded=None):
    """Return a packet of any content, its digests made right."""
    sizes = list(_sizes(fields))
    at, digests = 0, b""
    for size in sizes:
        digests += hashlib.sha256(sections[at : at + size]).digest()
        at += size
    rest = rest[: max(len(rest) - 32 * len(sizes), 0)] + digests
    text = json.dumps(fields).encode()
    whole = struct.pack("<I", len(text)) + text + rest
    stored = zlib.compress(whole)
    size = len(whole) if expanded is None else expanded
    prefix = PREFIX.pack(MAGIC, version, zero, len(stored), size)
    return prefix + hashlib.sha256(prefix + stored).digest() + stored + sections


def _sizes(fields):
    """Yield the sizes of sections that are any."""
    members = fields.get("members") if isinstance(fields, dict) else None
    for one in members if isinstance(members, list) else []:
        rows = one.get("sections") if isinstance(one, dict) else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, list) and row and type(row[0]) is int and row[0] >= 0:
                yield row[0]


def examples():
    """Return packets of all kinds, each with the base it needs and the network it holds."""
    known = files.weights(shapes={"conv": (4, 3, 3, 3), "fc": (5, 4)})
    near = files.moved(known, 0.03)
    old, new = (
        files.quantized(known, {"conv": 4, "fc": 8}),
        files.quantized(near, {"conv": 3, "fc": 6}),
    )
    older, pruned = files.pruned(0), files.pruned(1)
    smooth = files.quantized(files.smooth(), 6)
    floats, tuned = files.floats(known), files.floats(near, n=np.arange(4))
    return [
        (packet.write([Sent("new", parse(new))]), None, parse(new).id),
        (packet.write([Sent("new", parse(new), parse(old))]), parse(old), parse(new).id),
        (packet.write([Sent("new", parse(tuned), parse(floats))]), parse(floats), parse(tuned).id),
        (rounded := packet.write([Sent("new", parse(tuned), parse(floats))], 4), parse(floats),
         packet.read(rounded, parse(floats)).id),
        (packet.write([Sent("new", parse(pruned), parse(older))]), parse(older), parse(pruned).id),
        (packet.write([Sent("new", parse(smooth))]), None, parse(smooth).id),
    ]  # fmt: skip


def outcome(data, base):
    """Return the id of the network in a packet, or the sentence with which it is refused.

    Anything else that is raised is a fault.
    """
    try:
        return packet.read(data, base).id
    except UpdateError as error:
        return str(error)


def mutated(data, numbers):
    """Return a packet changed somewhere, its digests made right, by a numpy generator."""
    fields, rest, sections = taken_apart(data)
    kind = numbers.integers(4)
    if kind == 0:
        sections = _changed(sections, numbers)
    elif kind == 1:
        rest = _changed(rest, numbers)
    elif kind == 2:
        text = _changed(json.dumps(fields).encode(), numbers)
        try:
            other = json.loads(text)
        except ValueError:
            return data[: int(numbers.integers(len(data)))]
        fields = other if isinstance(other, dict) else fields
    else:
        fields = _field(fields, numbers)
    return signed(fields, rest, sections)


def _changed(data, numbers):
    data = bytearray(data)
    for _ in range(int(numbers.integers(1, 4))):
        at = int(numbers.integers(max(len(data), 1)))
        change = numbers.integers(3)
        if change == 0 and data:
            data[at] = int(numbers.integers(256))
        elif change == 1:
            del data[at : at + int(numbers.integers(1, 9))]
        else:
            data[at:at] = numbers.bytes(int(numbers.integers(1, 9)))
    return bytes(data)


ODD = [0, -1, 1, 2**31, 2**62, 1e300, None, True, "", "s", "d", "v", "q", "c4d", [], {}, [[]], "é"]


def _field(value, numbers):
    """Return a JSON value with one part of it replaced by something odd."""
    if isinstance(value, dict) and value and numbers.random() < 0.9:
        key = list(value)[int(numbers.integers(len(value)))]
        changed = dict(value)
        if numbers.random() < 0.85:
            changed[key] = _field(value[key], numbers)
        else:
            del changed[key]
        return changed
    if isinstance(value, list) and value and numbers.random() < 0.9:
        at = int(numbers.integers(len(value)))
        return [*value[:at], _field(value[at], numbers), *value[at + 1 :]]
    if isinstance(value, int) and numbers.random() < 0.5:
        return value + int(numbers.integers(-3, 4))
    return ODD[int(numbers.integers(len(ODD)))]


def is_whole(data):
    """Return whether a packet can be taken apart."""
    try:
        taken_apart(data)
    except (ValueError, struct.error, zlib.error, IndexError):
        return False
    return True
