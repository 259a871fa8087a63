"""Write down how a search ended."""

import logging
import threading
import time
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from haq.errors import HaqError
from haq.service import place, store
from haq.service.searching import Message
from haq.service.settings import Settings
from haq.service.tail import Tail

LOG = logging.getLogger("haq.service.worker")

PATIENCE_S = 1.0
"""Between two attempts to reach a database."""

AWAY = (InterfaceError, OperationalError, TimeoutError)
"""What is raised where a database does not answer; other errors are of what was asked."""


def conclude(
    engine: Engine,
    settings: Settings,
    lease: store.Lease,
    store_name: str,
    message: Message,
    stop: threading.Event,
) -> None:
    """Write how the search of a run ended, trying again for as long as the database is away.

    A write counts however late it comes, unless another worker has taken the run meanwhile.

    Args:
        engine: The database.
        settings: Of the worker.
        lease: Whose write this is; where it was lost, the try is not counted.
        store_name: As the folder of files must bear it.
        message: How the search ended.
        stop: Set where the worker is to end; it then tries no longer than its lease held.
    """
    LOG.info("run left: %s", message.kind, extra={"run": lease.run_id})
    until = time.monotonic() + settings.lease_s
    while True:
        try:
            fault = place.missing(settings, store_name)
            if fault:
                message = Message("machine", fault, message.traceback)
            return _write_or_take_back(engine, settings, lease, message)
        except SQLAlchemyError as error:
            LOG.error("the database does not answer: %s", type(error).__name__)
            is_away = isinstance(error, AWAY) and not stop.is_set()
            if time.monotonic() > until and not is_away:
                return None
            time.sleep(min(PATIENCE_S, settings.lease_s / 10))
        except OSError as error:
            message = Message("machine", f"its files cannot be read: {error.strerror}")
        except HaqError as error:
            message = Message("refused", str(error))


def _write_or_take_back(
    engine: Engine, settings: Settings, lease: store.Lease, message: Message
) -> None:
    try:
        _write(engine, settings, lease, message)
    except store.LeaseLost:
        LOG.warning("the lease was lost", extra={"run": lease.run_id})
        store.take_back_try(engine, lease)


def _write(engine: Engine, settings: Settings, lease: store.Lease, message: Message) -> None:
    sentence = place.without_paths(str(message.value or ""), settings).replace("\0", "")
    trace = (message.traceback or "").replace("\0", "") or None  # PostgreSQL takes none
    match message.kind:
        case "finished":
            store.finish(engine, lease, Tail(settings.run_folder(lease.run_id)).read())
        case "cancelled":
            store.stop(engine, lease)
        case "late":
            most_s = settings.limits.run_s
            most = f"{most_s / 3600:g} hours" if most_s >= 3600 else f"{most_s:g} s"
            why = f"it took longer than {most}, the most that a run may take here; what it found"
            store.fail(engine, lease, f"{why} stays")
        case "refused":
            store.fail(engine, lease, sentence, trace)
        case "machine":
            LOG.error("paused: %s", message.value, extra={"run": lease.run_id})
            why = f"paused: {sentence}; it goes on by itself"
            store.hand_back(engine, lease, settings.pause_s, why)
        case "locked":
            store.hand_back(engine, lease, settings.poll_s)
        case "stopped" | "lost":
            store.hand_back(engine, lease)
        case _:
            why = sentence if message.kind == "broken" else _death(message.value)
            LOG.error("broken: %s", why, extra={"run": lease.run_id})
            store.try_again(engine, lease, settings.tries, settings.poll_s, why, trace or why)


def _death(code: Any) -> str:
    if code == -9:
        return "the process of its search was killed, perhaps for lack of memory"
    return f"the process of its search ended by itself (code {code})"
