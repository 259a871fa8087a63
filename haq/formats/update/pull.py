"""Asking a service for the newest network, with the id of the one that is held: ``haq pull``.

What is held goes along as its id. The service answers that it is the newest one, or with the
smallest packet. A packet that was interrupted goes on where it stopped, if it is still the same.
"""

import re
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from haq.errors import UpdateError
from haq.formats.update import network as networks
from haq.formats.update import packet
from haq.formats.update.pack import target_of, write_file
from haq.formats.update.receive import Receiver

TIMEOUT_S = 60.0

PART = 1 << 18
"""Bytes that are written down together."""

_DIGEST = re.compile(r'"([0-9a-f]{64})"')
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Answer(NamedTuple):
    """An answer over HTTP.

    Attributes:
        status: Such as 200.
        headers: By their names in small letters.
        read: Returns at most so many more bytes of it; none at the end.
    """

    status: int
    headers: Mapping[str, str]
    read: Callable[[int], bytes]


Ask = Callable[[str, Mapping[str, str]], Answer]
"""Asks for a URL with headers; an answer of any status comes back."""


class Pulled(NamedTuple):
    """What a service had.

    Attributes:
        network: The id of the newest network.
        size: Bytes of the packet; 0 where what is held is the newest.
        received: Bytes that came now, less than the packet's where a part was there already.
        difference: Whether the packet was a difference.
    """

    network: str
    size: int
    received: int
    difference: bool


def pull(
    url: str,
    out: Path,
    base: Path | None = None,
    token: str | None = None,
    ask: Ask | None = None,
) -> Pulled:
    """Write the newest network that a service has as the file ``out``.

    Args:
        url: Of a channel's or a run's network, such as https://HOST/v1/channels/NAME/network.
        out: The file to write, in one step; it stays as it is if what is held is the newest. A
            packet that has not arrived whole lies beside it meanwhile.
        base: The file that is held; None to get all of it.
        token: For the service.
        ask: How a URL is asked for; over HTTP without it.

    Raises:
        UpdateError: The service cannot be reached or refuses, or what it sends is not the network
            that it says.
    """
    out = target_of(out)
    held = networks.read(base) if base is not None else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if urlsplit(url).scheme not in ("http", "https"):
        raise UpdateError(f"cannot ask {url[:200]!r}: give an address that begins with https://")
    if held is not None:
        url += ("&" if "?" in url else "?") + urlencode({"held": held.id})
    ask = ask or _asked
    first = ask(url, headers)
    newest = first.headers.get("haq-network") or ""
    if first.status == 304 and held is not None and newest == held.id:
        return Pulled(held.id, 0, 0, False)
    receiver, received = _received(ask, url, headers, first, out)
    data = receiver.packet()
    receiver.discard()  # whole, it is taken or refused: asking again would not mend it
    network = packet.read(data, held)
    if network.id != newest:
        raise UpdateError(f"the service speaks of network {newest[:12]} and sent {network.id[:12]}")
    write_file(out, network.file())
    return Pulled(network.id, len(data), received, "haq-base" in first.headers)


def _received(
    ask: Ask, url: str, headers: Mapping[str, str], first: Answer, out: Path
) -> tuple[Receiver, int]:
    """Return a packet that arrived, and how many bytes of it came now."""
    if first.status != 200:
        raise UpdateError(_refused(first))
    tag = _DIGEST.fullmatch(first.headers.get("etag") or "")
    length = first.headers.get("content-length") or ""
    if not tag or not length.isdecimal():
        raise UpdateError("the answer has no ETag of a SHA-256 or no length: is it a HAQ service?")
    receiver = Receiver(out.with_name(f".{out.name}.haqz"), tag[1], int(length))
    received = 0
    for begin, end in receiver.missing:
        answer = first
        if (begin, end) != (0, receiver.size):
            span = {"Range": f"bytes={begin}-{end - 1}", "If-Range": tag[0]}
            answer = ask(url, {**headers, **span})
            known = _RANGE.fullmatch(answer.headers.get("content-range") or "")
            if answer.status != 206 or not known or int(known[1]) != begin:
                raise UpdateError(
                    f"bytes {begin} to {end} of the packet were asked for, and the answer has "
                    f"status {answer.status}: ask again"
                )
        received += _taken(receiver, answer, begin, end)
    return receiver, received


def _taken(receiver: Receiver, answer: Answer, begin: int, end: int) -> int:
    at = begin
    try:
        while at < end and (data := answer.read(min(PART, end - at))):
            receiver.take(at, data)
            at += len(data)
    except (OSError, HTTPException) as error:
        raise UpdateError(f"the connection broke after {at} bytes ({error}): ask again") from None
    return at - begin


def _refused(answer: Answer) -> str:
    said = answer.read(2000).decode("utf-8", "replace")
    message = re.search(r'"(?:message|detail)":\s*"([^"]{1,300})"', said)
    reason = message[1] if message else repr(said[:200])
    return f"the service answers {answer.status}: {reason}"


class _Here(HTTPRedirectHandler):
    """Goes nowhere else: a token is for the one it was given for."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _asked(url: str, headers: Mapping[str, str]) -> Answer:
    opener = build_opener(_Here)
    try:
        answer: Any = opener.open(Request(url, headers=dict(headers)), timeout=TIMEOUT_S)
    except HTTPError as error:  # an answer too
        answer = error
    except (URLError, OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UpdateError(f"cannot reach {url.partition('?')[0]}: {reason}") from None
    known = {name.lower(): value for name, value in answer.headers.items()}
    return Answer(answer.status, known, answer.read)
