"""Marks of photos and their masks, by which what was changed in place is found out: bytes, time and digest of each.

The digest is BLAKE2b of the whole file: parts of it would miss an edit of a file that is stored uncompressed. It is
taken once when a scene is built, again where the time of a file differs, and whenever a photo is decoded for training,
when its bytes are in memory anyway. Photo and mask have one mark together: either says what is learned.
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
    """Of n photos with their masks. num_bytes: int64[n], of both files, -1 if one cannot be read. mtime_ns: int64[n],
    time of the last change in nanoseconds, with a mask the sum of both. digest: uint8[n, 16], zeros if one cannot be
    read."""

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


def photo_digest(path: Path, mask: Path | None) -> bytes:
    """The digest of a photo with its mask; OSError if a file cannot be read."""
    own = file_digest(path)
    return own if mask is None else hashlib.blake2b(own + file_digest(mask), digest_size=DIGEST_BYTES).digest()


def read_marks(
    paths: Sequence[Path], masks: Sequence[Path | None], known: PhotoMarks | None = None
) -> PhotoMarks:
    """The marks of these photos and their masks, None for no mask. known: earlier marks of the same photos, whose
    digest is kept where bytes and time are the same still."""

    def read(row: int) -> tuple[int, int, bytes]:
        path, mask = paths[row], masks[row]
        try:
            # before the bytes, so that a change meanwhile shows in the time
            found = [file.stat() for file in (path, mask) if file is not None]
            size, time = sum(s.st_size for s in found), sum(s.st_mtime_ns for s in found)
            if known is not None and (size, time) == (int(known.num_bytes[row]), int(known.mtime_ns[row])):
                return size, time, known.digest[row].tobytes()
            return size, time, photo_digest(path, mask)
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


def check_digest(path: Path, mask: Path | None, digest: bytes) -> None:
    """PhotoError unless the photo and its mask still have this digest."""
    try:
        found = photo_digest(path, mask)
    except OSError as error:
        file = error.filename or path
        raise PhotoError(f"{file}: expected a readable photo or mask, got: {error.strerror or error}") from error
    if found != digest:
        what = "the photo as it was" if mask is None else f"the photo and its mask {mask} as they were"
        raise PhotoError(
            f"{path}: expected {what} when the scene was built, got other contents; put back what was there, or go on "
            "with 'train --accept-changes'"
        )
