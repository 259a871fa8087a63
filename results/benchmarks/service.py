"""The service under load: readers of live events beside a search, and a long queue.

python results/benchmarks/service.py

Writes results/reference/service.json: whether 200 readers of events missed one and how much slower
the search was beside them (the same episodes with and without readers, in turns); and whether four
workers did each of 1 000 runs exactly once.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.job import Job
from haq.service import place, store
from haq.service.database import connect, migrate
from haq.service.searching import Message
from haq.service.settings import Settings
from haq.service.worker import work

HAQ = Path(sys.executable).with_name("haq")
ASKED = {
    "model": "digits_cnn", "agent": "random", "episodes": 30, "float_epochs": 1,
    "train_images": 1000, "final_epochs": 0,
}  # fmt: skip


def free_port():
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, body=None):
    """Return what the service answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def until(condition):
    """Wait until a condition holds."""
    while True:
        try:
            if condition():
                return
        except urllib.error.URLError:
            pass
        time.sleep(0.2)


async def read(port, run_id):
    """Return the numbers of the events that one reader gets, from the first to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    numbers = []
    while line := await reader.readline():
        numbers += [int(found[1]) for found in [re.match(rb"id: (\d+)", line)] if found]
    writer.close()
    return numbers


def readers(port, run_id, count, out):
    """Read as many times as asked, in a process of its own."""

    async def all_of_them():
        return await asyncio.gather(*(read(port, run_id) for _ in range(count)))

    out.send(asyncio.run(all_of_them()))


def one_run(port, files, count):
    """Return the seconds of each evaluation, and what the readers got."""
    run_id = ask(port, "/v1/runs", ASKED)["id"]
    got = []
    if count:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=readers, args=(port, run_id, count, theirs))
        process.start()
        got = ours.recv()
        process.join()
    until(lambda: ask(port, f"/v1/runs/{run_id}")["state"] == "finished")
    last = ask(port, f"/v1/runs/{run_id}")["events"]
    trials = results.read_trials(files / "runs" / run_id)
    return [t.seconds for t in trials if not t.cached], got, last


def beside_readers(count, rounds):
    """Return how a search and its readers get on with each other."""
    with tempfile.TemporaryDirectory() as place_:
        files, port = Path(place_) / "files", free_port()
        with (Path(place_) / "log").open("w") as log:
            server = subprocess.Popen(
                [str(HAQ), "serve", "--files", str(files), "--port", str(port)], stderr=log
            )
        try:
            until(lambda: ask(port, "/readyz"))
            one_run(port, files, 0)  # to warm up
            ratios, lost, heard = [], 0, 0
            for number in range(rounds):
                if number % 2:  # in turns, for the machine may get busier all the while
                    beside, got, last = one_run(port, files, count)
                    alone, _, _ = one_run(port, files, 0)
                else:
                    alone, _, _ = one_run(port, files, 0)
                    beside, got, last = one_run(port, files, count)
                ratios.append(statistics.median(b / a for a, b in zip(alone, beside, strict=True)))
                lost += sum(numbers != list(range(1, last + 1)) for numbers in got)
                heard += sum(map(len, got))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return {
        "readers": count, "rounds": rounds, "events_heard": heard,
        "readers_that_missed_or_repeated_one": lost,
        "evaluation_seconds_ratio": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
    }  # fmt: skip


class Trivial:
    """A search that is done at once, and noted."""

    def __init__(self, job, folder, deadline):
        with (folder.parent.parent / "done").open("a") as file:
            file.write(f"{folder.name}\n")  # one short write is never mixed with another

    def message(self, seconds):
        """Return that it is done."""
        return Message("finished")

    def extend(self, deadline):
        """Do nothing: it is done."""

    def end(self, seconds):
        """Do nothing: it is done."""


def trivial_worker(settings):
    """Be a worker whose searches are trivial."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    work(connect(settings.url), settings, stop, Trivial)


def long_queue(count, workers, database):
    """Return how often each run of a long queue was done."""
    with tempfile.TemporaryDirectory() as place_:
        settings = Settings(Path(place_) / "files", database, poll_s=0.05)
        engine = connect(settings.url)
        place.prepare(settings, migrate(engine))
        runs = [store.submit(engine, "ada", Job(), "trivial")[0].id for _ in range(count)]
        started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        hands = [context.Process(target=trivial_worker, args=(settings,)) for _ in range(workers)]
        for hand in hands:
            hand.start()
        until(lambda: store.counts(engine)["finished"] == count)
        seconds = time.perf_counter() - started
        for hand in hands:
            hand.terminate()
            hand.join()
        done = Counter((settings.files / "done").read_text().split())
        fences = Counter(store.find(engine, run_id).fence for run_id in runs)
        engine.dispose()
    return {
        "database": engine.dialect.name, "runs": count, "workers": workers,
        "done_once": sum(done[run_id] == 1 for run_id in runs),
        "done_more_often": sum(number > 1 for number in done.values()),
        "taken_once": fences[1], "runs_a_second": round(count / seconds, 1),
    }  # fmt: skip


def main():
    """Do both and write them down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--postgresql", help="URL of an empty database, to do the queue there too.")
    asked = parser.parse_args()
    queues = [long_queue(asked.runs, 4, "")]
    if asked.postgresql:
        queues.append(long_queue(asked.runs, 4, asked.postgresql))
    load = [round(value, 2) for value in os.getloadavg()]
    live = beside_readers(asked.readers, asked.rounds)
    record = {"live": live, "queue": queues, "load_before": load}
    path = REFERENCE / "service.json"
    others = results.read_json(path) if path.exists() else {}  # of service_faults.py
    results.write_json(path, others | record | script_provenance())
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
