"""What happens to runs of the service: killed processes, databases, disks and clocks; strangers.

    python results/benchmarks/service_faults.py kills --kills 60
    python results/benchmarks/service_faults.py faults --postgresql
    python results/benchmarks/service_faults.py hostile

Each writes its section of results/reference/service.json. Kills are added to those that are there
already, unless --fresh is given. The searches are real: DDPG on a small network, every policy
fine-tuned; their trials are compared with those of the same seeds that nobody disturbed.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import service_requests

from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.service import store
from haq.service.database import connect

HAQ = Path(sys.executable).with_name("haq")
RECORD = REFERENCE / "service.json"
SEEDS = (0, 1, 2)
JOB = {
    "model": "digits_mlp", "episodes": 8, "float_epochs": 1, "final_epochs": 0,
    "train_images": 64, "val_images": 64, "calibration_images": 32,
    "budgets": ["avg_weight_bits=6"], "threads": 1, "agent": "ddpg", "evaluation": "finetune",
    "reward": "metric",
}  # fmt: skip
PATIENCE_S = 900.0


def free_port():
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """A ``haq serve`` of its own, with its folder."""

    def __init__(self, folder, *options, **environment):
        self.files, self.port, self.log = folder / "files", free_port(), folder / "log"
        self.words = [HAQ, "serve", "--files", self.files, "--port", self.port, "--lease", 4,
                      "--tries", 100, *options]  # fmt: skip
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.start()

    def start(self):
        """Start it, in a session of its own."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                list(map(str, self.words)), stdout=log, stderr=log, env=self.environment
            )

    def ask(self, path, body=None, timeout=60, **headers):
        """Return what it answers."""
        content = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **headers}
        address = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(
            urllib.request.Request(address, content, head), timeout=timeout
        ) as answer:
            return json.load(answer)

    def ready(self):
        """Wait until it is."""
        until(lambda: self.ask("/readyz"))

    def state(self, run_id):
        """Return the state of a run, None while nobody answers."""
        with suppress(OSError):
            return self.ask(f"/v1/runs/{run_id}")["state"]
        return None

    def kill(self, victim, rng):
        """Kill the server, a worker or a search with SIGKILL; return whether there was one."""
        workers = children(self.process.pid)
        searches = [child for worker in workers for child in children(worker)]
        pids = {"server": [self.process.pid], "worker": workers, "search": searches}[victim]
        if not pids:
            return False
        os.kill(rng.choice(pids), signal.SIGKILL)
        if victim == "server":
            self.process.wait()
            self.start()
        return True

    def end(self):
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def children(pid):
    """Return the processes that Python started below one, by its way of starting them."""
    shown = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line.split()[0]) for line in shown.splitlines() if "spawn_main" in line]


def until(condition, patience_s=PATIENCE_S):
    """Wait until a condition holds."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        with suppress(OSError):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError("this took too long")


def trials(folder):
    """Return what counts of the trials of a run."""
    return [(t.policy, t.accuracy, t.reward) for t in results.read_trials(folder)]


def undisturbed(place):
    """Return the trials of every seed, of searches that nothing happens to."""
    known = {}
    for seed in SEEDS:
        folder = place / f"undisturbed-{seed}"
        if not (folder / "summary.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            run(parse_job(**JOB, seed=seed), folder)
        known[seed] = trials(folder)
    return known


def checked(engine, files, runs, expected):
    """Return how the runs of seeds came out: once, whole, as undisturbed."""
    rows = []
    for seed, run_id in runs.items():
        events = store.events_after(engine, run_id, 0)
        said = [json.loads(event.data) for event in events]
        states = Counter(data["state"] for data in said if "state" in data)
        episodes = [data["episode"] for data in said if "episode" in data]
        numbers = [event.number for event in events]
        rows.append({
            "finished": store.find(engine, run_id).state == "finished" and states["finished"] == 1,
            "events_without_gap": numbers == [*range(1, len(events) + 1)],
            "each_episode_once": episodes == list(range(JOB["episodes"])),
            "as_undisturbed": trials(files / "runs" / run_id) == expected[seed],
        })  # fmt: skip
    return rows


def submitted(service):
    """Return the runs of all seeds, by seed; asked for again until the server is there."""
    runs = {}
    for seed in SEEDS:

        def ask(seed=seed):
            key = {"Idempotency-Key": f"seed-{seed}"}
            runs[seed] = service.ask("/v1/runs", {**JOB, "seed": seed}, **key)["id"]
            return True

        until(ask)
    return runs


def tally(rows):
    """Return how many of the runs came out right, by what is looked at."""
    return {"runs": len(rows)} | {name: sum(row[name] for row in rows) for name in rows[0]}


# --- kills -----------------------------------------------------------------------------------


def kills(place, count, seed, database, save):
    """Kill processes at random moments until so many are killed; save after each round of runs."""
    rng = random.Random(seed)
    expected = undisturbed(place)
    total, rows = Counter(), []
    while total.total() < count:
        with tempfile.TemporaryDirectory(dir=place) as name:
            folder = Path(name)
            options = ["--workers", 2, *(["--database", database] if database else [])]
            service = Service(folder, *options)
            service.ready()
            runs = submitted(service)
            begun = time.monotonic()
            while not all(service.state(one) == "finished" for one in runs.values()):
                time.sleep(rng.uniform(0.2, 6.0))
                enough = total.total() >= count
                victim = rng.choice(["server", "worker", "search", "search"])
                if not enough and service.kill(victim, rng):
                    total[victim] += 1
                if time.monotonic() - begun > PATIENCE_S:
                    break
            engine = connect(database or f"sqlite:///{service.files / 'haq.sqlite'}")
            rows += checked(engine, service.files, runs, expected)
            engine.dispose()
            service.end()
        save({"kills": total.total(), "killed": dict(total), **tally(rows)})


# --- faults of the machine -------------------------------------------------------------------


def one_run(service, expected, disturb):
    """Return how a run came out that something happens to once its first episodes are there."""
    service.ready()
    runs = submitted(service)
    until(lambda: len(results.read_trials(service.files / "runs" / runs[0])) >= 2)
    noted = disturb(service, runs[0])
    until(lambda: all(service.state(one) == "finished" for one in runs.values()))
    return runs, noted


def around(place, expected, disturb, *options, **environment):
    """Return what one fault does to three runs."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        service = Service(Path(name), *options, **environment)
        try:
            runs, noted = one_run(service, expected, disturb)
            database = options[options.index("--database") + 1] if "--database" in options else None
            engine = connect(database or f"sqlite:///{service.files / 'haq.sqlite'}")
            rows = checked(engine, service.files, runs, expected)
            engine.dispose()
        finally:
            service.end()
    return tally(rows) | noted


@contextmanager
def small_disk(folder, megabytes):
    """Mount a file system of this size at a folder; for root, on Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "haq", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_disk(place, expected):
    """Fill the disk of the files and the database in the middle of a run, and make room again."""

    def disturb(service, run_id):
        filler = service.files / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        told = None
        with suppress(OSError):
            service.ask("/healthz", timeout=5)
            told = "ok"
        time.sleep(12)  # more than two leases
        filler.unlink()
        return {"healthz_meanwhile": told}

    place.mkdir(exist_ok=True)
    with small_disk(place, 24):
        return around(place, expected, disturb)


def read_only(place, expected, database):
    """Let the folder of runs be read-only when they are taken, and writable some time later."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        service = Service(Path(name), "--database", database)
        try:
            service.ready()
            runs_folder = service.files / "runs"
            with small_disk(runs_folder, 64):
                subprocess.run(["mount", "-o", "remount,ro", runs_folder], check=True)
                runs = submitted(service)
                until(lambda: service.state(runs[0]) == "paused")
                message = service.ask(f"/v1/runs/{runs[0]}")["message"]
                subprocess.run(["mount", "-o", "remount,rw", runs_folder], check=True)
                until(lambda: all(service.state(one) == "finished" for one in runs.values()))
                engine = connect(database)
                rows = checked(engine, service.files, runs, expected)
                engine.dispose()
        finally:
            service.end()
    return tally(rows) | {"message": message}


def clock_jump(place, expected, hours):
    """Let the clock of the server, its workers and its SQLite jump, with libfaketime."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        return None
    stamp = place / f"clock{hours:+d}"
    stamp.write_text("+0\n")
    faked = {
        "LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1",
    }  # fmt: skip

    def disturb(service, run_id):
        stamp.write_text(f"{hours:+d}h\n")
        time.sleep(2)
        # The worker of a run dies just after the jump, so that its lease is of the other time.
        return {"worker_killed_after_it": service.kill("worker", random.Random(0))}

    return around(place, expected, disturb, **faked) | {"hours": hours}


@contextmanager
def postgresql(place):
    """Give the URL of a PostgreSQL of our own, and what restarts it at once."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder, port = Path(tempfile.mkdtemp(dir="/tmp", prefix="haq-pg-")), free_port()
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        subprocess.run(["chown", "postgres", folder], check=True)
    data = folder / "data"

    def call(*words):
        subprocess.run([*user, *map(str, words)], check=True, stdout=subprocess.DEVNULL, cwd="/")

    call(binaries / "initdb", "-D", data, "-U", "haq", "-A", "trust", "-E", "UTF8")
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options]
    call(*control, "start")
    try:
        yield (
            f"postgresql+psycopg://haq@127.0.0.1:{port}/postgres",
            lambda: call(*control, "-m", "immediate", "restart"),
        )
    finally:
        call(*control, "-m", "immediate", "stop")
        subprocess.run(["rm", "-rf", folder], check=False)


@contextmanager
def a_database(server):
    """Give the URL of an empty database on a server."""
    import psycopg

    name = f"haq_{random.randrange(10**9)}"
    plain = server.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.rpartition("/")[0] + f"/{name}"


def faults(place, save, only):
    """Do everything that may happen to a machine, one after the other."""
    expected = undisturbed(place)

    def restarted(restart):
        def disturb(service, run_id):
            for _ in range(3):
                restart()
                time.sleep(1)
            return {"restarts": 3}

        return disturb

    with (
        postgresql(place) as (server, restart),
        a_database(server) as one,
        a_database(server) as two,
    ):
        every = {
            "postgresql_restarted": lambda: around(
                place, expected, restarted(restart), "--database", one
            ),
            "disk_full": lambda: full_disk(place / "small", expected),
            "folder_read_only": lambda: read_only(place, expected, two),
            "clock_forward": lambda: clock_jump(place, expected, 5),
            "clock_back": lambda: clock_jump(place, expected, -5),
        }
        for name, do in every.items():
            if only and name not in only:
                continue
            save(name, do())


# --- strangers -------------------------------------------------------------------------------


class Pulse:
    """Asks for health ten times a second, and knows how long each answer took."""

    def __init__(self, port):
        self._port, self._end, self.seconds, self.failures = port, threading.Event(), [], 0
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def _beat(self):
        while not self._end.wait(0.1):
            began = time.perf_counter()
            try:
                address = f"http://127.0.0.1:{self._port}/healthz"
                with urllib.request.urlopen(address, timeout=10) as answer:
                    self.failures += answer.status != 200
            except OSError:
                self.failures += 1
            self.seconds.append(time.perf_counter() - began)

    def end(self):
        """Stop asking."""
        self._end.set()
        self._thread.join()


def hostile(place, count, seed):
    """Send hostile requests, some of them at once, and return what became of the service."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        files = folder / "files"
        token = {}
        for who in ("read", "submit"):
            words = [HAQ, "token", "create", who, "--scope", who, "--files", files]
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
            token[who] = done.stdout.strip()
        service = Service(folder)
        service.ready()
        pulse = Pulse(service.port)
        statuses, kinds, worst = service_requests.attack(service.port, token, count, seed)
        still = service.ask("/readyz")["status"]
        pulse.end()
        errors = service.log.read_text().count("internal error")
        service.end()
    seconds = sorted(pulse.seconds)
    return {
        "requests": sum(statuses.values()), "kinds": len(kinds), "statuses": dict(statuses),
        "held_connections": service_requests.HELD, "load": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "answers_of_500_and_above": sum(n for code, n in statuses.items() if re.match("5", code)),
        "internal_errors_logged": errors, "ready_afterwards": still == "ok",
        "healthz_asked": len(seconds), "healthz_failed": pulse.failures,
        "healthz_slowest_s": round(seconds[-1], 3),
        "healthz_median_s": round(seconds[len(seconds) // 2], 4),
        "healthz_over_one_second": sum(one > 1 for one in seconds),
        "slowest_requests_s": worst,
    }  # fmt: skip


def section(name, value):
    """Write one section of the record, with how it came about."""
    try:
        record = results.read_json(RECORD)
    except Exception:
        record = {}
    record[name] = value | {"provenance": script_provenance()}
    results.write_json(RECORD, record)
    print(name, json.dumps(value), flush=True)


def added(before, now):
    """Return the tallies of kills of earlier sessions and of this one together."""
    total = {name: before.get(name, 0) + value for name, value in now.items() if name != "killed"}
    victims = Counter(before.get("killed", {})) + Counter(now["killed"])
    return total | {"killed": dict(victims)}


def main():
    """Do what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kills", "faults", "hostile"])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="Faults by their names; all without it.")
    parser.add_argument("--fresh", action="store_true", help="Forget the kills of before.")
    parser.add_argument("--place", type=Path, help="Where undisturbed trials are kept for later.")
    asked = parser.parse_args()
    place = (asked.place or Path(tempfile.mkdtemp())).absolute()
    place.mkdir(parents=True, exist_ok=True)
    try:
        known = results.read_json(RECORD)
    except Exception:
        known = {}
    if asked.what == "kills":
        before = {} if asked.fresh else known.get("kills", {})
        kills(
            place, asked.kills, asked.seed, None, lambda now: section("kills", added(before, now))
        )
    elif asked.what == "faults":
        done = dict(known.get("faults", {}))

        def save(name, value):
            done[name] = value
            section("faults", done)

        faults(place, save, asked.only)
    else:
        section("hostile", hostile(place, asked.requests, asked.seed))


if __name__ == "__main__":
    main()
