"""Searches for the tests of the workers, done in processes that this is imported in."""

import errno
import hashlib
import os
import signal
import time

from haq.allocation.policy import Bits
from haq.allocation.trials import Trial
from haq.errors import HaqError
from haq.runs import folder as results


def trial_of(episode):
    accuracy = hashlib.sha256(str(episode).encode()).digest()[0] / 255
    return Trial(
        episode, {"fc": Bits(4, 8)}, {"size": 90.0}, accuracy, float("nan"), 0.1 * episode, 0.01
    )


def episodes(job, folder, on_progress, each=lambda number: None):
    """A search of the true form, file for file, whose episodes are known beforehand."""
    results.drop_torn_line(folder)
    for number in range(len(results.read_trials(folder)), job.episodes):
        each(number)
        results.append_trial(folder, trial_of(number))
        on_progress(("search", number + 1, job.episodes, ""))
    return {"state": "finished"}


class Where(tuple):
    done, total = 1, 1


def quick(job, folder, on_progress):
    return episodes(job, folder, lambda where: on_progress(Where(where)))


def slow(job, folder, on_progress):
    return episodes(
        job, folder, lambda where: on_progress(Where(where)), lambda number: time.sleep(0.3)
    )


def endless(job, folder, on_progress):
    on_progress(Where(("search", 0, job.episodes, "")))
    (folder / f"pid-{os.getpid()}").touch()
    while True:
        time.sleep(0.05)


def stubborn(job, folder, on_progress):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return endless(job, folder, on_progress)


def raises(job, folder, on_progress):
    raise ZeroDivisionError("a secret place: /etc/shadow")


def dies(job, folder, on_progress):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(job, folder, on_progress):
    raise HaqError(f"{folder.parent.parent.absolute()}/uploads/{'a' * 32}/data has no folder train")


def full_once(job, folder, on_progress):
    """A disk that is full the first time."""
    mark = folder.parent / "was-full"
    if not mark.exists():
        mark.touch()
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise HaqError("cannot write weights") from error
    return quick(job, folder, on_progress)
