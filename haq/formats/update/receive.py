"""Packets that arrive in parts: in any order, more than once, over several attempts.

A packet on its way is a file beside the one that is to be written, and a list of the parts that are
there. Both survive an interruption; what was never whole is never taken for a packet.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from haq.errors import UpdateError
from haq.files import write_text

LARGEST = 2**36
"""The longest packet that is received, in bytes."""

Span = tuple[int, int]


class Receiver:
    """A packet on its way.

    Args:
        path: Of the file that holds its parts; a list of them is kept beside it.
        digest: SHA-256 of the packet, 64 hexadecimal digits. Parts of another one are thrown away.
        size: Of the packet, in bytes.

    Raises:
        UpdateError: The size is out of range, or the file cannot be written.
    """

    def __init__(self, path: Path, digest: str, size: int) -> None:
        if not 0 <= size <= LARGEST:
            raise UpdateError(f"a packet of {size} bytes is not received: at most {LARGEST} are")
        self.path, self.digest, self.size = path, digest, size
        self.list = path.with_name(path.name + ".json")
        self.spans = self._resumed()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise _unwritable(path, error) from None

    def _resumed(self) -> list[Span]:
        try:
            known = json.loads(self.list.read_text(encoding="utf-8"))
            spans = [(int(begin), int(end)) for begin, end in known["spans"]]
            there = self.path.stat().st_size
        except (OSError, ValueError, TypeError, KeyError):
            return []
        if (known.get("digest"), known.get("size")) != (self.digest, self.size):
            return []
        most = min(there, self.size)
        return _merged(
            (begin, min(end, most)) for begin, end in spans if 0 <= begin < min(end, most)
        )

    @property
    def missing(self) -> list[Span]:
        """From where to where bytes are missing."""
        at, gaps = 0, []
        for begin, end in [*self.spans, (self.size, self.size)]:
            if at < begin:
                gaps.append((at, begin))
            at = end
        return gaps

    def take(self, begin: int, data: bytes) -> None:
        """Take in a part, whichever comes next; it counts once it lies in the file.

        Raises:
            UpdateError: It lies outside the packet, or the file cannot be written.
        """
        end = begin + len(data)
        if begin < 0 or end > self.size:
            raise UpdateError(f"bytes {begin} to {end} are not in a packet of {self.size}")
        if not data:
            return
        spans = _merged([*self.spans, (begin, end)])
        known = {"digest": self.digest, "size": self.size, "spans": spans}
        try:
            with self.path.open("r+b") as file:
                file.seek(begin)
                file.write(data)
                file.flush()
            write_text(self.list, json.dumps(known))
        except OSError as error:  # such as a full disk, which is no broken connection
            raise _unwritable(self.path, error) from None
        self.spans = spans

    def packet(self) -> bytes:
        """Return the packet; its parts are not needed any more.

        Raises:
            UpdateError: A part is missing, or it is not the packet that was announced. In the
                second case all parts are thrown away.
        """
        if self.missing:
            begin, end = self.missing[0]
            raise UpdateError(f"bytes {begin} to {end} of the packet have not arrived yet")
        data = self.path.read_bytes()[: self.size]
        if hashlib.sha256(data).hexdigest() != self.digest:
            self.discard()
            raise UpdateError(
                "the packet that arrived is not the one that was announced: its SHA-256 is wrong; "
                "ask for it again"
            )
        return data

    def discard(self) -> None:
        """Take away all parts."""
        self.path.unlink(missing_ok=True)
        self.list.unlink(missing_ok=True)
        self.spans = []


def _unwritable(path: Path, error: OSError) -> UpdateError:
    return UpdateError(f"cannot write {path}: {(error.strerror or str(error)).lower()}")


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
