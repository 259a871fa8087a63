"""The commands themselves, over real connections: killed, stopped and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from service_parts import PATIENCE_S, wait_for
from test_service_worker import REAL, accuracies

from haq.runs.run import run
from haq.service import store
from haq.service.database import connect

LONGER = REAL.model_copy(update={"episodes": 60, "agent": "random", "train_images": 900})
HAQ = Path(sys.executable).with_name("haq")


class Server:
    """A real ``haq serve``."""

    def __init__(self, tmp_path, database=""):
        self.files = tmp_path / "files"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tmp_path / "log"
        self.words = [HAQ, "serve", "--files", self.files, "--port", self.port, "--lease", 4]
        self.words += ["--database", database] if database else []
        self.start()

    def start(self):
        words = [str(word) for word in self.words]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=ENVIRONMENT)
        wait_for(self._answers)

    def _answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("/readyz")["status"] == "ok"
        except OSError:
            return False

    def ask(self, path, body=None):
        with self.opened(path, body) as answer:
            return json.load(answer)

    def opened(self, path, body=None, **headers):
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", content,
            {"Content-Type": "application/json", **headers},
        )  # fmt: skip
        return urllib.request.urlopen(request, timeout=PATIENCE_S)

    def listen(self, place, known, until):
        """Add the events after those known, until one is of the kind looked for."""
        after = {"Last-Event-ID": str(len(known))} if known else {}
        with self.opened(f"{place}/events", **after) as stream:
            event = {}
            for line in stream:
                key, _, value = line.decode().rstrip("\n").partition(": ")
                event[key] = value
                if line == b"\n":
                    if "id" in event:
                        known.append((int(event["id"]), event["event"], json.loads(event["data"])))
                    if until(event):
                        return
                    event = {}


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def episode(number):
    return lambda event: event.get("event") == "trial" and f'"episode": {number},' in event["data"]


@pytest.mark.slow
def test_killed_and_stopped_nothing_is_lost(server, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run(LONGER, undisturbed)
    asked = LONGER.model_dump(mode="json", exclude_unset=True)
    made = server.ask("/v1/runs", asked)
    place, known = f"/v1/runs/{made['id']}", []

    server.listen(place, known, episode(1))
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.start()
    server.listen(place, known, episode(4))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait() == 0
    engine = connect(f"sqlite:///{server.files / 'haq.sqlite'}")
    # Handed back, unless the last episode was over first.
    assert store.find(engine, made["id"]).state in ("queued", "finished")
    server.start()
    server.listen(place, known, lambda event: event.get("event") == "end")

    assert server.ask(place)["state"] == "finished"
    assert [number for number, _, _ in known] == list(range(1, len(known) + 1))
    told = [data["episode"] for _, kind, data in known if kind == "trial"]
    assert told == list(range(LONGER.episodes))
    assert accuracies(server.files / "runs" / made["id"]) == accuracies(undisturbed)
    summary = (server.files / "runs" / made["id"] / "summary.json").read_text()
    assert str(server.files) not in summary  # nor the operator's options
    for line in server.log.read_text().splitlines():
        assert json.loads(line)["time"]


def test_beyond_this_machine_it_does_not_start_without_tokens(tmp_path):
    words = [HAQ, "serve", "--host", "0.0.0.0", "--files", tmp_path / "files"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "haq: host 0.0.0.0 can be reached from other machines" in done.stderr


def test_tokens_are_made_listed_and_revoked(tmp_path):
    def haq(*words):
        done = subprocess.run(
            [str(HAQ), "token", *words, "--files", str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() or done.stderr.strip()

    token = haq("create", "ada", "--scope", "read")
    number = token.split("_")[1]
    assert haq("list") == f"{number}  read    in use   ada"
    assert haq("revoke", "ada") == f"revoked: {number}"
    assert haq("list") == f"{number}  read    revoked  ada"
    assert haq("create", "eve", "--scope", "root").startswith("haq: unknown scope 'root'")


def test_a_worker_does_not_touch_a_database_of_another_version(tmp_path):
    done = subprocess.run(
        [str(HAQ), "worker", "--files", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "start haq serve of this version first" in done.stderr
