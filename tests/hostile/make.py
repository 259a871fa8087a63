"""Write the hostile files of this folder: python tests/hostile/make.py

Each is named after what it tries. They are kept in git, so that they stay the same whatever the
libraries that wrote them do later.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
DATE = (2020, 1, 1, 0, 0, 0)


def png(size=(4, 4)):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def png_claiming(width, height):
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated():
    out = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


def decoded_is_large():
    out = io.BytesIO()
    Image.new("1", (6000, 6000)).save(out, "PNG", optimize=True)
    return out.getvalue()


def zipped(name, *entries, method=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(HERE / name, "w", method) as file:
            for where, content, mode in entries:
                info = zipfile.ZipInfo(where, DATE)
                info.external_attr = mode << 16
                info.compress_type = method
                file.writestr(info, content)


def plain(where, content=None):
    return where, png() if content is None else content, 0o100644


def tarred(name, *entries):
    with tarfile.open(HERE / name, "w", format=tarfile.GNU_FORMAT) as file:
        for where, content, kind, target in entries:
            info = tarfile.TarInfo(where)
            info.type, info.linkname, info.size = kind, target, len(content)
            file.addfile(info, io.BytesIO(content))


GOOD = [plain("a/1.png"), plain("b/1.png")]

zipped("escape.zip", *GOOD, plain("a/../../../escaped.png"))
zipped("absolute.zip", *GOOD, plain("/tmp/escaped.png"))
zipped("backslash.zip", *GOOD, plain("a\\..\\escaped.png"))
zipped("drive.zip", *GOOD, plain("C:/escaped.png"))
zipped("hidden.zip", *GOOD, plain("a/.bashrc.png"))
zipped("line-break.zip", *GOOD, plain("a/x\ny.png"))
zipped("link.zip", *GOOD, ("a/2.png", "/etc/passwd", 0o120777))
zipped("script.zip", *GOOD, plain("a/run.py", b"print(1)"))
zipped("text-as-image.zip", *GOOD, plain("a/2.png", b"this is text"))
zipped("zip-in-zip.zip", *GOOD, plain("a/2.png", (HERE / "escape.zip").read_bytes()))
zipped("bomb.zip", *GOOD, plain("a/2.png", bytes(20_000_000)))
zipped("pixels.zip", *GOOD, plain("a/2.png", png_claiming(10_000, 10_000)))
zipped("decoded-is-large.zip", *GOOD, plain("a/2.png", decoded_is_large()), method=0)
zipped("cut-image.zip", *GOOD, plain("a/2.png", png((64, 64))[:-30]))
zipped("animated.zip", *GOOD, plain("a/2.png", animated()))
zipped("twice.zip", *GOOD, plain("a/1.png"))
zipped("twice-but-for-case.zip", *GOOD, plain("A/1.PNG"))
zipped("deep.zip", *GOOD, plain("/".join("abcdefgh") + "/1.png"))
zipped("too-flat.zip", *GOOD, plain("1.png"))
zipped("one-class.zip", plain("a/1.png"))
zipped("half-a-split.zip", plain("train/a/1.png"), plain("train/b/1.png"), plain("val/a/1.png"))
zipped("no-image.zip")
zipped("cut.zip", *GOOD)
whole = (HERE / "cut.zip").read_bytes()
(HERE / "cut.zip").write_bytes(whole[:-40])
listed = whole.index(b"PK\x01\x02")  # the first entry of the directory; its flags follow at 8
(HERE / "encrypted.zip").write_bytes(whole[: listed + 8] + b"\1" + whole[listed + 9 :])

tar = [(f"{c}/1.png", png(), tarfile.REGTYPE, "") for c in "ab"]
tarred("escape.tar", *tar, ("a/../../../escaped.png", png(), tarfile.REGTYPE, ""))
tarred("link.tar", *tar, ("a/2.png", b"", tarfile.SYMTYPE, "/etc/passwd"))
tarred("hard-link.tar", *tar, ("a/2.png", b"", tarfile.LNKTYPE, "/etc/passwd"))
tarred("device.tar", *tar, ("a/2.png", b"", tarfile.CHRTYPE, ""))
tarred("fifo.tar", *tar, ("a/2.png", b"", tarfile.FIFOTYPE, ""))
tarred("link-then-file.tar", ("a", b"", tarfile.SYMTYPE, "/tmp"), *tar)
info = tarfile.TarInfo("./PaxHeaders/1")
info.type, info.size = tarfile.XHDTYPE, 8 << 30
(HERE / "header-of-gigabytes.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
(HERE / "bomb.tar.gz").write_bytes(gzip.compress(bytes(20_000_000), mtime=0))
tarred("cut.tar.gz", *tar)
(HERE / "cut.tar.gz").write_bytes(gzip.compress((HERE / "cut.tar.gz").read_bytes(), mtime=0)[:-20])
(HERE / "rubbish.zip").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
(HERE / "nothing.tar").write_bytes(b"")


class Opens:
    def __reduce__(self):
        return open, ("escaped-by-pickle", "w")


def safetensors(head, content=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + content


tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
weights = {
    "pickle": pickle.dumps(Opens()),
    "header-of-exabytes": struct.pack("<Q", 2**62) + b"{}",
    "header-is-rubbish": safetensors(b"\xff" * 50),
    "beyond-the-end": safetensors({"w": tensor}, bytes(4)),
    "overlapping": safetensors({"w": tensor, "v": tensor}, bytes(8)),
    "shape-overflows": safetensors({"w": {**tensor, "shape": [2**40, 2**40]}}, bytes(8)),
    "unknown-dtype": safetensors({"w": {**tensor, "dtype": "OBJECT"}}, bytes(8)),
    "no-tensor": safetensors({}),
    "nothing": b"",
}
for name, content in weights.items():
    (HERE / f"{name}.safetensors").write_bytes(content)
