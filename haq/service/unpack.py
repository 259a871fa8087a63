"""Unpack an archive of images and decode each of them, in a process of its own with limits.

    python -m haq.service.unpack ARCHIVE FOLDER LIMITS

Prints what was found as JSON and exits with 0; or one sentence, with 2. Whatever an archive makes
of Pillow, zlib or memory ends this process and nothing else.
"""

import io
import json
import os
import re
import resource
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from PIL import Image

from haq.errors import DataError, HaqError
from haq.service.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PARTS = {"train", "val", "test"}

_MEMORY = 4 << 30
_CHUNK = 1 << 20
_LARGE = 1_000_000  # pixels, from which on the ratio of an image counts
_PLAIN = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]{1,200}")


class Entry(NamedTuple):
    """A file in an archive."""

    name: str
    content: IO[bytes]


class Found(NamedTuple):
    """What an archive holds."""

    classes: int
    images: int


def unpack(archive: Path, folder: Path, limits: Limits) -> Found:
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
        with archive.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            entries = _zipped(archive, limits)
        else:
            plain = _inflated(archive, limits) if start[:2] == b"\x1f\x8b" else archive
            entries = _tarred(plain)
        _write(entries, folder, limits)
        return _checked(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _zipped(archive: Path, limits: Limits) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(archive) as opened:
            _check_count(len(opened.infolist()), limits)
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise DataError(f"{info.filename!r} is no plain file; links are not unpacked")
                if info.flag_bits & 1:
                    raise DataError(f"{info.filename!r} is encrypted")
                if info.file_size > limits.ratio * max(info.compress_size, 1024):
                    raise DataError(f"{info.filename!r} is packed too tightly to be an image")
                with opened.open(info) as content:
                    yield Entry(info.filename, content)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"the zip archive is damaged or of an unknown kind ({error})") from error


def _inflated(archive: Path, limits: Limits) -> Path:
    """Return the tar file in a .tar.gz, written beside it."""
    plain = archive.with_name("archive.tar")
    most = min(limits.unpacked_bytes, limits.ratio * max(archive.stat().st_size, 1024))
    inflate = zlib.decompressobj(wbits=31)
    written = 0
    try:
        with archive.open("rb") as source, plain.open("wb") as target:
            while not inflate.eof:
                packed = inflate.unconsumed_tail or source.read(_CHUNK)
                piece = inflate.decompress(packed, _CHUNK)
                if not packed and not piece:
                    raise DataError("the archive is cut short")
                written += len(piece)
                if written > most:
                    raise DataError(f"the archive unpacks to more than {most:.0f} bytes")
                target.write(piece)
    except zlib.error as error:
        raise DataError(f"the archive is damaged ({error})") from error
    return plain


class _Sips(io.RawIOBase):
    """A file that is not read by the gigabyte: the length of a tar header is anyone's claim."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise DataError("the tar archive has a header of more than a megabyte")
        return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _tarred(plain: Path) -> Iterator[Entry]:
    try:
        with tarfile.open(fileobj=_Sips(plain), mode="r:") as opened:
            for info in opened:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"{info.name!r} is no plain file; links are not unpacked")
                content = opened.extractfile(info)
                assert content is not None
                yield Entry(info.name, content)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, IndexError) as error:
        raise DataError("this is no zip, .tar or .tar.gz archive, or a damaged one") from error


def _write(entries: Iterator[Entry], folder: Path, limits: Limits) -> None:
    total = count = 0
    seen: set[str] = set()
    for entry in entries:
        place = _place(entry.name)
        if place is None:
            continue
        count += 1
        _check_count(count, limits)
        if str(place).casefold() in seen:
            raise DataError(f"{entry.name!r} is in the archive twice")
        seen.add(str(place).casefold())
        content = _read(entry, limits.file_bytes)
        total += len(content)
        if total > limits.unpacked_bytes:
            raise DataError(f"the archive unpacks to more than {limits.unpacked_bytes} bytes")
        _check_image(entry.name, content, limits)
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.files:
        raise DataError(f"the archive holds more than {limits.files} files")


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
    if len(parts) not in (2, 3, 4) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name!r}: give CLASS/IMAGE, or train, val and test, each with CLASS/IMAGE, "
            f"of {', '.join(SUFFIXES)}"
        )
    # A single folder around everything is usual; _checked takes it off.
    return PurePosixPath(*parts)


def _read(entry: Entry, most: int) -> bytes:
    pieces, size = [], 0
    while piece := entry.content.read(min(_CHUNK, most + 1)):
        size += len(piece)
        if size > most:
            raise DataError(f"{entry.name!r} is larger than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


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
    except DataError:
        raise
    except Exception as error:  # damaged images make Pillow raise almost anything
        raise DataError(f"{name!r} cannot be decoded as {', '.join(FORMATS)}") from error


def _checked(folder: Path) -> Found:
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
    return Found(len(classes), len(images))


def main(archive: str, folder: str, limits: str) -> None:
    """Unpack within the limits of this process."""
    from haq.datasets import load  # checks the folder as a search will, and brings torch

    allowed = Limits(**json.loads(limits))
    resource.setrlimit(resource.RLIMIT_CPU, (allowed.unpack_s, allowed.unpack_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed.unpacked_bytes, allowed.unpacked_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.umask(0o077)
    try:
        found = unpack(Path(archive), Path(folder), allowed)
        load(f"folder:{folder}")
    except HaqError as error:
        sys.stderr.write(str(error).replace(f"{folder}/", ""))
        sys.exit(2)
    print(json.dumps(found._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
