"""Decoding one chunk in Zarr v3's encoding: bytes, zstd (or not), crc32c. Nothing is allocated before it is checked."""

import math
from typing import cast

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

from infnerf_tiles.arrays import AnyArray

_ZSTD = Zstd(level=1)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHECKSUM_BYTES = 4


class ChunkError(Exception):
    """Bytes are missing, too many, or not what was written. Callers turn it into what it means for them."""


def decode_chunk(key: str, data: bytes, dtype: str, shape: tuple[int, ...], *, compressed: bool) -> AnyArray:
    """The array that one object holds, new and writable.

    `key` names the object in messages; `dtype`, `shape`: what it must decode to. ChunkError if the checksum or the size
    does not agree.
    """
    expected = np.dtype(dtype).newbyteorder("<")
    nbytes = math.prod(shape) * expected.itemsize
    if len(data) <= _CHECKSUM_BYTES:
        raise ChunkError(f"{key} is empty")
    body = np.frombuffer(data, dtype=np.uint8)[:-_CHECKSUM_BYTES]
    # google_crc32c says bytes, but takes a read-only array too, which spares a copy
    if google_crc32c.value(cast(bytes, body)) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise ChunkError(f"{key} does not match its checksum")
    declared = zstd_content_size(data[:18]) if compressed else len(body)
    if declared != nbytes:
        raise ChunkError(f"{key} decodes to {declared} bytes, expected {nbytes}")
    array = np.empty(shape, dtype=expected)
    raw = array.reshape(-1).view(np.uint8)
    if not compressed:
        raw[:] = body
        return array.astype(dtype, copy=False)
    try:
        _ZSTD.decode(body, raw)
    except RuntimeError as error:
        raise ChunkError(f"{key} cannot be unpacked: {error}") from error
    return array.astype(dtype, copy=False)


def zstd_content_size(head: bytes) -> int | None:
    """Decoded size that a zstd frame declares in its first 18 bytes; None if it declares none or is no frame."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if length == 0 or len(head) < start + length:
        return None
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)
