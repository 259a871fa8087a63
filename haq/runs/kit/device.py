"""Run the runner of a kit, here or on another machine over ssh, and bring back what it measured.

Nothing but ssh is needed here, and a shell with tar and cat there: many boards have no scp or sftp.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from haq.errors import HaqError
from haq.runs.kit.make import RUNNER, Contents
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
    contents = contents_of(folder)
    _check_files(folder, contents)
    if host is None:
        _done([sys.executable, str(folder / RUNNER), *options], "the runner")
        return
    there = _folder_there(folder)
    _done(["ssh", host, f"mkdir -p {there}"], f"ssh to {host}")
    # What an earlier start measured there, and could not bring back, is not copied over.
    _fetch(folder, host, there)
    _copy(folder, host, there)
    command = shlex.join([python, RUNNER, *options])
    try:
        _done(["ssh", host, f"cd {there} && {command}"], f"the runner on {host}")
    finally:  # also what was measured until a failure
        fetched = _fetch(folder, host, there)
    if not fetched:
        raise HaqError(
            f"{MEASURED} could not be fetched from {host}: it lies in {there} there; give the "
            "command again, nothing is measured twice"
        )


def _check_files(folder: Path, contents: Contents) -> None:
    """Name all files that are missing, before anything is measured.

    Raises:
        HaqError: There are some.
    """
    missing = [name for name in contents.files if not (folder / "files" / name).is_file()]
    missing += [RUNNER] * (not (folder / RUNNER).is_file())
    if missing:
        raise HaqError(
            f"{folder} lacks {len(missing)} of its files ({', '.join(missing)}); nothing was "
            "measured; make the kit again with haq kit make"
        )


def _folder_there(folder: Path) -> str:
    """Return where a kit lies on another machine: kits of other contents lie elsewhere."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)
    digest = hashlib.sha256((folder / "kit.json").read_bytes()).hexdigest()[:8]
    return f"haq-kit-{name}-{digest}"


def _fetch(folder: Path, host: str, there: str) -> bool:
    """Bring back what was measured; return whether it came.

    It takes its place in one step, so that a connection that breaks takes nothing away.

    Raises:
        HaqError: Other figures are here already.
    """
    coming = folder / f"{MEASURED}.part"
    try:
        with coming.open("wb") as file:
            asked = ["ssh", host, f"cat {there}/{MEASURED}"]
            done = subprocess.run(asked, check=False, stdout=file, stderr=subprocess.DEVNULL)
        if done.returncode:
            return False
        own, new = (_whole_lines(path) for path in (folder / MEASURED, coming))
        if new.startswith(own):
            os.replace(coming, folder / MEASURED)
        elif not own.startswith(new):
            raise HaqError(
                f"{folder / MEASURED} and what was measured on {host} ({there}) are different "
                "figures; take one of the two away"
            )
        return True
    finally:
        coming.unlink(missing_ok=True)


def _copy(folder: Path, host: str, there: str) -> None:
    """Bring a kit to another machine.

    Raises:
        HaqError: It did not arrive.
    """
    command = ["ssh", host, f"tar -xf - -C {there}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            with process.stdin as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
                for path in sorted(folder.rglob("*")):
                    name = path.relative_to(folder).as_posix()
                    archive.add(path, name, recursive=False, filter=_of_nobody)
        except BrokenPipeError:
            pass  # the code says why
    _check_code(process.returncode, f"copying to {host}")


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an entry whose owner will be whoever unpacks it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _whole_lines(path: Path) -> bytes:
    """Return a file without a line that was torn by a kill; nothing where there is none."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _done(command: Sequence[str], what: str) -> None:
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise HaqError(f"{what}: {command[0]} does not start ({error.strerror})") from error
    _check_code(code, what)


def _check_code(code: int, what: str) -> None:
    if code:
        raise HaqError(f"{what} ended with code {code}; see above, and give the command again")
