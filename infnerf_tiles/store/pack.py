"""Packing: a read-only copy with everything that is needed to render a scene, and nothing else.

Two forms. A zip archive is one file, to send and to keep. A folder of shards, many rows in each, is for web servers and
object stores that answer byte ranges: a few files instead of two a node.
"""

import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray, Int32
from infnerf_tiles.errors import DamagedStoreError, StoreError
from infnerf_tiles.outputs import check_file
from infnerf_tiles.store.bundle import current_keys
from infnerf_tiles.store.documents import DOCUMENT, document_key, group_document, plain_group_document
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex, generation_keys, write_generation
from infnerf_tiles.store.location import open_location
from infnerf_tiles.store.root import CONTAINERS, SMALL_GROUPS, RootState
from infnerf_tiles.store.row_arrays import ROW_KINDS, RowArrays, RowKind
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import MAX_OBJECT_BYTES, MAX_SHARD_ROWS
from infnerf_tiles.store.shards import shard_bytes

ROWS_PER_SHARD = 32
Progress = Callable[[int, int], None]
"""(rows done, rows in all)"""


def pack(store: SceneStore, target: Path, progress: Progress | None = None) -> int:
    """Write the current generation to the zip archive `target`, which `SceneStore.open` reads; returns its bytes.

    Without old rows and generations, journal and training state. Every row is checked on its way. `progress` is called
    with (rows done, rows in all). DamagedNodeError or DamagedStoreError if something is damaged, StoreError if `target`
    exists, nothing is trained or the scene is a packed one of shards; then nothing is left behind.
    """
    _check_new(target)
    _check_trained(store)
    if store.header.shard_rows > 1:
        raise StoreError(f"pack: expected a scene of single rows, {store.name} is packed already; copy it as it is")
    index = store.read_index()
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        # The rows are compressed already.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            # No spare generation is packed, so none must be named.
            root = replace(store.root, previous_generation=0)
            archive.writestr(DOCUMENT, group_document(root.to_json()))
            for container in CONTAINERS:
                archive.writestr(document_key(container), plain_group_document())
            for key in (*map(document_key, ROW_KINDS), *generation_keys(store.generation, index), *_group_keys(store)):
                archive.writestr(key, _read(store, key))
            rows = [(kind, slot) for kind in ROW_KINDS for slot in sorted(_slots(index, kind)) if slot != NO_SLOT]
            for done, (kind, slot) in enumerate(rows, 1):
                archive.writestr(store.row_key(kind, slot), _checked_row(store, kind, slot))
                if progress is not None:
                    progress(done, len(rows))
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def pack_shards(
    store: SceneStore, target: Path, *, rows_per_shard: int = ROWS_PER_SHARD, progress: Progress | None = None
) -> int:
    """Write the trained part of the current generation to the new folder `target`, many rows a file; returns its bytes.

    Nodes that lie side by side on a level stand side by side. Everything else as in `pack`. Served over the web such a
    copy needs a server that answers range requests. SettingsError is left to the caller: ValueError unless
    2 <= rows_per_shard <= MAX_SHARD_ROWS and no shard can exceed MAX_OBJECT_BYTES.
    """
    _check_new(target)
    header = store.header
    largest = max(schema.row_bytes for schema in header.rows.values())
    if not 2 <= rows_per_shard <= min(MAX_SHARD_ROWS, MAX_OBJECT_BYTES // (largest + largest // 64 + 1024)):
        raise ValueError(
            f"rows per shard: expected 2 to {MAX_SHARD_ROWS}, and up to 1 GiB a file, got {rows_per_shard}"
        )
    _check_trained(store)
    if header.shard_rows > 1:
        raise StoreError(f"pack: expected a scene of single rows, {store.name} is packed already; copy it as it is")
    source = store.read_index()
    index = _renumbered(source)
    num_slots, num_bases = int(index.slots.max(initial=-1)) + 1, int(index.base_slots.max(initial=-1)) + 1
    header = replace(header, capacity=max(num_slots, 1), treelet_capacity=max(num_bases, 1), shard_rows=rows_per_shard)
    root = RootState(
        header=header, generation=1, previous_generation=0, next_slot=num_slots, next_treelet_slot=num_bases
    )
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        data = open_location(partial, "w")
        RowArrays(data, header).write_metadata(header)
        for container in CONTAINERS:
            data.write_bytes(document_key(container), plain_group_document())
        for key in _group_keys(store):
            data.write_bytes(key, _read(store, key))
        write_generation(data, 1, index, root.to_json())
        _write_shards(store, data, source, index, RowArrays(data, header), rows_per_shard, progress)
        data.replace_durably(DOCUMENT, group_document(root.to_json()))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _write_shards(
    store: SceneStore,
    data: GuardedStore,
    source: SceneIndex,
    index: SceneIndex,
    arrays: RowArrays,
    rows_per_shard: int,
    progress: Progress | None,
) -> None:
    total = 2 * int((index.slots != NO_SLOT).sum()) + int((index.base_slots != NO_SLOT).sum())
    done = 0
    for kind in ROW_KINDS:
        new = np.array(_slots(index, kind), dtype=np.int64)
        old = np.array(_slots(source, kind), dtype=np.int64)[new != NO_SLOT][np.argsort(new[new != NO_SLOT])]
        for first in range(0, len(old), rows_per_shard):
            slots = old[first : first + rows_per_shard].tolist()
            rows = [_checked_row(store, kind, slot) for slot in slots]
            data.write_bytes(arrays.chunk_key(kind, first), shard_bytes(rows, rows_per_shard))
            done += len(rows)
            if progress is not None:
                progress(done, total)


def _renumbered(index: SceneIndex) -> SceneIndex:
    """The index with slots handed out anew to what is trained, along the keys: a Morton curve per level."""
    trained = (index.states == NodeState.TRAINED) & (index.slots != NO_SLOT)
    based = index.base_slots != NO_SLOT
    order = np.argsort(index.root_keys[based], kind="stable")
    bases = np.empty(int(based.sum()), np.int32)
    bases[order] = np.arange(len(order), dtype=np.int32)
    return replace(index, slots=_numbered(trained), base_slots=_placed(based, bases))


def _numbered(mask: AnyArray) -> Int32:
    return _placed(mask, np.arange(int(mask.sum()), dtype=np.int32))


def _placed(mask: AnyArray, values: Int32) -> Int32:
    slots: Int32 = np.full(len(mask), NO_SLOT, np.int32)
    slots[mask] = values
    return slots


def _slots(index: SceneIndex, kind: RowKind) -> list[Any]:
    slots: list[Any] = (index.base_slots if kind == "base" else index.slots).tolist()
    return slots


def _check_new(target: Path) -> None:
    if (target / DOCUMENT).exists():
        raise StoreError(f"pack: expected a new place, got the scene {target}; choose another name")
    if target.exists():
        raise StoreError(f"pack: expected a new file, {target} exists; delete it or choose another name")
    check_file(target)


def _check_trained(store: SceneStore) -> None:
    if not (store.read_index().states == NodeState.TRAINED).any():
        raise StoreError(
            f"scene {store.name}: expected trained nodes, got none yet; run 'train' first: a packed scene cannot be "
            "trained"
        )


def _group_keys(store: SceneStore) -> Iterator[str]:
    for group in SMALL_GROUPS:
        if store.has_small(group):
            store.read_group(group)  # refuses a damaged one
            yield document_key(group)
            yield from (key for key in current_keys(store.data, group) if key != document_key(group))


def _checked_row(store: SceneStore, kind: RowKind, slot: int) -> bytes:
    store.rows.read(kind, slot)
    return _read(store, store.row_key(kind, slot))


def _read(store: SceneStore, key: str) -> bytes:
    data = store.data.read_bytes(key, MAX_OBJECT_BYTES)
    if data is None:
        raise DamagedStoreError(f"scene {store.name}: {key} is missing; run 'verify --repair'")
    return data
