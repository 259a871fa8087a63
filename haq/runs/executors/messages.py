"""Messages over a pipe: eight bytes of length, then as many bytes."""

from typing import IO


def send(pipe: IO[bytes] | None, message: bytes) -> None:
    """Write one message.

    Raises:
        OSError: Nobody reads at the other end.
    """
    assert pipe is not None
    for part in (len(message).to_bytes(8, "little"), message):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def receive(pipe: IO[bytes] | None) -> bytes:
    """Read one message.

    Raises:
        EOFError: The other end was closed.
    """
    return _exactly(pipe, int.from_bytes(_exactly(pipe, 8), "little"))


def _exactly(pipe: IO[bytes] | None, count: int) -> bytes:
    assert pipe is not None
    content, place = bytearray(count), 0
    while place < count:
        part = pipe.read(min(count - place, 2**24))
        if not part:
            raise EOFError("the other end of the pipe was closed")
        content[place : place + len(part)] = part
        place += len(part)
    return bytes(content)
