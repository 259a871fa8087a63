"""A PostgreSQL of the tests' own, on loopback, for as long as they run."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgresql() -> Iterator[str]:
    """Give the URL of a server in which databases may be made, or skip with a reason."""
    given = os.environ.get("HAQ_TEST_POSTGRESQL")
    if given:
        yield given
        return
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *_on_path()]
    if not found:
        pytest.skip("PostgreSQL is not installed (initdb was not found)")
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user and not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="haq-postgresql-"))
    try:
        if user:
            shutil.chown(folder, "postgres")
        data, port = folder / "data", _free_port()
        binaries = found[-1]
        _call([*user, binaries / "initdb", "-D", data, "-U", "haq", "-A", "trust", "-E", "UTF8"])
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=200"
        control = [*user, binaries / "pg_ctl", "-D", data, "-w"]
        _call([*control, "-l", folder / "log", "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://haq@127.0.0.1:{port}/postgres"
        finally:
            _call([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_path() -> list[Path]:
    initdb = shutil.which("initdb")
    return [Path(initdb).resolve().parent] if initdb else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _call(command: list[object]) -> None:
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(words, stdout=log, stderr=log, cwd="/", check=False)
        log.seek(0)
        assert done.returncode == 0, f"{words}: {log.read().decode()}"
