"""What users bring along: float weights as safetensors, archives of images, and targets.

A file is looked at before anything of it is used, and is known by a number from then on; its own
name is only shown.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from sqlalchemy import Engine, delete, insert, select, true

from haq.errors import DataError, HaqError, ModelError, TargetError
from haq.service import place, store
from haq.service.database import reading
from haq.service.limits import Limits
from haq.service.place import size_of
from haq.service.settings import Settings
from haq.service.tables import UPLOADS, now

KINDS = ("weights", "data", "target")

TARGET_BYTES = 4 << 20
"""Of a profile or a table, at most."""

MOST_ROWS = 10_000
"""Of a table: checking each takes time, whenever it is read."""

_WEIGHTS = "weights.safetensors"


class Upload(NamedTuple):
    """A row of the table of uploads."""

    id: str
    owner: str
    kind: str
    name: str
    size_bytes: int
    sha256: str
    classes: int
    images: int
    stored_bytes: int
    created: float


class Full(HaqError):
    """A user has stored as much as is allowed."""


def find(engine: Engine, upload_id: str, owner: str | None) -> Upload | None:
    """Return an upload; None if there is none, or it is not of this owner (None: of anyone)."""
    return next((u for u in listed(engine, owner) if u.id == upload_id), None)


def listed(engine: Engine, owner: str | None) -> list[Upload]:
    """Return the uploads of an owner (None: everyone's), the newest first."""
    mine = true() if owner is None else UPLOADS.c.owner == owner
    columns = (UPLOADS.c[name] for name in Upload._fields)
    with reading(engine) as connection:
        query = select(*columns).where(mine).order_by(UPLOADS.c.created.desc())
        return [Upload(*row) for row in connection.execute(query)]


def check_room(engine: Engine, owner: str, limits: Limits) -> None:
    """Check that an owner may store more.

    Raises:
        Full: No.
    """
    stored = store.stored(engine, owner)
    if stored >= limits.stored_bytes:
        raise Full(f"your uploads and runs take {stored} bytes already; delete some first")


async def receive(
    settings: Settings, pieces: AsyncIterator[bytes], most: int | None = None
) -> tuple[str, str, int]:
    """Write what comes to the folder of a new upload, and return its id, SHA-256 and size.

    Raises:
        Full: It has more than ``most`` bytes.
    """
    upload_id = uuid.uuid4().hex
    folder = settings.upload_folder(upload_id)
    folder.mkdir(mode=0o700)
    digest, size = hashlib.sha256(), 0
    try:
        with (folder / "received").open("wb") as file:
            async for piece in pieces:
                digest.update(piece)
                size += len(piece)
                if most is not None and size > most:
                    raise Full(f"a profile or a table has at most {most} bytes")
                file.write(piece)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return upload_id, digest.hexdigest(), size


def keep(
    engine: Engine,
    settings: Settings,
    limits: Limits,
    owner: str,
    kind: str,
    name: str,
    received: tuple[str, str, int],
) -> Upload:
    """Check what was received and keep it, or take it away again.

    Raises:
        HaqError: It is not what it should be.
    """
    upload_id, sha256, size = received
    folder = settings.upload_folder(upload_id)
    try:
        file = folder / "received"
        classes = images = 0
        if kind == "weights":
            _check_weights(file)
            file.rename(folder / _WEIGHTS)
        elif kind == "target":
            _check_target(file, folder)
        else:
            classes, images = _unpacked(file, folder / "data", limits)
            file.unlink()
            (folder / "archive.tar").unlink(missing_ok=True)
        with engine.begin() as connection:
            connection.execute(
                insert(UPLOADS).values(
                    id=upload_id, owner=owner, kind=kind, name=name, size_bytes=size,
                    sha256=sha256, classes=classes, images=images, created=now(),
                    stored_bytes=size_of(folder),
                )
            )  # fmt: skip
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    upload = find(engine, upload_id, owner)
    assert upload is not None
    return upload


def _check_weights(file: Path) -> None:
    try:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            "this is no safetensors file, or a damaged one; other kinds, such as .pt, can run code "
            "and are not taken"
        ) from error
    if not names:
        raise ModelError("the file holds no weights")


def _check_target(file: Path, folder: Path) -> None:
    """Give the file the name of its kind, once it is known to be a target that works.

    Raises:
        TargetError: It is none; the sentence names the field or the row that is wrong.
    """
    from haq.hw_profiles import build, find
    from haq.hw_profiles.measured import Measured

    text = file.read_bytes().decode(errors="replace")
    start = text[:1000].lstrip("\ufeff \t\r\n")
    kind = {"{": "profile.json", "[": "table.json"}.get(start[:1], "table.csv")
    rows = len(text.splitlines()) - 1 if kind == "table.csv" else text.count("{")
    if rows > MOST_ROWS:
        raise TargetError(f"the table cannot be used: it has more than {MOST_ROWS} rows")
    path = file.rename(folder / kind)
    try:
        profile = find(f"{place.TARGET_FILES[kind]}{path}")
        if isinstance(profile.model, Measured):
            raise TargetError(
                f"{profile.name} was measured on another machine, where its runtime is compared "
                "with it again; bring a table of its costs, or a profile of your own device"
            )
        build(profile)
    except TargetError as error:
        if "recursion" in str(error):
            raise TargetError("the file is nested too deeply") from None
        what = "the profile" if kind == "profile.json" else "the table"
        sentence = re.sub(r"^(profile|table) [^:]*: ", "", str(error).replace(str(path), "it"))
        raise TargetError(f"{what} cannot be used: {sentence}") from error
    except RecursionError:
        raise TargetError("the file is nested too deeply") from None


def _unpacked(archive: Path, folder: Path, limits: Limits) -> tuple[int, int]:
    words = [sys.executable, "-m", "haq.service.unpack", archive, folder]
    try:
        done = subprocess.run(
            [*map(str, words), json.dumps(asdict(limits))],
            capture_output=True, encoding="utf-8", errors="replace", check=False,
            timeout=2 * limits.unpack_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DataError("the archive takes too long to unpack") from None
    if done.returncode == 2:
        raise DataError(done.stderr.strip())
    if done.returncode < 0:  # by a signal
        raise DataError("the archive cannot be unpacked within the limits of memory and time")
    if done.returncode == 3:
        raise OSError(done.stderr.strip())
    if done.returncode > 0:
        raise RuntimeError(f"the process that unpacks archives broke:\n{done.stderr}")
    contents = json.loads(done.stdout)
    return contents["classes"], contents["images"]


def remove(engine: Engine, settings: Settings, upload: Upload) -> None:
    """Delete an upload.

    Raises:
        Conflict: A run that is not over needs it.
    """
    if store.uses(engine, f"upload:{upload.id}"):
        raise store.Conflict("a run that is not over needs this upload; cancel it first")
    with engine.begin() as connection:
        connection.execute(delete(UPLOADS).where(UPLOADS.c.id == upload.id))
    shutil.rmtree(settings.upload_folder(upload.id), ignore_errors=True)
