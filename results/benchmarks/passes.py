"""CPU seconds inside networks' forward and backward passes, quantizers included."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Count while this is open: into "forward" and "backward"."""
    spent = {"forward": 0.0, "backward": 0.0}
    forward, backward = torch.nn.Module.__call__, torch.Tensor.backward
    torch.nn.Module.__call__ = _outermost(spent, "forward", forward)
    torch.Tensor.backward = _outermost(spent, "backward", backward)
    try:
        yield spent
    finally:
        torch.nn.Module.__call__, torch.Tensor.backward = forward, backward


def _outermost(spent, name, function):
    """Return ``function``, its time added to ``spent``: of outermost calls, as modules nest."""
    inside = False

    def call(*args, **kwargs):
        nonlocal inside
        if inside:
            return function(*args, **kwargs)
        inside, started = True, time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            inside = False
            spent[name] += time.process_time() - started

    return call
