"""Packets of finished runs: made when they are first asked for, and kept with the run."""

import threading
from pathlib import Path

from sqlalchemy import Engine

from haq.files import write_bytes
from haq.formats.update.manifest import VERSION
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


def known_id(engine: Engine, run: store.Run) -> str | None:
    """Return the id of a run's network if it is known, without an export."""
    return store.network_of(engine, run.id)


def sizes(settings: Settings, run: store.Run) -> dict[str, int]:
    """Return the bytes of the packets that were made of a run's network so far.

    They go by the id of their base, the whole one by "" and first.
    """
    made = {path.stem: path.stat().st_size for path in _folder(settings, run).glob("*.haqz")}
    bases = sorted(made.keys() - {WHOLE}, key=lambda base: made[base])
    whole = {"": made[WHOLE]} if WHOLE in made else {}
    return whole | {base: made[base] for base in bases}


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
    file = _folder(settings, run) / f"{name}.haqz"
    with _ONE_AT_A_TIME:
        if not file.exists():
            from haq.formats.update import packet as packets
            from haq.formats.update.network import read

            base = read(_checkpoint(settings, held)) if held is not None else None
            new = read(_checkpoint(settings, run))
            data = packets.write([packets.Sent("network", new, base)])
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, data)
    return file


def _folder(settings: Settings, run: store.Run) -> Path:
    # Of another version of the format, packets are made anew.
    return settings.run_folder(run.id) / "exports" / f"packets-{VERSION}"


def _checkpoint(settings: Settings, run: store.Run) -> Path:
    path = artifacts.get(settings.run_folder(run.id), CHECKPOINT, run.state == "finished")
    assert path is not None  # of a finished run there is one, or an error
    return path
