"""Workers in a Ray cluster, which are found again after its head was lost."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_parts import opened, run_of, wait_for

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service import store
from haq.service.cluster import _check_database, in_cluster
from haq.service.settings import Settings

RAY = Path(sys.executable).with_name("ray")

NODES = [{"NodeManagerAddress": f"10.0.0.{number}", "Alive": number < 3} for number in (1, 2, 3)]


def test_a_database_in_a_file_is_for_a_cluster_of_one_machine():
    _check_database(Settings(), NODES[:1] + NODES[2:])  # the third one is gone
    _check_database(Settings(database="postgresql+psycopg://haq@host/haq"), NODES)
    with pytest.raises(HaqError, match="the cluster has 2 machines, and SQLite is for one: give"):
        _check_database(Settings(), NODES)


@contextmanager
def head(port):
    """A cluster of one node, in a group of processes of its own, that is killed at the end."""
    words = [
        RAY, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--num-cpus=2", "--disable-usage-stats", "--include-dashboard=false",
        "--object-store-memory=80000000",
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def over(engine, run_id):
    run = store.find(engine, run_id)
    return run.message if run.state in store.OVER else None


@pytest.mark.slow
@pytest.mark.skipif(not RAY.exists(), reason="ray is not installed")
def test_workers_in_a_cluster_do_runs_before_and_after_its_head_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # for the cluster and for those who join it
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    settings, engine = opened(tmp_path)
    asked = Job(episodes=3, weights="none")  # which ends as soon as a worker has it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with head(port):
        workers = in_cluster(settings, 1, f"127.0.0.1:{port}")
        first = run_of(engine, asked)
        assert wait_for(lambda: over(engine, first)) == "weights 'none' are not offered here"
    second = run_of(engine, asked)
    with head(port):
        assert wait_for(lambda: over(engine, second)) == "weights 'none' are not offered here"
        workers.end()
    assert store.find(engine, second).fence == 1
