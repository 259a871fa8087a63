"""Every read and write of a run's row and its events, each in one transaction.

rows      runs as they are read
events    what happened to a run, numbered from 1
queue     what users do: submit, cancel, retry, delete
channels  networks by their ids, and those published under a name
leases    what workers do, while they hold the lease of a run
"""

from haq.service.store.channels import (
    Published,
    channels,
    history,
    network_of,
    publish,
    remember,
    runs_with,
)
from haq.service.store.channels import count as channel_count
from haq.service.store.events import Event, events_after
from haq.service.store.leases import (
    Lease,
    LeaseLost,
    Progress,
    claim,
    fail,
    finish,
    hand_back,
    report,
    stop,
    take_back_try,
    try_again,
)
from haq.service.store.queue import cancel, forget, hide, retry, submit
from haq.service.store.rows import (
    OVER,
    STATES,
    Conflict,
    Run,
    counts,
    find,
    hidden,
    listed,
    longest_wait,
    seen,
    uses,
    waiting,
)

__all__ = [
    "OVER",
    "STATES",
    "Conflict",
    "Event",
    "Lease",
    "LeaseLost",
    "Progress",
    "Published",
    "Run",
    "cancel",
    "channel_count",
    "channels",
    "claim",
    "counts",
    "events_after",
    "fail",
    "find",
    "finish",
    "forget",
    "hand_back",
    "hidden",
    "hide",
    "history",
    "listed",
    "longest_wait",
    "network_of",
    "publish",
    "remember",
    "report",
    "retry",
    "runs_with",
    "seen",
    "stop",
    "submit",
    "take_back_try",
    "try_again",
    "uses",
    "waiting",
]
