"""The service without what only some systems have: no fcntl, no resource, no process groups."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from haq.service.limits import Limits

WITHOUT = """
import errno, os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("setpgrp", "sched_getaffinity", "fork", "killpg"):
    delattr(os, name)
del signal.SIGHUP, signal.SIGKILL
"""

SEARCH = """
import time
from multiprocessing import Pipe
from pathlib import Path
import service_searches
from haq.runs.job import Job
from haq.service.searching import _main, alone
ours, theirs = Pipe()
folder = Path(sys.argv[1]) / "run"
_main(theirs, Job(episodes=2), folder, service_searches.quick, time.monotonic() + 3600)
while (message := ours.recv()).kind == "progress":
    pass
print(message.kind)
with alone(folder):
    try:
        with alone(folder):
            print("twice")
    except BlockingIOError:
        print("locked")
"""

SERVER = """
import haq.service.serve, haq.service.worker
from haq.service.sockets import most_connections
print(most_connections())
"""

UNPACK = """
from haq.service.unpack import main
main(*sys.argv[1:])
"""


def said(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + script, *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stderr
    return done.stdout.split() or done.stderr


def archive(path, size=(8, 8)):
    picture = io.BytesIO()
    Image.new("RGB", size).save(picture, "PNG")
    with zipfile.ZipFile(path, "w") as file:
        for name in ("cat", "dog"):
            for number in range(4):
                file.writestr(f"{name}/{number}.png", picture.getvalue())
    return path


def test_a_search_runs_and_is_alone_in_its_folder(tmp_path):
    assert said(SEARCH, tmp_path) == ["finished", "locked"]


def test_the_server_can_be_imported_and_counts_its_connections():
    assert said(SERVER) == ["512"]


def test_an_archive_is_unpacked(tmp_path):
    path = archive(tmp_path / "received")
    contents = said(UNPACK, path, tmp_path / "data", json.dumps(asdict(Limits())))
    assert json.loads("".join(contents)) == {"classes": 2, "images": 8}


@pytest.mark.parametrize(
    "limits, sentence",
    [
        (Limits(pixels=63), "has 64 pixels; 63 are allowed"),
        (Limits(unpacked_bytes=200), "the archive unpacks to more than 200 bytes"),
        (Limits(file_bytes=50), "is larger than 50 bytes"),
    ],
)
def test_the_counted_limits_hold(tmp_path, limits, sentence):
    path = archive(tmp_path / "received")
    assert sentence in said(UNPACK, path, tmp_path / "data", json.dumps(asdict(limits)))
    assert not Path(tmp_path / "data").exists()
