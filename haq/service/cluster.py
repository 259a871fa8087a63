"""Workers in a Ray cluster: Ray says where each is, and the queue stays in the database.

A process of the server's joins the cluster and holds an actor for each worker; the worker is a
process beside its actor, as it would be beside a server, and hands its run back when the actor
ends. Ray ends whoever loses the cluster: then the server starts that process again, which joins the
cluster that is there by then.
"""

import logging
import threading
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import make_url

from haq.errors import HaqError
from haq.runs.clusters import check_cluster, join
from haq.service.processes import Workers, beside, until_closed
from haq.service.settings import Settings

LOG = logging.getLogger("haq.service.cluster")

_LOOK_S = 1.0  # between two looks at whether the workers are to end
_LEAVE_S = 30.0  # for all workers to hand back what they do


def in_cluster(settings: Settings, count: int, address: str) -> Workers:
    """Return so many workers in a cluster, for as long as the server lives."""
    return Workers(_drive, (settings, count, address), 1 if count else 0)


def _drive(pipe: Connection, settings: Settings, count: int, address: str) -> None:
    until_closed(pipe, lambda stop: _hold(settings, count, address, stop))


def _hold(settings: Settings, count: int, address: str, stop: threading.Event) -> None:
    """Keep so many workers in a cluster until they are to end.

    Raises:
        HaqError: There is no cluster, or the database is a file and there are several machines.
    """
    check_cluster(address)
    join(address)
    import ray

    _check_database(settings, ray.nodes())  # type: ignore[no-untyped-call]
    LOG.info("joined the cluster", extra={"address": address, "workers": count})
    options: Any = {"num_cpus": settings.threads, "max_concurrency": 2}
    host: Any = ray.remote(**options)(Host)
    held: dict[Any, Any] = {}
    while not stop.is_set():
        while len(held) < count:
            actor = host.remote(settings)
            held[actor.hold.remote()] = actor
        ended, _ = ray.wait(list(held), timeout=_LOOK_S)
        for one in ended:
            del held[one]
            LOG.error("a worker in the cluster ended; another one starts")
            stop.wait(_LOOK_S)
    ends = [actor.end.remote() for actor in held.values()]
    if ends:  # of those that were not lost just now
        ray.wait(ends, num_returns=len(ends), timeout=_LEAVE_S)
    ray.shutdown()


def _check_database(settings: Settings, nodes: list[dict[str, Any]]) -> None:
    machines = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    if make_url(settings.url).get_backend_name() == "sqlite" and len(machines) > 1:
        raise HaqError(
            f"the cluster has {len(machines)} machines, and SQLite is for one: give --database "
            "postgresql+psycopg://…, and a folder of files that all of them share"
        )


class Host:
    """What Ray places on a machine: it holds one worker, which ends with it."""

    def __init__(self, settings: Settings) -> None:
        self._workers = beside(settings, 1)
        self._ended = threading.Event()

    def hold(self) -> None:
        """Return once the worker has ended."""
        self._ended.wait()

    def end(self) -> None:
        """Let the worker hand back what it does, and wait for it."""
        self._workers.end()
        self._ended.set()
