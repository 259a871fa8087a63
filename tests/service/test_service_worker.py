"""Workers with real processes: done once, gone on with after kill -9, cancelled, paused."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import service_searches as searches
from service_parts import PATIENCE_S, REAL, accuracies, opened, run_of, wait_for
from service_searches import trial_of
from sqlalchemy import update
from sqlalchemy.exc import DataError, OperationalError

from haq.errors import HaqError
from haq.runs import folder as results
from haq.runs.job import Job
from haq.runs.run import run
from haq.service import outcome, place, store
from haq.service.limits import Limits
from haq.service.processes import run_worker
from haq.service.retention import sweep
from haq.service.searching import Message, SearchProcess
from haq.service.tables import RUNS
from haq.service.tail import Tail
from haq.service.worker import in_process, work

FEW = Job(episodes=3)


@pytest.fixture
def at_work():
    """Start workers in threads, whose searches are processes, and stop them at the end."""
    stop, threads = threading.Event(), []

    def start(engine, settings, execute):
        threads.append(
            threading.Thread(target=work, args=(engine, settings, stop, in_process(execute)))
        )
        threads[-1].start()
        return stop

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def ended(engine, run_id):
    def over():
        found = store.find(engine, run_id)
        return found if found.state in store.OVER else None

    return wait_for(over)


def test_a_run_is_done_and_its_trials_are_events(tmp_path, database, at_work):
    settings, engine = opened(tmp_path, database)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, searches.quick)
    done = ended(engine, run_id)
    assert (done.state, done.episodes) == ("finished", 3)
    kinds = [event.kind for event in store.events_after(engine, run_id, 0)]
    assert kinds == ["state", "state", "trial", "trial", "trial", "state"]
    assert done.best_accuracy == max(trial_of(n).accuracy for n in range(3))


def test_three_workers_do_each_run_once(tmp_path, database, at_work):
    settings, engine = opened(tmp_path, database)
    runs = [run_of(engine, FEW) for _ in range(6)]
    for _ in range(3):
        at_work(engine, settings, searches.quick)
    for run_id in runs:
        assert ended(engine, run_id).fence == 1
        assert len(results.read_trials(settings.run_folder(run_id))) == 3


def test_a_job_that_cannot_be_done_fails_at_once_in_one_sentence(tmp_path, at_work):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, searches.refuses)
    failed = ended(engine, run_id)
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert failed.message == f"upload:{'a' * 32} has no folder train"


@pytest.mark.parametrize(
    "execute, sentence",
    [
        (searches.raises, "an internal error (ZeroDivisionError)"),
        (searches.dies, "the process of its search was killed, perhaps for lack of memory"),
    ],
)
def test_a_poisoned_job_fails_after_its_tries(tmp_path, at_work, execute, sentence):
    settings, engine = opened(tmp_path, tries=2)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, execute)
    failed = ended(engine, run_id)
    assert (failed.state, failed.fence) == ("failed", 2)
    assert failed.message == f"given up after 2 tries without a new episode: {sentence}"
    if execute is searches.raises:
        assert "ZeroDivisionError: a secret place" in failed.traceback


def test_a_full_disk_pauses_the_run_and_is_no_try(tmp_path, at_work):
    settings, engine = opened(tmp_path, tries=1)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, searches.full_once)
    assert ended(engine, run_id).state == "finished"
    said = [event.data for event in store.events_after(engine, run_id, 0)]
    assert any("paused: no space left on device; it goes on by itself" in data for data in said)


def test_a_missing_folder_of_files_stops_nothing_but_the_work(tmp_path, at_work):
    settings, engine = opened(tmp_path, database=f"sqlite:///{tmp_path}/haq.sqlite")
    away = settings.files.with_name("away")
    settings.files.rename(away)
    settings.files.mkdir()  # an empty mount point
    run_id = run_of(engine, FEW)
    at_work(engine, settings, searches.quick)
    assert store.find(engine, run_id).state == "queued"
    settings.files.rmdir()
    away.rename(settings.files)
    assert ended(engine, run_id).state == "finished"


def test_the_folder_going_away_during_a_run_pauses_it(tmp_path, at_work):
    settings, engine = opened(tmp_path, database=f"sqlite:///{tmp_path}/haq.sqlite")
    run_id = run_of(engine, Job(episodes=6))
    at_work(engine, settings, searches.slow)
    wait_for(lambda: store.find(engine, run_id).episodes >= 1)
    away = settings.files.with_name("away")
    settings.files.rename(away)
    wait_for(lambda: store.find(engine, run_id).state == "paused")
    shutil.rmtree(settings.files, ignore_errors=True)
    away.rename(settings.files)
    assert ended(engine, run_id).state == "finished"
    assert len(results.read_trials(settings.run_folder(run_id))) == 6


def test_another_databases_folder_is_refused(tmp_path):
    settings, _ = opened(tmp_path, database=f"sqlite:///{tmp_path}/haq.sqlite")
    with pytest.raises(HaqError, match="the folder of files belongs to another database"):
        place.prepare(settings, "another")


def test_a_locked_database_loses_nothing(tmp_path, at_work, monkeypatch):
    monkeypatch.setattr("haq.service.database.BUSY_S", 0.05)
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, Job(episodes=6))
    at_work(engine, settings, searches.slow)
    wait_for(lambda: store.find(engine, run_id).episodes >= 1)
    with engine.begin():
        wait_for(lambda: len(results.read_trials(settings.run_folder(run_id))) >= 4)
    assert ended(engine, run_id).state == "finished"
    told = [e for e in store.events_after(engine, run_id, 0) if e.kind == "trial"]
    assert len(told) == 6


@pytest.mark.parametrize("execute", [searches.endless, searches.stubborn])
def test_a_running_search_is_cancelled_and_its_process_ended(tmp_path, at_work, execute):
    settings, engine = opened(tmp_path, stop_s=1.0)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, execute)
    pid = process_of(settings, run_id)
    store.cancel(engine, run_id)
    assert ended(engine, run_id).state == "cancelled"
    wait_for(lambda: not alive(pid))


def test_a_stopped_worker_hands_its_run_back(tmp_path, at_work):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, FEW)
    stop = at_work(engine, settings, searches.endless)
    pid = process_of(settings, run_id)
    stop.set()
    wait_for(lambda: store.find(engine, run_id).state == "queued")
    assert store.find(engine, run_id).attempts == 0
    wait_for(lambda: not alive(pid))


def test_a_search_ends_itself_at_its_deadline(tmp_path):
    process = SearchProcess(FEW, tmp_path / "run", searches.stubborn, time.monotonic() + 1)
    ending = wait_for(lambda: (s := process.message(0.1)) and s.kind != "progress" and s.kind)
    assert ending == "lost"


def test_a_search_goes_on_while_its_lease_is_renewed(tmp_path):
    process = SearchProcess(FEW, tmp_path / "run", searches.slow, time.monotonic() + 0.01)
    process.extend(time.monotonic() + PATIENCE_S)
    ending = wait_for(lambda: (s := process.message(0.1)) and s.kind != "progress" and s)
    assert ending.kind == "finished"
    process.end(PATIENCE_S)


def test_two_processes_never_write_one_run(tmp_path):
    end = time.monotonic() + PATIENCE_S
    first = SearchProcess(FEW, tmp_path / "run", searches.endless, end)
    wait_for(lambda: first.message(0.1))
    second = SearchProcess(FEW, tmp_path / "run", searches.quick, end)
    ending = wait_for(lambda: second.message(0.1))
    first.end(0)
    second.end(PATIENCE_S)
    assert ending.kind == "locked"


@pytest.mark.parametrize("end", ["finished", "lost"])
def test_a_database_that_is_away_for_long_costs_no_try_and_no_work(tmp_path, monkeypatch, end):
    settings, engine = opened(tmp_path, tries=1, lease_s=0.0)
    run_id = run_of(engine, FEW)
    failures = [OperationalError("", {}, Exception("away")) for _ in range(3)]
    write = outcome._write

    def away(*arguments):
        if failures:
            raise failures.pop()
        write(*arguments)

    monkeypatch.setattr(outcome, "_write", away)
    messages = [Message(end), Message("finished")]

    class Search(Finished):
        def message(self, seconds):
            return messages.pop(0)

    work_once(engine, settings, Search())
    run = store.find(engine, run_id)
    assert (run.state, run.attempts) == ("finished", 1)
    assert run.fence == (1 if end == "finished" else 2)


def test_what_no_database_takes_is_not_tried_for_ever(tmp_path, monkeypatch):
    settings, engine = opened(tmp_path, lease_s=0.0)
    run_id = run_of(engine, FEW)

    def refused(*arguments):
        raise DataError("", {}, Exception("no text"))

    monkeypatch.setattr(outcome, "_write", refused)
    lease = store.Lease(run_id, store.claim(engine, "w", 60, 3).fence)
    name = (settings.files / ".store").read_text().strip()
    outcome.conclude(engine, settings, lease, name, Message("finished"), threading.Event())


def test_what_a_search_says_may_hold_anything(tmp_path, database):
    settings, engine = opened(tmp_path, database)
    run_id = run_of(engine, FEW)

    class Odd(Finished):
        def message(self, seconds):
            return Message("refused", "no \0 here", "a trace\0")

    work_once(engine, settings, Odd())
    run = store.find(engine, run_id)
    assert (run.state, run.message, run.traceback) == ("failed", "no  here", "a trace")


def test_a_lease_that_ran_out_on_a_slow_machine_is_no_try(tmp_path):
    settings, engine = opened(tmp_path, tries=1)
    run_id = run_of(engine, FEW)
    messages = [Message("lost"), Message("finished")]

    class Slow(Finished):
        def message(self, seconds):
            return messages.pop(0)

    work_once(engine, settings, Slow())
    run = store.find(engine, run_id)
    assert (run.state, run.fence, run.attempts) == ("finished", 2, 1)


def test_a_run_takes_no_longer_than_it_may_and_goes_on_once_it_may(tmp_path):
    settings, engine = opened(tmp_path, limits=Limits(run_s=60))
    run_id = run_of(engine, FEW)
    with engine.begin() as connection:
        connection.execute(update(RUNS).values(busy_s=59.9999))
    ended_by = []

    class Endless(Finished):
        def message(self, seconds):
            return None

    watched = replace(settings, poll_s=0.0)
    work_once(engine, watched, Endless(after=lambda: ended_by.append(True)))
    run = store.find(engine, run_id)
    most = "the most that a run may take here; what it found stays"
    assert (run.state, run.message) == ("failed", f"it took longer than 60 s, {most}")
    assert ended_by
    store.retry(engine, run_id)
    work_once(engine, replace(settings, limits=Limits()), Finished())
    assert store.find(engine, run_id).state == "finished"


class Finished:
    """A search that has ended, and what happens before and after it says so."""

    def __init__(self, before=lambda: None, after=lambda: None):
        self.before, self.after = before, after

    def message(self, seconds):
        self.before()
        return Message("finished")

    def extend(self, deadline):
        pass

    def end(self, seconds):
        self.after()


def work_once(engine, settings, process):
    """Be a worker that starts this process, until there is nothing more to do."""
    stop = threading.Event()
    work(engine, settings, stop, lambda job, folder, deadline: process, stop.set)


def test_what_is_over_is_written_before_its_process_is_waited_for(tmp_path):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, FEW)
    states = []
    process = Finished(after=lambda: states.append(store.find(engine, run_id).state))
    work_once(engine, settings, process)
    assert states == ["finished"]


def test_a_lease_lost_between_the_end_and_the_write_is_no_try(tmp_path):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, FEW)

    def another_takes_it():
        with engine.begin() as connection:
            connection.execute(update(RUNS).values(lease_until=0.0))
        store.claim(engine, "another", 500, settings.tries)

    work_once(engine, settings, Finished(before=another_takes_it))
    run = store.find(engine, run_id)
    assert (run.state, run.worker, run.attempts) == ("running", "another", 1)


def test_a_finished_search_is_not_done_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    results.write_json(folder / "summary.json", {"state": "finished"})
    process = SearchProcess(FEW, folder, searches.raises, time.monotonic() + PATIENCE_S)
    assert wait_for(lambda: process.message(0.1)).kind == "finished"
    process.end(PATIENCE_S)


def test_the_files_of_a_deleted_run_are_taken_away(tmp_path, at_work):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, FEW)
    at_work(engine, settings, searches.quick)
    ended(engine, run_id)
    store.hide(engine, run_id)
    wait_for(lambda: not store.hidden(engine))
    sweep(engine, settings)
    assert list((settings.files / "runs").iterdir()) == []


def test_a_tail_gives_each_trial_once_and_no_torn_line(tmp_path):
    tail = Tail(tmp_path)
    assert tail.read() == []
    results.append_trial(tmp_path, trial_of(0))
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(trial_of(1).line()[:20])
    assert [event["episode"] for event in tail.read()] == [0]
    results.drop_torn_line(tmp_path)
    results.append_trial(tmp_path, trial_of(1))
    assert [event["episode"] for event in tail.read()] == [1]
    tail.rewind()
    assert [event["episode"] for event in tail.read()] == [0, 1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(REAL, folder)
    return accuracies(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "database, victim", [("sqlite", "worker"), ("postgresql", "search")], indirect=["database"]
)
def test_killed_a_run_goes_on_and_its_trials_are_those_of_an_undisturbed_one(
    tmp_path, database, undisturbed, victim
):
    settings, engine = opened(tmp_path, database)
    run_id = run_of(engine, REAL)
    worker = worker_process(settings)
    try:
        folder = settings.run_folder(run_id)
        wait_for(lambda: folder.exists() and len(results.read_trials(folder)) >= 2)
        os.kill(worker.pid if victim == "worker" else children(worker.pid)[0], signal.SIGKILL)
        if victim == "worker":
            worker.join()
            worker = worker_process(settings)
        assert ended(engine, run_id).state == "finished"
    finally:
        worker.terminate()
        worker.join()
    assert accuracies(folder) == undisturbed
    told = [event for event in store.events_after(engine, run_id, 0) if event.kind == "trial"]
    assert len(told) == REAL.episodes


def worker_process(settings):
    process = multiprocessing.get_context("spawn").Process(target=run_worker, args=(settings,))
    process.start()
    return process


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def process_of(settings, run_id):
    marks = settings.run_folder(run_id)
    [mark] = wait_for(lambda: list(marks.glob("pid-*")))
    return int(mark.name.removeprefix("pid-"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_search_dies_with_its_worker(tmp_path):
    settings, engine = opened(tmp_path)
    run_of(engine, REAL.model_copy(update={"episodes": 500}))
    worker = worker_process(settings)
    child = wait_for(lambda: children(worker.pid))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    wait_for(lambda: not any(alive(pid) for pid in child))


def children(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in found.stdout.split() if "spawn_main" in command(number)]
