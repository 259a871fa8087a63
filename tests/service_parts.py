"""What the tests of the service share: a place, a database, and waiting without sleeping long."""

import time

from haq.service import place, store
from haq.service.database import connect, migrate
from haq.service.settings import Settings

PATIENCE_S = 120.0


def opened(tmp_path, database="", **changes):
    """Return the settings of a service with short leases, and its database."""
    quick = {"lease_s": 4.0, "poll_s": 0.05, "pause_s": 0.1, "stop_s": 20.0}
    settings = Settings(tmp_path / "files", database, **quick | changes)
    engine = connect(settings.url)
    place.prepare(settings, migrate(engine))
    return settings, engine


def wait_for(condition):
    """Wait until a condition holds, and return what it gave; not for ever."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("this did not happen in time")


def run_of(engine, job, **changes):
    run, _ = store.submit(engine, **{"owner": "ada", "job": job, "title": "a run", **changes})
    return run.id
