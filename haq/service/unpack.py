"""Unpack an archive of images and decode each of them, in a process of its own with limits.

    python -m haq.service.unpack ARCHIVE FOLDER LIMITS

Prints what the archive holds as JSON and exits with 0; or one sentence, with 2 where the archive is
to blame and with 3 where the machine is. Whatever an archive makes of Pillow, zlib or memory ends
this process and nothing else.
"""

import io
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from PIL import Image

from haq.errors import DataError, HaqError
from haq.service.archives import Entry, check_count, entries
from haq.service.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PARTS = {"train", "val", "test"}

_MEMORY = 4 << 30
_LARGE = 1_000_000  # pixels, from which on the ratio of an image counts
_PLAIN = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]+")
_NAME_BYTES = 200  # file systems take 255, some of them encrypted ones less


class Contents(NamedTuple):
    """What an archive holds."""

    classes: int
    images: int


def unpack(archive: Path, folder: Path, limits: Limits) -> Contents:
    """Unpack a zip or tar archive of images into a folder that is not there yet.

    Args:
        archive: Its kind is read off its content.
        folder: Made; taken away again if anything is wrong.
        limits: How much it may hold.

    Returns:
        How many classes and images there are.

    Raises:
        DataError: It is no archive, holds anything but images in folders of classes, or too much.
    """
    folder.mkdir(parents=True)
    try:
        _write(entries(archive, limits), folder, limits)
        return _checked(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(files: Iterator[Entry], folder: Path, limits: Limits) -> None:
    total = count = 0
    names = _Names()
    for entry in files:
        place = _place(entry.name)
        if place is None:
            continue
        count += 1
        check_count(count, limits)
        names.add(place, entry.name)
        content = entry.read(limits.file_bytes)
        total += len(content)
        if total > limits.unpacked_bytes:
            raise DataError(f"the archive unpacks to more than {limits.unpacked_bytes} bytes")
        _check_image(entry.name, content, limits)
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class _Names:
    """The names in an archive, which must differ on every file system."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, place: PurePosixPath, name: str) -> None:
        """Note a file.

        Raises:
            DataError: It is there already, or a file and a folder have the same name.
        """
        file, *folders = (_plain(path) for path in (place, *place.parents))
        if file in self._files:
            raise DataError(f"{name!r} is in the archive twice")
        if file in self._folders or self._files.intersection(folders):
            raise DataError(f"{name!r}: a file and a folder in the archive have the same name")
        self._files.add(file)
        self._folders.update(folders)


def _plain(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def _place(name: str) -> PurePosixPath | None:
    """Return where a file goes: CLASS/IMAGE or PART/CLASS/IMAGE; None for what is passed over."""
    parts = [part for part in name.split("/") if part != "."]
    if any(part == "__MACOSX" or part in (".DS_Store", "Thumbs.db") for part in parts):
        return None
    odd = [part for part in parts if not _PLAIN.fullmatch(part) or part.startswith(".")]
    if name.startswith("/") or odd:
        raise DataError(
            f"{name!r} is no name for a file here: give CLASS/IMAGE or PART/CLASS/IMAGE"
        )
    _check_encoding(name, parts)
    if len(parts) not in (2, 3, 4) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name!r}: give CLASS/IMAGE, or train, val and test, each with CLASS/IMAGE, "
            f"of {', '.join(SUFFIXES)}"
        )
    # A single folder around everything is usual; _checked takes it off.
    return PurePosixPath(*parts)


def _check_encoding(name: str, parts: Sequence[str]) -> None:
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        raise DataError(f"{name!r} is not in UTF-8") from None
    if longest > _NAME_BYTES:
        raise DataError(
            f"{name!r} has a name of {longest} bytes in UTF-8; {_NAME_BYTES} are allowed for the "
            "name of a class or an image"
        )


def _check_image(name: str, content: bytes, limits: Limits) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > limits.pixels:  # read off the head; nothing is decoded yet
                raise DataError(f"{name!r} has {pixels} pixels; {limits.pixels} are allowed")
            if pixels > _LARGE and 3 * pixels > limits.ratio * len(content):
                raise DataError(f"{name!r} is packed too tightly to be a photograph")
            if getattr(image, "n_frames", 1) != 1:
                raise DataError(f"{name!r} holds more than one image")
            image.load()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damaged images make Pillow raise almost anything
        raise DataError(f"{name!r} cannot be decoded as {', '.join(FORMATS)}") from error


def _checked(folder: Path) -> Contents:
    """Take off a single folder around everything, and count; the rest ``load`` will check."""
    names = {path.name for path in folder.iterdir()}
    depths = {len(path.relative_to(folder).parts) for path in folder.rglob("*") if path.is_file()}
    if len(names) == 1 and min(depths, default=0) > 2 and not names & PARTS:
        [around] = folder.iterdir()
        around.rename(folder.with_name("around"))
        folder.rmdir()
        folder.with_name("around").rename(folder)
        names = {path.name for path in folder.iterdir()}
    parts = sorted(names & PARTS)
    if parts and names != PARTS:
        raise DataError(f"beside {parts[0]} there must be train, val and test, and nothing else")
    classes = [path for path in (folder / "train" if parts else folder).iterdir()]
    images = [path for path in folder.rglob("*") if path.is_file()]
    depth = 3 if parts else 2
    for path in images:
        if len(path.relative_to(folder).parts) != depth:
            raise DataError(f"{path.relative_to(folder)} does not lie in the folder of a class")
    if len(classes) < 2:
        raise DataError(f"the archive holds {len(classes)} class(es); two at least are needed")
    return Contents(len(classes), len(images))


def limit_process(limits: Limits) -> None:
    """Limit the memory and time of this process, where the system has such limits.

    Elsewhere (Windows) the counts of ``limits`` hold, and whoever started it ends it in time.
    """
    os.umask(0o077)
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_CPU, limits.unpack_s), (resource.RLIMIT_FSIZE, limits.unpacked_bytes),
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MEMORY),
    ):  # fmt: skip
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS has RLIMIT_AS and does not take it
            pass


def main(archive: str, folder: str, limits: str) -> None:
    """Unpack within the limits of this process."""
    from haq.datasets import load  # checks the folder as a search will, and brings torch

    allowed = Limits(**json.loads(limits))
    limit_process(allowed)
    try:
        contents = unpack(Path(archive), Path(folder), allowed)
        load(f"folder:{folder}")
    except HaqError as error:
        _refuse(str(error).replace(f"{folder}{os.sep}", ""))
    except MemoryError:
        _refuse("the archive takes more memory to unpack than is allowed")
    except OSError as error:  # such as a full disk, which is nobody's archive's fault
        _end(3, f"{error.strerror or error}")
    print(json.dumps(contents._asdict()))


def _refuse(sentence: str) -> NoReturn:
    _end(2, sentence)


def _end(code: int, sentence: str) -> NoReturn:
    sys.stderr.buffer.write(sentence.encode(errors="backslashreplace"))
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
