"""The connections of the server: the port before all else, and none held by half a request."""

import asyncio
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from haq.errors import HaqError

HEAD_S = 15.0
"""What a client gets to send the head of a request, from the connection or the answer before."""

READ_S = 30.0
"""How long a client that is sent something may read less than ``LEAST_READ`` bytes of it."""

LEAST_READ = 16_384

_OTHERS = 200  # descriptors for the database, files and workers
_MOST_DESCRIPTORS = 16_384
_PORTABLE = 512  # where nobody says how many there may be


def bound(host: str, port: int) -> list[socket.socket]:
    """Return the sockets of an address, bound but not yet listening.

    Raises:
        HaqError: The port is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise HaqError(f"host {host!r} is no address of this machine: {error.strerror}") from None
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in entries):
            if port == 0 and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_bound(family, address))
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise HaqError(
            f"port {port} of {host} cannot be had ({(error.strerror or str(error)).lower()}): end "
            "what listens there, or give another one with --port"
        ) from None
    return sockets


def _bound(family: int, address: Any) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


def most_connections() -> int:
    """Raise the limit of open files as far as it goes, and return how many connections that allows.

    Where there is no such limit to be read (Windows), a number that every system can do.
    """
    try:
        import resource
    except ImportError:
        return _PORTABLE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            most = soft
    return max(most - _OTHERS, most // 2)


def protocol(most: int, head_s: float = HEAD_S, read_s: float = READ_S) -> type[H11Protocol]:
    """Return the protocol of a server that keeps at most so many connections.

    One that has sent no whole request head is closed after ``head_s`` seconds, and earlier where
    another one comes and there is no room: the one that has waited longest goes. One that hardly
    reads what it is sent is closed after ``read_s`` seconds.
    """
    waiting: OrderedDict[_Protocol, Callable[[], None]] = OrderedDict()
    held_to = {"waiting": waiting, "most": most, "head_s": head_s, "read_s": read_s}
    return type("Protocol", (_Protocol,), held_to)


class _Protocol(H11Protocol):
    waiting: "OrderedDict[_Protocol, Callable[[], None]]"
    most: int
    head_s: float
    read_s: float
    unread: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            next(iter(self.waiting)).drop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._reads_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reads_again()

    def drop(self) -> None:
        """Close a connection that has no request under way."""
        self._wait_no_more()
        self.connections.discard(self)
        self.transport.abort()

    def _expect_reading(self) -> None:
        """Close the connection where so few bytes leave the buffer that nobody reads them."""
        held = self.transport.get_write_buffer_size()

        def check() -> None:
            if held - self.transport.get_write_buffer_size() < LEAST_READ:
                self.transport.abort()
            else:
                self._expect_reading()

        self.unread = self.loop.call_later(self.read_s, check).cancel

    def _reads_again(self) -> None:
        if self.unread is not None:
            self.unread()
            self.unread = None

    def _wait(self) -> None:
        if self not in self.waiting:
            self.waiting[self] = self.loop.call_later(self.head_s, self.drop).cancel

    def _wait_no_more(self) -> None:
        cancel = self.waiting.pop(self, None)
        if cancel is not None:
            cancel()
