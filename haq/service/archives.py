"""The files in a zip or tar archive, one after another, whatever the archive claims of itself."""

import errno
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from haq.errors import DataError
from haq.service.limits import Limits

_CHUNK = 1 << 20


class Entry(NamedTuple):
    """A file in an archive."""

    name: str
    content: IO[bytes]

    def read(self, most: int) -> bytes:
        """Return the content.

        Raises:
            DataError: It has more than ``most`` bytes, or is damaged.
        """
        pieces, size = [], 0
        with _damage_said(f"{self.name!r} is damaged in the archive"):
            while piece := self.content.read(min(_CHUNK, most + 1)):
                size += len(piece)
                if size > most:
                    raise DataError(f"{self.name!r} is larger than {most} bytes")
                pieces.append(piece)
        return b"".join(pieces)


@contextmanager
def _damage_said(sentence: str) -> Iterator[None]:
    """Say in one sentence what is wrong with an archive, whatever its reader makes of it.

    The readers of the standard library raise errors of their decoders (zlib, bz2, lzma), of
    ``struct``, of text and of numbers, a different one for every damaged byte.

    Raises:
        DataError: Something was wrong.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk that it lies on
        raise DataError(f"{sentence} ({type(error).__name__})") from error


def entries(archive: Path, limits: Limits) -> Iterator[Entry]:
    """Yield the plain files of an archive, whose kind is read off its content.

    A .tar.gz is first written as ``archive.tar`` beside it.

    Raises:
        DataError: It is no archive, is damaged, too large, or holds anything but plain files.
    """
    with archive.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _zipped(archive, limits)
    return _tarred(_inflated(archive, limits) if start[:2] == b"\x1f\x8b" else archive)


def check_count(count: int, limits: Limits) -> None:
    """Check how many files an archive holds.

    Raises:
        DataError: There are too many.
    """
    if count > limits.files:
        raise DataError(f"the archive holds more than {limits.files} files")


def _zipped(archive: Path, limits: Limits) -> Iterator[Entry]:
    with (
        _damage_said("the zip archive is damaged or of an unknown kind"),
        zipfile.ZipFile(archive) as opened,
    ):
        check_count(len(opened.infolist()), limits)
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


class _Chunks(io.RawIOBase):
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
    with (
        _damage_said("this is no zip, .tar or .tar.gz archive, or a damaged one"),
        tarfile.open(fileobj=_Chunks(plain), mode="r:") as opened,
    ):
        for info in opened:
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise DataError(f"{info.name!r} is no plain file; links are not unpacked")
            content = opened.extractfile(info)
            assert content is not None
            yield Entry(info.name, content)
