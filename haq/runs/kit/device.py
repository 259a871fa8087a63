"""Run the runner of a kit, here or on another machine over ssh, and bring back what it measured."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from haq.errors import HaqError
from haq.runs.kit.make import RUNNER
from haq.runs.kit.read import MEASURED, contents_of


def run_kit(
    folder: Path, host: str | None = None, python: str = "python3", options: Sequence[str] = ()
) -> None:
    """Measure a kit; what was measured before stays, and is gone on with.

    Args:
        folder: The kit.
        host: As ssh takes it; None: this machine.
        python: Of the host.
        options: Of the runner.

    Raises:
        HaqError: There is no kit, a program is missing, or the runner ended without success.
    """
    contents_of(folder)
    if host is None:
        _done([sys.executable, str(folder / RUNNER), *options], "the runner")
        return
    there = f"haq-kit-{folder.resolve().name}"
    _done(["ssh", host, f"mkdir -p {shlex.quote(there)}"], f"ssh to {host}")
    fetch = ["scp", "-q", f"{host}:{there}/{MEASURED}", str(folder)]
    # What an earlier start measured there, and could not bring back, is not copied over.
    subprocess.run(fetch, check=False, stderr=subprocess.DEVNULL)
    _done(["scp", "-qr", f"{folder}/.", f"{host}:{there}/"], f"copying to {host}")
    command = shlex.join([python, RUNNER, *options])
    try:
        _done(["ssh", host, f"cd {shlex.quote(there)} && {command}"], f"the runner on {host}")
    finally:
        subprocess.run(fetch, check=False)  # also what was measured until a failure


def _done(command: Sequence[str], what: str) -> None:
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise HaqError(f"{what}: {command[0]} does not start ({error.strerror})") from error
    if code:
        raise HaqError(f"{what} ended with code {code}; see above, and give the command again")
