"""How much one request, image, archive, run or user may take, as the operator decides."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from haq.errors import HaqError, look_up


@dataclass(frozen=True)
class Limits:
    """For all users alike.

    Attributes:
        body_bytes: Of a request that is no upload.
        upload_bytes: Of an upload.
        upload_rate_bytes: A second that an upload brings at least, beyond its first half minute.
        stored_bytes: Of all uploads and runs of one user.
        unpacked_bytes: Of an archive, unpacked.
        files: In an archive.
        file_bytes: Of one image.
        pixels: Of one image.
        ratio: Unpacked bytes to packed ones, and decoded pixels to bytes of a large image.
        unpack_s: CPU seconds to unpack and decode an archive.
        waiting: Runs of one user that are not over.
        running: Runs of one user at once.
        run_s: Of one run, all its tries together, without the time that it waits.
        episodes: Of one run.
        readers: Of events, at once.
        readers_each: Of events, at once, of one user.
        heavy: Requests at once that plan, export or draw.
        heavy_each: Of those, of one user.
        uploads: That are received or unpacked, at once.
        uploads_each: Of those, of one user.
        requests: Of one user at once; and a tenth of it a second after that.
        failures: Of a wrong token from one address, at once; and a tenth of it a second.
    """

    body_bytes: int = 1 << 20
    upload_bytes: int = 2 << 30
    upload_rate_bytes: int = 1024
    stored_bytes: int = 20 << 30
    unpacked_bytes: int = 8 << 30
    files: int = 200_000
    file_bytes: int = 50 << 20
    pixels: int = 40_000_000
    ratio: float = 200.0
    unpack_s: int = 1800
    waiting: int = 1000
    running: int = 1000
    run_s: float = 7 * 86_400.0
    episodes: int = 100_000
    readers: int = 1000
    readers_each: int = 200
    heavy: int = 16
    heavy_each: int = 8
    uploads: int = 16
    uploads_each: int = 4
    requests: int = 500
    failures: int = 20


_BYTES = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86_400}
_MOST = 10**15  # what databases and operating systems count up to without a thought


def limits_of(changes: Sequence[str]) -> Limits:
    """Return the limits with those changed that NAME=VALUE options name.

    >>> limits_of(["run_s=12h", "stored_bytes=5GB"]).run_s
    43200.0

    Raises:
        HaqError: A name is unknown, or a value is no amount of it.
    """
    known: Mapping[str, Any] = {field.name: field.type for field in fields(Limits)}
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise HaqError(f"limit {change!r}: write NAME=VALUE, such as run_s=24h")
        whole = look_up(known, "limit", name) is int
        amount = amount_of(f"limit {name}", text, _units(name))
        values[name] = int(amount) if whole else amount
    return Limits(**values)


def _units(name: str) -> Mapping[str, int]:
    return _BYTES if name.endswith("_bytes") else _SECONDS if name.endswith("_s") else {"": 1}


def bytes_of(what: str, text: str) -> int:
    """Return a number of bytes, such as 50GB.

    Raises:
        HaqError: It is none.
    """
    return int(amount_of(what, text, _BYTES))


def seconds_of(what: str, text: str) -> float:
    """Return a time in seconds, such as 90d.

    Raises:
        HaqError: It is none.
    """
    return amount_of(what, text, _SECONDS)


def amount_of(what: str, text: str, units: Mapping[str, int]) -> float:
    """Return an amount above 0 that is written with or without a unit.

    Raises:
        HaqError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    amount = float(match[1]) * units.get(match[2], 0) if match else 0.0
    if not 1 <= amount <= _MOST:
        written = ", ".join(filter(None, units)) or "no unit"
        raise HaqError(f"{what} {text!r}: give a number from 1 on ({written})")
    return amount
