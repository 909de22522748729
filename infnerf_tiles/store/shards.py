"""Shards: objects that hold many rows, read by byte ranges. Written once, by `pack`; Zarr's `sharding_indexed` codec.

The rows stand one after the other as they would in objects of their own, and behind them an index: (offset, length) of
each as little-endian uint64, all ones for a missing row, and its crc32c.
"""

import threading
from collections.abc import Sequence

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.store.array_layout import ArrayLayout
from infnerf_tiles.store.chunk_codec import ChunkError, decode_chunk
from infnerf_tiles.store.documents import asked_again
from infnerf_tiles.store.guarded import GuardedStore

_MISSING = 2**64 - 1
_CHECKSUM_BYTES = 4
_ENTRY_BYTES = 16


def shard_bytes(rows: Sequence[bytes | None], shard: int) -> bytes:
    """The object that holds up to `shard` encoded rows; None for a row that is not there."""
    entries = np.full((shard, 2), _MISSING, "<u8")
    offset = 0
    for at, row in enumerate(rows):
        if row is not None:
            entries[at] = offset, len(row)
            offset += len(row)
    index = entries.tobytes()
    body = b"".join(row for row in rows if row is not None)
    checksum: int = google_crc32c.value(index)
    return body + index + checksum.to_bytes(_CHECKSUM_BYTES, "little")


class ShardReader:
    """Reads single rows of one array's shards; remembers their indices. Any number of threads may share it."""

    def __init__(self, store: GuardedStore) -> None:
        self._store = store
        self._indices: dict[int, NDArray[np.uint64]] = {}
        self._lock = threading.Lock()

    def read(self, layout: ArrayLayout, slot: int) -> AnyArray:
        """One row, new and writable; ChunkError if it is missing or damaged."""
        shard, at = divmod(slot, layout.shard)
        key = layout.chunk_key(shard, *(0 for _ in layout.shape[1:]))
        name = f"row {at} of {key}"
        offset, length = (int(value) for value in self._index(layout, shard, key)[at])
        if (offset, length) == (_MISSING, _MISSING):
            raise ChunkError(f"{name} is missing")
        if length > layout.most_stored_bytes:
            raise ChunkError(f"{name} claims {length} bytes, more than the {layout.most_stored_bytes} that it may")

        def read() -> AnyArray:
            data = self._store.read_range(key, offset, length)
            if data is None:
                raise ChunkError(f"{key} is missing")
            return decode_chunk(name, data, layout.dtype, layout.chunk, compressed=layout.compressed)

        return asked_again(self._store, read)

    def _index(self, layout: ArrayLayout, shard: int, key: str) -> NDArray[np.uint64]:
        with self._lock:
            known = self._indices.get(shard)
        if known is not None:
            return known
        index = asked_again(self._store, lambda: self._read_index(layout, key))
        with self._lock:
            self._indices[shard] = index
        return index

    def _read_index(self, layout: ArrayLayout, key: str) -> NDArray[np.uint64]:
        length = layout.shard * _ENTRY_BYTES
        data = self._store.read_range(key, None, length + _CHECKSUM_BYTES)
        if data is None:
            raise ChunkError(f"{key} is missing")
        checksum = int.from_bytes(data[length:], "little")
        if len(data) != length + _CHECKSUM_BYTES or google_crc32c.value(data[:length]) != checksum:
            raise ChunkError(f"the index of {key} does not match its checksum")
        return np.frombuffer(data[:length], "<u8").reshape(layout.shard, 2)
