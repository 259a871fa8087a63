"""The process at the other end of a pool: it evaluates until its standard input is closed."""

import os
import pickle
import sys
import threading
from functools import cache
from queue import SimpleQueue
from typing import IO

from haq.runs.executors.base import reply, unpack
from haq.runs.executors.messages import receive, send


def serve() -> None:
    """Evaluate what arrives on standard input; reply on standard output.

    The input is closed when the owner ends, in whatever way: then this process ends too, in the
    middle of an evaluation if need be.
    """
    requests, replies = _pipes()
    sent = receive(requests)
    waiting = SimpleQueue[bytes]()

    def listen() -> None:
        try:
            while True:
                waiting.put(receive(requests))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    evaluation = cache(unpack)
    while True:
        request = pickle.loads(waiting.get())
        send(replies, reply(lambda request=request: evaluation(sent)(request)))  # type: ignore[misc]


def _pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return input and output for messages alone: what models print goes to standard error."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies
