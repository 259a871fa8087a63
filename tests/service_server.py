"""A real ``haq serve`` in a process of its own, for the tests of the service."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from service_parts import PATIENCE_S, wait_for

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
