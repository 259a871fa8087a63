"""Ray clusters: whether one answers at an address, and joining it; no torch."""

import logging
import os
import socket
import threading
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from typing import Any

from haq.errors import HaqError

ANSWER_S = 4.0
"""What an address is given to take a connection, and again to answer on it."""

# What a client of HTTP/2, and so of gRPC, says first: a fixed text, and a frame of settings (its
# length in three bytes, its type, 4, flags, stream). The other side replies with its own settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEAD, _TYPE, _SETTINGS = 9, 3, 4


def check_cluster(wanted: str) -> None:
    """Say so if Ray does not work here, or no cluster answers.

    Ray itself takes a minute for the latter, and ends the process then.

    Args:
        wanted: "auto", "local", or an address; see ``check_address``.

    Raises:
        HaqError: That is so.
    """
    if find_spec("ray") is None:
        raise HaqError(f"--ray {wanted} needs Ray: pip install 'haq[ray]'")
    try:
        import ray  # noqa: F401
    except Exception as error:  # of whatever it looks for accelerators with
        raise HaqError(
            f"--ray {wanted}: Ray cannot be imported here ({type(error).__name__}: {error}); if "
            "that is the library of AMD's GPUs, which haq[energy] brings, pip uninstall amdsmi"
        ) from error
    asked = os.environ.get("RAY_ADDRESS", wanted) if wanted == "auto" else wanted
    if asked not in ("auto", "local"):
        check_address(asked)


def check_address(address: str, patience_s: float = ANSWER_S) -> None:
    """Say so if no cluster answers at an address.

    Args:
        address: HOST:PORT, or ray://HOST:PORT.
        patience_s: For the connection, and again for the answer.

    Raises:
        HaqError: It is written in another way, nobody takes a connection there, or whoever does
            is no Ray cluster.
    """
    host, port = _host_and_port(address)
    answers = SimpleQueue[bytes | OSError]()

    def ask() -> None:
        try:
            answers.put(_hello(host, port, patience_s))
        except OSError as error:
            answers.put(error)

    # A thread, since a name server may take longer than any connection.
    threading.Thread(target=ask, daemon=True).start()
    try:
        head: bytes | OSError = answers.get(timeout=2 * patience_s)
    except Empty:
        head = TimeoutError()
    if isinstance(head, TimeoutError):
        raise _no_cluster(address, "nobody answers there")
    if isinstance(head, OSError):
        raise _no_cluster(address, head.strerror or head)
    if len(head) < _FRAME_HEAD or head[_TYPE] != _SETTINGS:
        raise _no_cluster(address, "what answers there is something else")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise HaqError(
            f"--ray {address}: write HOST:PORT, such as 127.0.0.1:6379, or auto for the cluster "
            "that runs on this machine, or local for one that lasts as long as the run"
        )
    return host.strip("[]"), int(port)


def _hello(host: str, port: int, patience_s: float) -> bytes:
    """Return what comes first from a server that is greeted in HTTP/2."""
    with socket.create_connection((host, port), patience_s) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])  # its answers are encrypted
        connection.sendall(_HELLO)
        head = b""
        while len(head) < _FRAME_HEAD and (more := connection.recv(_FRAME_HEAD - len(head))):
            head += more
        return head


def _no_cluster(address: str, reason: object) -> HaqError:
    return HaqError(
        f"no Ray cluster at {address!r} ({reason}); start one with ray start --head, or give local"
    )


def join(address: str) -> None:
    """Make this process one of a cluster.

    Raises:
        HaqError: There is none.
    """
    import ray

    ours: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **ours)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
