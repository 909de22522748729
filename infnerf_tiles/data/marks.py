"""Marks of photo files, by which a photo that was changed in place is found out: bytes, time and digest of each.

The digest is BLAKE2b of the whole file: parts of it would miss an edit of a file that is stored uncompressed. It is
taken once when a scene is built, again where the time of a file differs, and whenever a photo is decoded for training,
when its bytes are in memory anyway.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Int64, UInt8, check_shape
from infnerf_tiles.errors import PhotoError

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoMarks:
    """Of n photo files. num_bytes: int64[n], -1 for one that cannot be read. mtime_ns: int64[n], time of the last
    change in nanoseconds. digest: uint8[n, 16], zeros for one that cannot be read."""

    num_bytes: Int64
    mtime_ns: Int64
    digest: UInt8

    def __post_init__(self) -> None:
        check_shape("mtime_ns", self.mtime_ns, (len(self.num_bytes),))
        check_shape("digest", self.digest, (len(self.num_bytes), DIGEST_BYTES))


def file_digest(path: Path) -> bytes:
    """The digest of one file; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()


def read_marks(paths: Sequence[Path], known: PhotoMarks | None = None) -> PhotoMarks:
    """The marks of these files. known: earlier marks of the same files, whose digest is kept where bytes and time are
    the same still."""

    def read(row: int) -> tuple[int, int, bytes]:
        try:
            # before the bytes, so that a change meanwhile shows in the time
            found = paths[row].stat()
            size, time = found.st_size, found.st_mtime_ns
            if known is not None and (size, time) == (int(known.num_bytes[row]), int(known.mtime_ns[row])):
                return size, time, known.digest[row].tobytes()
            return size, time, file_digest(paths[row])
        except OSError:
            return -1, 0, bytes(DIGEST_BYTES)

    # latency of the disk or network, not the processor, is what takes time here
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(read, range(len(paths)), chunksize=64))
    digests = b"".join(digest for _, _, digest in found)
    return PhotoMarks(
        num_bytes=np.array([size for size, _, _ in found], np.int64),
        mtime_ns=np.array([time for _, time, _ in found], np.int64),
        digest=np.frombuffer(digests, np.uint8).reshape(len(found), DIGEST_BYTES),
    )


def check_digest(path: Path, digest: bytes) -> None:
    """PhotoError unless the file still has this digest."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise PhotoError(f"{path}: expected a readable photo, got: {error.strerror or error}") from error
    if found != digest:
        raise PhotoError(
            f"{path}: expected the photo as it was when the scene was built, got other contents; put it back, or go on "
            "with 'train --accept-changes'"
        )
