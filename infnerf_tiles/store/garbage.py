"""Garbage collection: free the rows that nothing names any more, and what interrupted writers left behind."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.bundle import stale_versions
from infnerf_tiles.store.index import NO_SLOT, TreeletState
from infnerf_tiles.store.journal import read_all, record_names, treelet_folder
from infnerf_tiles.store.location import sweep_partial_files
from infnerf_tiles.store.root import SMALL_GROUPS
from infnerf_tiles.store.row_arrays import ROW_KINDS, RowKind
from infnerf_tiles.store.scene_store import SceneStore

_PIXELS = "pixels"


class Collected(NamedTuple):
    """num_slots: node and base slots freed. num_bytes: bytes freed in all, leftovers included."""

    num_slots: int
    num_bytes: int


def collect_garbage(store: SceneStore) -> Collected:
    """Delete rows that neither the current index nor a journal record names, and leftovers of interrupted writers:
    pixels too, which every training makes anew.

    The spare index is first brought up to date, so that falling back to it loses nothing. A reader that still uses an
    older generation gets DamagedNodeError for rows that went, never another node's row: slot numbers are not used
    again. StoreError while another process writes to the scene; this process must not have rows in flight either.
    """
    with store.exclusive():
        index = store.read_index()
        if not _spare_is_current(store):
            store.commit(index)
        nodes = {int(slot) for slot in index.slots if slot != NO_SLOT}
        bases = {int(slot) for slot in index.base_slots if slot != NO_SLOT}
        treelets = {
            str(NodeId.from_key(int(key))): int(state)
            for key, state in zip(index.root_keys, index.treelet_states, strict=True)
        }
        for record in read_all(store):  # a complete record that is not committed yet is somebody's finished work
            if record.treelet in treelets and record.status == TreeletState.TRAINED:
                nodes.update(record.slots.tolist())
                bases.add(record.base_slot)
        freed: set[tuple[bool, int]] = set()
        num_bytes = 0
        for kind in ROW_KINDS:
            for slot, key in _rows(store, kind):
                if slot not in (bases if kind == "base" else nodes):
                    num_bytes += store.data.size(key)
                    store.data.remove(key)
                    freed.add((kind == "base", slot))
        trained = {treelet for treelet, state in treelets.items() if state == TreeletState.TRAINED}
        folders = [_PIXELS, *_leftovers(store, treelets.keys() - trained)]
        num_bytes += sum(_remove_folder(store, folder) for folder in folders)
        sweep_partial_files(store.data)
        return Collected(len(freed), num_bytes)


def _spare_is_current(store: SceneStore) -> bool:
    try:
        spare = store.read_generation(store.root.previous_generation)
    except DamagedStoreError:
        return False
    return spare.same_as(store.read_index())


def _rows(store: SceneStore, kind: RowKind) -> Iterable[tuple[int, str]]:
    """(slot, key) of every stored row."""
    for name in store.data.names(kind):
        slot = name.split(".")[1] if name.startswith("c.") else ""
        if slot.isascii() and slot.isdigit() and store.row_key(kind, int(slot)) == f"{kind}/{name}":
            yield int(slot), f"{kind}/{name}"


def _leftovers(store: SceneStore, untrained: AbstractSet[str]) -> Iterable[str]:
    """Folders that nothing needs: outdated bundle versions, and the training state of all but untrained treelets."""
    bundles = [group for group in SMALL_GROUPS if store.data.names(group)]
    bundles += [treelet_folder("journal", treelet) for treelet in record_names(store)]
    for path in bundles:
        try:
            yield from stale_versions(store.data, path)
        except DamagedStoreError:  # for `repair` to judge
            continue
    for name in store.data.names("scratch"):
        if name.startswith("L") and name.replace("-", "/", 1) not in untrained:
            yield f"scratch/{name}"


def _remove_folder(store: SceneStore, folder: str) -> int:
    num_bytes = sum(store.data.size(key) for key in store.data.keys(folder))
    store.data.remove_folder(folder)
    return num_bytes
