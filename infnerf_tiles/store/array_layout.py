"""Zarr arrays as this package lays them out, with every field of their metadata checked."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.store.chunk_codec import ChunkError, decode_chunk
from infnerf_tiles.store.documents import asked_again, document_key, read_document
from infnerf_tiles.store.guarded import GuardedStore


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """One array: path in the store, numpy dtype name, shape, chunk shape, zstd + crc32c or crc32c alone.

    shard: chunks along the first axis that share one object (Zarr's sharding, index at the end); 1 for none.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    compressed: bool = True
    shard: int = 1

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of one chunk."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def most_stored_bytes(self) -> int:
        """More than a stored chunk can take; nothing larger is read."""
        return self.chunk_bytes + self.chunk_bytes // 64 + 1024

    def with_rows(self, rows: int) -> "ArrayLayout":
        """The same layout with another length of its first axis."""
        return replace(self, shape=(rows, *self.shape[1:]))

    def document(self) -> dict[str, Any]:
        """The array's Zarr v3 metadata."""
        kind = np.dtype(self.dtype).kind
        codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if np.dtype(self.dtype).itemsize == 1:
            codecs = [{"name": "bytes"}]
        if self.compressed:
            codecs.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
        codecs.append({"name": "crc32c"})
        grid = list(self.chunk)
        if self.shard > 1:
            grid[0] *= self.shard
            codecs = [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": list(self.chunk),
                        "codecs": codecs,
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                        "index_location": "end",
                    },
                }
            ]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": False if kind == "b" else 0.0 if kind == "f" else 0,
            "codecs": codecs,
            "attributes": {},
        }

    def chunk_key(self, *position: int) -> str:
        """Key of the object at a position of the chunk grid (of shards, where there are any)."""
        return f"{self.path}/c." + ".".join(map(str, position))


def create_array(store: GuardedStore, layout: ArrayLayout) -> "zarr.Array[Any]":
    """Write the array's metadata; its chunks come later, one by one."""
    store.write_bytes(document_key(layout.path), json.dumps(layout.document(), indent=1).encode())
    return writable_array(store, layout)


def writable_array(store: GuardedStore, layout: ArrayLayout) -> "zarr.Array[Any]":
    """The Zarr array that `layout` describes, to write whole chunks."""
    # A row of zeros must be stored like any other, because a missing chunk means a missing row.
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.Array.from_dict(StorePath(store, layout.path), layout.document())


def check_array(store: GuardedStore, layout: ArrayLayout, *, may_grow: bool = False) -> ArrayLayout:
    """Compare an array's metadata with what it must be; with `may_grow` its first axis may be longer.

    Returns the layout with the length that it has. DamagedStoreError if the metadata is missing, cannot be parsed or
    differs.
    """
    return asked_again(store, lambda: _check_array(store, layout, may_grow))


def _check_array(store: GuardedStore, layout: ArrayLayout, may_grow: bool) -> ArrayLayout:
    document = read_document(store, layout.path)
    if document is None:
        raise DamagedStoreError(f"scene {store.name}: {document_key(layout.path)} is missing; run 'verify --repair'")
    rows = _first_length(document)
    if may_grow and rows is not None and rows > layout.shape[0]:
        layout = layout.with_rows(rows)
    expected = layout.document()
    for field in expected.keys() - {"attributes"}:
        if document.get(field) != expected[field] or type(document.get(field)) is not type(expected[field]):
            raise DamagedStoreError(
                f"scene {store.name}: {document_key(layout.path)}: expected {field} {expected[field]}, got "
                f"{document.get(field)}; run 'verify --repair'"
            )
    return layout


def read_chunk(store: GuardedStore, layout: ArrayLayout, *position: int) -> AnyArray:
    """One whole chunk as a new array; ChunkError if it is missing or damaged.

    Zarr's own read would return zeros for a missing chunk and allocate whatever a compressed one claims to hold; it
    also takes 0.5 to 1 ms longer, many times what a small row needs.
    """
    key = layout.chunk_key(*position)

    def read() -> AnyArray:
        data = store.read_bytes(key, layout.most_stored_bytes)
        if data is None:
            raise ChunkError(f"{key} is missing")
        return decode_chunk(key, data, layout.dtype, layout.chunk, compressed=layout.compressed)

    return asked_again(store, read)


def read_column(store: GuardedStore, layout: ArrayLayout) -> AnyArray:
    """A whole one-chunk array; DamagedStoreError if it is missing or damaged."""
    check_array(store, layout)
    if math.prod(layout.shape) == 0:
        return np.zeros(layout.shape, dtype=layout.dtype)
    try:
        return read_chunk(store, layout, *(0 for _ in layout.shape))
    except ChunkError as error:
        raise DamagedStoreError(
            f"scene {store.name}: {layout.path} is damaged ({error}); run 'verify --repair'"
        ) from error


def write_column(store: GuardedStore, layout: ArrayLayout, values: AnyArray) -> None:
    """Create an array of one chunk and fill it."""
    array = create_array(store, layout)
    if values.size:
        array[...] = values


def _first_length(document: dict[str, Any]) -> int | None:
    shape = document.get("shape")
    first = shape[0] if isinstance(shape, list) and shape else None
    return first if isinstance(first, int) and not isinstance(first, bool) else None
