"""The folder of files: it bears the name of its store, so that an empty mount is not taken for it.

From a job as a user asked for it to one with the paths of this machine: only here do names and
numbers of uploads become paths, and only of what the operator allows or a user has uploaded.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from haq.errors import HaqError
from haq.files import write_text
from haq.runs.job import Job
from haq.service.settings import Settings

UPLOAD = re.compile(r"upload:([0-9a-f]{32})")
"""How a job names an upload."""

NAME = ".store"

PRIVATE = 0o077
"""The umask of a service: its files are for its own user."""


def prepare(settings: Settings, store: str) -> None:
    """Make the folder of files, or check that it is the one of this store.

    Raises:
        HaqError: It belongs to another store, or cannot be made.
    """
    try:
        settings.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = settings.files / NAME
        if not name.exists() and not (settings.files / "runs").exists():
            write_text(name, store + "\n")
        for part in ("runs", "uploads"):
            (settings.files / part).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HaqError(f"the folder {settings.files} cannot be made: {error.strerror}") from error
    fault = missing(settings, store)
    if fault:
        raise HaqError(f"{settings.files}: {fault}")


def missing(settings: Settings, store: str) -> str | None:
    """Return what is wrong with the folder of files, if anything is."""
    try:
        name = (settings.files / NAME).read_text(encoding="utf-8").strip()
    except OSError:
        return "the folder of the service's files is not there"
    if name != store:
        return "the folder of files belongs to another database"
    return None


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder, of those that can be looked at."""
    total = 0
    for around, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(around, name)).st_size
    return total


def with_paths(job: Job, settings: Settings) -> Job:
    """Return the job with the paths of this machine in place of names.

    Raises:
        HaqError: A name is not allowed, or an upload is gone.
    """
    changes: dict[str, object] = {
        "data": _data(job.data, settings), "model": model_of(job.model, settings),
    }  # fmt: skip
    if job.weights is not None:
        changes["weights"] = weights_file(str(job.weights), settings)
    if job.target is not None:
        changes["target"] = target_of(job.target, settings)
    return job.model_copy(update=changes)


def model_of(name: str, settings: Settings) -> str:
    """Return the model that a name of a job stands for.

    Raises:
        HaqError: It is neither one of HAQ nor offered.
    """
    if name in settings.models:
        return settings.models[name]
    if ":" in name:
        raise HaqError(f"model {name!r} is not offered here")
    return name


def _data(name: str, settings: Settings) -> str:
    upload = UPLOAD.fullmatch(name)
    if upload:
        folder = settings.upload_folder(upload[1]) / "data"
        if not folder.is_dir():
            raise HaqError(f"data {name}: there is no such upload any more")
        return f"folder:{folder}"
    if name not in settings.data:
        raise HaqError(f"data {name!r} is not offered here")
    return settings.data[name]


TARGET_FILES = {"profile.json": "", "table.json": "table:", "table.csv": "table:"}
"""The files that an upload of a target may have, and what stands before their paths."""


def target_of(name: str, settings: Settings) -> str:
    """Return the target that a name of a job stands for: its own, or that of an upload's file.

    Raises:
        HaqError: There is no such upload, or the name is a path.
    """
    upload = UPLOAD.fullmatch(name)
    if not upload:
        if re.search(r"[/\\:]|\.(json|csv)$", name):
            raise HaqError(f"target {name!r} is not offered here")
        return name
    folder = settings.upload_folder(upload[1])
    for file, before in TARGET_FILES.items():
        if (folder / file).is_file():
            return f"{before}{(folder / file).absolute()}"
    raise HaqError(f"target {name}: there is no such upload any more")


def weights_file(name: str, settings: Settings) -> Path:
    """Return the file of weights that an upload or an offered name stands for.

    Raises:
        HaqError: There is no such one.
    """
    upload = UPLOAD.fullmatch(name)
    if upload:
        file = settings.upload_folder(upload[1]) / "weights.safetensors"
        if not file.is_file():
            raise HaqError(f"weights {name}: there is no such upload any more")
        return file
    if name not in settings.weights:
        raise HaqError(f"weights {name!r} are not offered here")
    return settings.weights[name]


def without_paths(text: str, settings: Settings) -> str:
    """Return a sentence for the user, without the paths of this machine."""
    for path in (settings.files.absolute(), settings.files):
        text = re.sub(
            rf"(?:table:)?{re.escape(str(path))}[/\\]uploads[/\\]([0-9a-f]{{32}})[/\\]"
            r"(weights\.safetensors|data|profile\.json|table\.json|table\.csv)",
            r"upload:\1",
            text,
        )
        text = re.sub(rf"{re.escape(str(path))}[/\\]runs[/\\][0-9a-f]{{32}}[/\\]", "", text)
    for name, spec in settings.models.items():
        text = text.replace(spec, name)
    weights = {name: str(path) for name, path in settings.weights.items()}
    for name, spec in {**settings.models, **settings.data, **weights}.items():
        where = spec.partition(":")[2] or spec
        if "/" in where or "\\" in where:
            text = text.replace(where, name)
    return text
