"""Bundles: a few named arrays and some facts that are replaced together or not at all.

The arrays lie one after the other in one uint8 Zarr array `PATH/VERSION`, checksummed chunk by chunk. `PATH/zarr.json`
names the current version and says where each tensor lies; it is written last. So a bundle is either the old one or the
new one, and what a killed writer left behind is never read.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray, UInt8
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.store.array_layout import ArrayLayout, check_array, create_array, read_chunk
from infnerf_tiles.store.chunk_codec import ChunkError
from infnerf_tiles.store.documents import document_key, group_document, read_group
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.schema import RowSchema, TensorSpec, pack_tensors

CHUNK_BYTES = 1 << 24
MAX_BUNDLE_BYTES = 1 << 40
_MAX_TENSORS = 1 << 16
_DTYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """arrays: by name, as they were written. meta: JSON values."""

    arrays: dict[str, AnyArray]
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Head:
    version: int
    schema: RowSchema
    layout: ArrayLayout
    meta: dict[str, Any]


def write_bundle(
    store: GuardedStore,
    path: str,
    arrays: Mapping[str, AnyArray],
    meta: Mapping[str, Any],
    *,
    compressed: bool = True,
) -> None:
    """Replace the bundle at `path`; the former one stays readable until the new one is complete and synced.

    `arrays`: bool, integer and floating-point arrays of any shape. ValueError for another dtype. StorageFullError if
    the disk is full, with the former bundle intact.
    """
    packed = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    for name, array in packed.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"{path}: array {name!r}: expected a plain numeric dtype, got {array.dtype}")
    schema = pack_tensors([(name, array.dtype.name, array.shape) for name, array in packed.items()])
    versions = _versions(store, path)
    version = max(versions, default=0) + 1
    layout = _layout(path, version, schema, compressed)
    data = create_array(store, layout)
    for start in range(0, schema.row_bytes, layout.chunk[0]):
        block = np.zeros(min(layout.chunk[0], schema.row_bytes - start), dtype=np.uint8)
        for spec, inside, outside in _overlaps(schema, start, start + len(block)):
            block[inside] = _as_bytes(packed[spec.name])[outside]
        data[start : start + len(block)] = block
    head = {
        "version": version,
        "compressed": compressed,
        "tensors": [spec.to_json() for spec in schema.tensors],
        "meta": dict(meta),
    }
    store.replace_durably(document_key(path), group_document(head))
    for old in versions:
        store.remove_folder(f"{path}/{old}")


def read_bundle(store: GuardedStore, path: str) -> Bundle | None:
    """The bundle at `path`, None if none was ever completed there; DamagedStoreError if it is damaged."""
    head = _read_head(store, path)
    while head is not None:
        try:
            return Bundle(arrays=_read_tensors(store, head), meta=head.meta)
        except (ChunkError, DamagedStoreError) as error:
            now = _read_head(store, path)
            if now is None or now.version == head.version:
                raise DamagedStoreError(f"scene {store.name}: {path} is damaged ({error})") from error
            head = now  # replaced while it was being read
    return None


def open_bundle(store: GuardedStore, path: str) -> "StoredBundle | None":
    """The bundle at `path` to be read array by array, every chunk's checksum looked at first; None if none was ever
    completed there. DamagedStoreError if it is damaged. For bundles that nobody replaces meanwhile."""
    head = _read_head(store, path)
    if head is None:
        return None
    try:
        check_array(store, head.layout)
        for position in range(-(-head.schema.row_bytes // head.layout.chunk[0])):
            read_chunk(store, head.layout, position)
    except (ChunkError, DamagedStoreError) as error:
        raise DamagedStoreError(f"scene {store.name}: {path} is damaged ({error})") from error
    return StoredBundle(arrays=StoredArrays(store, head), meta=head.meta)


class StoredArrays(Mapping[str, AnyArray]):
    """Arrays that stay on the disk until they are asked for."""

    def __init__(self, store: GuardedStore, head: _Head) -> None:
        self._store, self._head = store, head
        self._specs = {spec.name: spec for spec in head.schema.tensors}

    def __getitem__(self, name: str) -> AnyArray:
        spec = self._specs[name]
        out: AnyArray = np.empty(spec.shape, spec.dtype)
        self.read_into(name, out)
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def read_into(self, name: str, out: AnyArray) -> None:
        """Fill a contiguous array. ValueError if its shape or dtype is another; DamagedStoreError."""
        spec, layout, rows = self._specs[name], self._head.layout, self._head.schema.row_bytes
        if (out.shape, out.dtype.name) != (spec.shape, spec.dtype) or not out.flags.c_contiguous:
            raise ValueError(f"{layout.path}, {name}: expected {spec.dtype} {spec.shape}, got {out.dtype} {out.shape}")
        width = layout.chunk[0]
        for position in range(spec.offset // width, -(-(spec.offset + spec.nbytes) // width)):
            try:
                block: UInt8 = read_chunk(self._store, layout, position)
            except ChunkError as error:
                raise DamagedStoreError(f"scene {self._store.name}: {layout.path} is damaged ({error})") from error
            stop = min(rows, (position + 1) * width)
            for other, inside, outside in _overlaps(self._head.schema, position * width, stop):
                if other.name == name:
                    _as_bytes(out)[outside] = block[inside]


@dataclass(frozen=True, kw_only=True)
class StoredBundle:
    """arrays: read when they are asked for. meta: JSON values."""

    arrays: StoredArrays
    meta: dict[str, Any]


def read_bundle_meta(store: GuardedStore, path: str) -> dict[str, Any] | None:
    """The facts of the bundle at `path` alone, None if none was ever completed there; DamagedStoreError."""
    head = _read_head(store, path)
    return None if head is None else head.meta


def drop_bundle(store: GuardedStore, path: str) -> None:
    """Remove the bundle at `path`, if there is one."""
    store.remove(document_key(path))  # first, so that no half-removed bundle can be read
    store.remove_folder(path)


def current_keys(store: GuardedStore, path: str) -> list[str]:
    """Keys of the current version of a bundle, its document included; none if it was never completed."""
    head = _read_head(store, path)
    if head is None:
        return []
    chunks = range(-(-head.schema.row_bytes // head.layout.chunk[0]))
    return [document_key(path), document_key(head.layout.path), *(head.layout.chunk_key(chunk) for chunk in chunks)]


def stale_versions(store: GuardedStore, path: str) -> list[str]:
    """Paths of the versions of a bundle that are not current: what killed writers left behind."""
    head = _read_head(store, path)
    current = None if head is None else head.version
    return [f"{path}/{version}" for version in _versions(store, path) if version != current]


def _versions(store: GuardedStore, path: str) -> list[int]:
    return [int(name) for name in store.names(path) if name.isascii() and name.isdigit()]


def _layout(path: str, version: int, schema: RowSchema, compressed: bool) -> ArrayLayout:
    chunk = min(max(schema.row_bytes, 1), CHUNK_BYTES)
    return ArrayLayout(
        path=f"{path}/{version}", dtype="uint8", shape=(schema.row_bytes,), chunk=(chunk,), compressed=compressed
    )


def _read_head(store: GuardedStore, path: str) -> _Head | None:
    attributes = read_group(store, path)
    if attributes is None:
        return None
    try:
        tensors = tuple(_tensor(entry) for entry in attributes["tensors"][:_MAX_TENSORS])
        schema = RowSchema(dtype="uint8", tensors=tensors)
        if schema.row_bytes > MAX_BUNDLE_BYTES:
            raise ValueError(f"{schema.row_bytes} bytes, more than the {MAX_BUNDLE_BYTES} that are ever stored")
        version = int(attributes["version"])
        return _Head(
            version=version,
            schema=schema,
            layout=_layout(path, version, schema, bool(attributes["compressed"])),
            meta=dict(attributes["meta"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStoreError(f"scene {store.name}: {path} is damaged ({error!r})") from error


def _tensor(entry: Mapping[str, Any]) -> TensorSpec:
    spec = TensorSpec(
        name=str(entry["name"]),
        dtype=str(entry["dtype"]),
        shape=tuple(int(length) for length in entry["shape"]),
        offset=int(entry["offset"]),
    )
    if spec.dtype not in _DTYPES or len(spec.shape) > 8 or min((*spec.shape, spec.offset)) < 0:
        raise ValueError(f"tensor {spec}")
    return spec


def _read_tensors(store: GuardedStore, head: _Head) -> dict[str, AnyArray]:
    check_array(store, head.layout)
    arrays: dict[str, AnyArray] = {}
    for position, start in enumerate(range(0, head.schema.row_bytes, head.layout.chunk[0])):
        stop = min(start + head.layout.chunk[0], head.schema.row_bytes)
        block: UInt8 = read_chunk(store, head.layout, position)
        for spec, inside, outside in _overlaps(head.schema, start, stop):
            if spec.name not in arrays:  # nothing is allocated before its first bytes have proved to be there
                arrays[spec.name] = np.empty(spec.shape, dtype=spec.dtype)
            _as_bytes(arrays[spec.name])[outside] = block[inside]
    return {spec.name: arrays.get(spec.name, np.empty(spec.shape, spec.dtype)) for spec in head.schema.tensors}


def _overlaps(schema: RowSchema, start: int, stop: int) -> Iterator[tuple[TensorSpec, slice, slice]]:
    """For each tensor with bytes in [start, stop): where they lie in that block, and where in the tensor."""
    for spec in schema.tensors:
        low, high = max(start, spec.offset), min(stop, spec.offset + spec.nbytes)
        if low < high:
            yield spec, slice(low - start, high - start), slice(low - spec.offset, high - spec.offset)


def _as_bytes(array: AnyArray) -> UInt8:
    """The bytes of a contiguous array, as a view."""
    return array.reshape(math.prod(array.shape)).view(np.uint8)
