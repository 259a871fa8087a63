"""How much one request, image, archive or user may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """For all users alike.

    Attributes:
        body_bytes: Of a request that is no upload.
        upload_bytes: Of an upload.
        stored_bytes: Of all uploads of one user.
        unpacked_bytes: Of an archive, unpacked.
        files: In an archive.
        file_bytes: Of one image.
        pixels: Of one image.
        ratio: Unpacked bytes to packed ones, and decoded pixels to bytes of a large image.
        unpack_s: CPU seconds to unpack and decode an archive.
        waiting: Runs of one user that are not over.
        episodes: Of one run.
        readers: Of events, at once.
        requests: At once; and a tenth of it a second after that.
        failures: Of a wrong token from one address, at once; and a tenth of it a second.
    """

    body_bytes: int = 1 << 20
    upload_bytes: int = 2 << 30
    stored_bytes: int = 20 << 30
    unpacked_bytes: int = 8 << 30
    files: int = 200_000
    file_bytes: int = 50 << 20
    pixels: int = 40_000_000
    ratio: float = 200.0
    unpack_s: int = 1800
    waiting: int = 1000
    episodes: int = 100_000
    readers: int = 1000
    requests: int = 500
    failures: int = 20
