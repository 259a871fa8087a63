"""Every read and write of a run's row and its events, each in one transaction.

rows      runs as they are read
events    what happened to a run, numbered from 1
queue     what users do: submit, annotate, cancel, retry, delete
lists     lists of runs, sorted, page by page
line      who waits, who works, and what runs took
channels  networks by their ids, and those published under a name
leases    what workers do, while they hold the lease of a run
"""

from haq.service.store.changes import HOOK_TRIES
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
    Turns,
    claim,
    fail,
    finish,
    hand_back,
    report,
    stop,
    take_back_try,
    try_again,
    weigh,
)
from haq.service.store.line import Standing, leave, paces, sign_of_life, standing
from haq.service.store.lists import ORDERS, listed, of_sweep, tags
from haq.service.store.queue import (
    Beside,
    annotate,
    cancel,
    forget,
    hide,
    retry,
    submit,
)
from haq.service.store.rows import (
    OVER,
    STATES,
    Conflict,
    Run,
    counts,
    find,
    hidden,
    longest_wait,
    seen,
    stored,
    uses,
    waiting,
)

__all__ = [
    "HOOK_TRIES",
    "ORDERS",
    "OVER",
    "STATES",
    "Beside",
    "Conflict",
    "Event",
    "Lease",
    "LeaseLost",
    "Progress",
    "Published",
    "Run",
    "Standing",
    "Turns",
    "annotate",
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
    "leave",
    "listed",
    "longest_wait",
    "network_of",
    "of_sweep",
    "paces",
    "publish",
    "remember",
    "report",
    "retry",
    "runs_with",
    "seen",
    "sign_of_life",
    "standing",
    "stop",
    "stored",
    "submit",
    "tags",
    "take_back_try",
    "try_again",
    "uses",
    "waiting",
    "weigh",
]
