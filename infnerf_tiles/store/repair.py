"""Repair: bring a damaged scene back to a state that can be used, and that `train` completes."""

import logging
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import DamagedStoreError, SceneNotFoundError, StoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.documents import DOCUMENT, document_key, group_document, plain_group_document, read_document
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import plan_warm, read_generation
from infnerf_tiles.store.journal import drop_record
from infnerf_tiles.store.location import Location, open_location
from infnerf_tiles.store.locking import lock_of
from infnerf_tiles.store.root import CONTAINERS, RootState
from infnerf_tiles.store.row_arrays import ROW_KINDS
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import VerifyReport, recovered_index

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair` did. generation: now current. planned_treelets: to be trained again by `train`.
    dropped_records: treelets whose journal record went. restored: metadata and indices written anew."""

    generation: int
    planned_treelets: tuple[str, ...]
    dropped_records: tuple[str, ...]
    restored: tuple[str, ...]


def repair(store: SceneStore, report: VerifyReport) -> RepairReport:
    """Mend what `verify` found.

    A treelet with a damaged node or base becomes planned again, with all its nodes, and loses its journal record; its
    rows that are whole stay for `train` to begin with, and the treelets below it are complete in themselves. A damaged
    index gives way to the previous generation and what the journal has since. A damaged record is dropped. Array
    metadata is written anew from the header.
    DamagedStoreError, after everything else is mended, for what cannot be: decoder, appearance, background and cameras
    have no second copy; or at once if no generation of the index can be read. StoreError while another process writes,
    and if one has committed since the report: hold `SceneStore.exclusive` over both.
    """
    with store.exclusive():
        store.refresh()
        if store.generation != report.generation:
            raise StoreError(
                f"scene {store.name}: expected generation {report.generation}, which was verified, but "
                f"{store.generation} has been committed since; verify it again"
            )
        metadata = report.names("metadata")
        store.rows.write_metadata(store.header, [kind for kind in ROW_KINDS if kind in metadata])
        for name in metadata:
            if name in CONTAINERS:
                store.data.write_bytes(document_key(name), plain_group_document())
        restored = list(metadata)
        if report.names("index"):
            index = recovered_index(store)
            restored.append(f"index/{store.root.previous_generation}")
        else:
            index = store.read_index()
        planned = report.damaged_treelets
        if planned:
            rows = np.flatnonzero(np.isin(index.root_keys, _keys(planned)))
            index = plan_warm(index, rows, _keys(report.damaged_nodes), _keys(report.names("base")))
        dropped = sorted({*planned, *report.names("journal")})
        for treelet in dropped:
            drop_record(store, treelet)
        if planned or report.names("index") or report.names("spare index"):
            store.commit(index)
        if report.names("index"):
            store.commit(index)  # once more: the damaged generation must not remain as the spare one
    _log.info("scene %s: %d treelets planned again, %d records dropped", store.name, len(planned), len(dropped))
    if groups := report.names("group"):
        raise DamagedStoreError(
            f"scene {store.name}: cannot repair {', '.join(groups)}: there is no second copy. "
            + " ".join(damage.reason for damage in report.damage if damage.kind == "group")
        )
    return RepairReport(
        generation=store.generation,
        planned_treelets=planned,
        dropped_records=tuple(dropped),
        restored=tuple(restored),
    )


def _keys(names: tuple[str, ...]) -> Int64:
    """int64[k] keys of nodes by their ids."""
    return np.array([NodeId.parse(name).key for name in names], np.int64)


def recover_root(location: Location) -> SceneStore:
    """Open a scene for writing whose root document is damaged or lost, restoring it from the newest index generation.

    DamagedStoreError if no generation holds a copy of it, SceneNotFoundError if this is no scene at all.
    """
    data = open_location(location, "r+")
    with lock_of(data.local_root).hold():
        generations = sorted((int(n) for n in data.names("index") if n.isascii() and n.isdigit()), reverse=True)
        if not generations and not data.has(document_key("index")):
            raise SceneNotFoundError(f"no scene at {data.name}; make one with 'build'")
        for generation in generations:
            try:
                _, attributes = read_generation(data, generation)
                root = _raised(data, RootState.from_json(attributes))
            except DamagedStoreError as error:
                _log.warning("%s", error)
                continue
            data.replace_durably(DOCUMENT, group_document(root.to_json()))
            return SceneStore(data, root, writable=True)
    raise DamagedStoreError(
        f"scene {data.name}: its root document is damaged and no index generation holds a copy; build it again"
    )


def _raised(data: GuardedStore, root: RootState) -> RootState:
    """The copy lags behind the slots handed out after its commit: count them from the rows and array lengths."""
    lengths = {}
    for kind in ("params", "base"):
        slots = (name.split(".")[1] for name in data.names(kind) if name.startswith("c."))
        used = max((int(slot) + 1 for slot in slots if slot.isascii() and slot.isdigit()), default=0)
        shape = (read_document(data, kind) or {}).get("shape", [0])
        lengths[kind] = (used, max(int(shape[0]), used))
    raised = root.with_next_slots(
        max(root.next_slot, lengths["params"][0]), max(root.next_treelet_slot, lengths["base"][0])
    )
    header = root.header.with_capacity(
        max(root.header.capacity, lengths["params"][1]), max(root.header.treelet_capacity, lengths["base"][1])
    )
    return RootState(
        header=header,
        generation=root.generation,
        previous_generation=root.previous_generation,
        next_slot=raised.next_slot,
        next_treelet_slot=raised.next_treelet_slot,
    )
