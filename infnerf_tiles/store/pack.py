"""Packing: one read-only file with everything that is needed to render a scene, and nothing else."""

import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from infnerf_tiles.errors import DamagedStoreError, StoreError
from infnerf_tiles.store.bundle import current_keys
from infnerf_tiles.store.documents import DOCUMENT, document_key, group_document, plain_group_document
from infnerf_tiles.store.index import NO_SLOT, SceneIndex, generation_path
from infnerf_tiles.store.root import CONTAINERS, SMALL_GROUPS
from infnerf_tiles.store.row_arrays import ROW_KINDS
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import MAX_OBJECT_BYTES


def pack(store: SceneStore, target: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write the current generation to the zip archive `target`, which `SceneStore.open` reads; returns its bytes.

    Without old rows and generations, journal and training state. Every row is checked on its way. `progress` is called
    with (rows done, rows in all). DamagedNodeError or DamagedStoreError if something is damaged, StoreError if `target`
    exists; then nothing is left behind.
    """
    if target.exists():
        raise StoreError(f"pack: expected a new file, {target} exists; delete it or choose another name")
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
            for key in _keys(store):
                archive.writestr(key, _read(store, key))
            _pack_rows(store, index, archive, progress)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def _pack_rows(
    store: SceneStore, index: SceneIndex, archive: zipfile.ZipFile, progress: Callable[[int, int], None] | None
) -> None:
    rows = [
        (kind, slot)
        for kind in ROW_KINDS
        for slot in sorted((index.base_slots if kind == "base" else index.slots).tolist())
        if slot != NO_SLOT
    ]
    for done, (kind, slot) in enumerate(rows, 1):
        store.rows.read(kind, slot)
        archive.writestr(store.row_key(kind, slot), _read(store, store.row_key(kind, slot)))
        if progress is not None:
            progress(done, len(rows))


def _keys(store: SceneStore) -> Iterator[str]:
    """Keys of everything but rows, containers and the root document."""
    yield from (document_key(kind) for kind in ROW_KINDS)
    yield from store.data.keys(generation_path(store.generation))
    for group in SMALL_GROUPS:
        if store.has_small(group):
            store.read_group(group)  # refuses a damaged one
            yield from current_keys(store.data, group)


def _read(store: SceneStore, key: str) -> bytes:
    data = store.data.read_bytes(key, MAX_OBJECT_BYTES)
    if data is None:
        raise DamagedStoreError(f"scene {store.name}: {key} is missing; run 'verify --repair'")
    return data
