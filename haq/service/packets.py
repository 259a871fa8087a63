"""Packets of finished runs: made when they are first asked for, and kept with the run."""

import threading
from pathlib import Path

from sqlalchemy import Engine

from haq.files import write_bytes
from haq.service import artifacts, store
from haq.service.settings import Settings

CHECKPOINT = "checkpoint.safetensors"

WHOLE = "whole"

_ONE_AT_A_TIME = threading.Lock()  # a packet takes several times a network's memory


def network_id(engine: Engine, settings: Settings, run: store.Run) -> str:
    """Return the id of a finished run's network.

    Raises:
        HaqError: The run cannot be exported.
    """
    known = store.network_of(engine, run.id)
    if known is None:
        from haq.formats.update.network import read

        known = read(_checkpoint(settings, run)).id
        store.remember(engine, run.id, known)
    return known


def packet(settings: Settings, run: store.Run, held: store.Run | None, base: str | None) -> Path:
    """Return the smallest packet of a finished run's network for somebody who holds another one.

    Args:
        settings: Where the files lie.
        run: Whose network is sent.
        held: A run whose network is held; None where that is not known here.
        base: The id of what is held.

    Raises:
        HaqError: A run cannot be exported.
    """
    whole = _made(settings, run, None, WHOLE)
    if held is None or base is None:
        return whole
    apart = _made(settings, run, held, base)
    return min(whole, apart, key=lambda path: path.stat().st_size)


def _made(settings: Settings, run: store.Run, held: store.Run | None, name: str) -> Path:
    file = settings.run_folder(run.id) / "exports" / f"{name}.haqz"
    with _ONE_AT_A_TIME:
        if not file.exists():
            from haq.formats.update import packet as packets
            from haq.formats.update.network import read

            base = read(_checkpoint(settings, held)) if held is not None else None
            new = read(_checkpoint(settings, run))
            data = packets.write([packets.Sent("network", new, base)])
            write_bytes(file, data)
    return file


def _checkpoint(settings: Settings, run: store.Run) -> Path:
    path = artifacts.get(settings.run_folder(run.id), CHECKPOINT, run.state == "finished")
    assert path is not None  # of a finished run there is one, or an error
    return path
