"""The journal: what was done for each treelet, with what, and what came of it.

A worker writes its record last, after its rows are safe on disk; a record that exists is complete.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float32, Int32, Int64
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.bundle import Bundle, drop_bundle, read_bundle, write_bundle
from infnerf_tiles.store.documents import document_key, fingerprint
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex, TreeletState, plan_again
from infnerf_tiles.store.row_arrays import RowKind
from infnerf_tiles.store.scene_store import SceneStore

__all__ = [
    "JournalRecord",
    "apply_record",
    "drop_record",
    "fingerprint",
    "read_all",
    "read_record",
    "record_names",
    "rows_exist",
    "write_record",
]
_log = logging.getLogger(__name__)
_NODE_ARRAYS = {"keys": np.int64, "slots": np.int32, "lambda_max": np.float32, "want_children": np.int64}


def _empty(dtype: type[np.generic]) -> AnyArray:
    return np.empty(0, dtype=dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class JournalRecord:
    """One treelet's record.

    treelet: its root as text ("L3/5-2-0"). status: how it ended. message: why it failed, "" if it did not. seconds,
    peak_bytes, steps: what it took. psnr: dB on its training pixels, None if unknown. settings_fingerprint,
    inputs_fingerprint: see `fingerprint`. keys int64[n], slots int32[n], lambda_max float32[n]: the nodes it wrote.
    want_children int64[m]: keys of nodes below it that it found worth growing. base_slot: row of `base`, -1 none.
    facts: further JSON values.
    """

    treelet: str
    status: TreeletState
    seconds: float
    peak_bytes: int
    steps: int
    settings_fingerprint: str
    inputs_fingerprint: str
    psnr: float | None = None
    message: str = ""
    keys: Int64 = field(default_factory=lambda: _empty(np.int64))
    slots: Int32 = field(default_factory=lambda: _empty(np.int32))
    lambda_max: Float32 = field(default_factory=lambda: _empty(np.float32))
    want_children: Int64 = field(default_factory=lambda: _empty(np.int64))
    base_slot: int = NO_SLOT
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        NodeId.parse(self.treelet)
        for name, dtype in _NODE_ARRAYS.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != np.dtype(dtype):
                raise ValueError(f"journal {name}: expected {np.dtype(dtype)}[n], got {array.dtype}{list(array.shape)}")
        if not len(self.keys) == len(self.slots) == len(self.lambda_max):
            raise ValueError(
                f"journal nodes: expected equally many keys, slots and lambda_max, got {len(self.keys)}, "
                f"{len(self.slots)} and {len(self.lambda_max)}"
            )


def apply_record(index: SceneIndex, record: JournalRecord) -> SceneIndex | None:
    """`index` with what the record says about its treelet; None if it does not know the treelet or all of its nodes.

    Trained: the treelet's nodes that the record does not name become planned. Failed: only the treelet's state changes,
    so that what was trained before stays. Nothing is added: growth is the caller's.
    """
    row = np.flatnonzero(index.root_keys == NodeId.parse(record.treelet).key)
    at = np.minimum(np.searchsorted(index.keys, record.keys), max(index.num_nodes - 1, 0))
    if len(row) != 1 or not ((index.keys[at] == record.keys) & (index.treelets[at] == row[0])).all():
        return None
    trained = record.status == TreeletState.TRAINED
    changed = plan_again(index, row if trained else row[:0])
    changed.treelet_states[row] = record.status
    if trained:
        changed.slots[at] = record.slots
        changed.lambda_max[at] = record.lambda_max
        changed.states[at] = NodeState.TRAINED
        changed.base_slots[row] = record.base_slot
    return changed


def rows_exist(store: SceneStore, record: JournalRecord) -> bool:
    """Whether every row that a trained treelet's record names is stored (not whether it is intact)."""
    kinds: tuple[RowKind, ...] = ("params", "occupancy")
    keys = [store.row_key(kind, slot) for slot in record.slots.tolist() for kind in kinds]
    if record.base_slot != NO_SLOT:
        keys.append(store.row_key("base", record.base_slot))
    return all(store.data.has(key) for key in keys)


def treelet_folder(area: str, treelet: str) -> str:
    """Path of a treelet's group in an area of the store. SettingsError if `treelet` is no node id."""
    return f"{area}/{str(NodeId.parse(treelet)).replace('/', '-')}"


def write_record(store: SceneStore, record: JournalRecord) -> None:
    """Sync all rows this process wrote, then replace the treelet's record."""
    store.check_writable()
    values = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    arrays = {name: values.pop(name) for name in _NODE_ARRAYS}
    meta = values | {"status": record.status.name.lower(), "facts": dict(record.facts)}
    write_bundle(store.data, treelet_folder("journal", record.treelet), arrays, meta)


def read_record(store: SceneStore, treelet: str) -> JournalRecord | None:
    """The record of the treelet with that root, None if there is none; DamagedStoreError if it is damaged."""
    path = treelet_folder("journal", treelet)
    bundle = read_bundle(store.data, path)
    return None if bundle is None else _record(bundle, store.name, path)


def read_all(store: SceneStore) -> tuple[JournalRecord, ...]:
    """All records, by treelet; damaged ones are left out with a warning (their treelets have to be trained again)."""
    records = []
    for treelet in record_names(store):
        try:
            record = read_record(store, treelet)
        except DamagedStoreError as error:
            _log.warning("%s; the record is ignored", error)
            continue
        if record is not None:
            records.append(record)
    return tuple(records)


def record_names(store: SceneStore) -> tuple[str, ...]:
    """Treelets with a record, damaged or not; of a store that cannot be listed, those that its index knows."""
    if not store.data.supports_listing:
        roots = (str(NodeId.from_key(key)) for key in np.sort(store.read_index().root_keys).tolist())
        return tuple(root for root in roots if store.data.has(document_key(treelet_folder("journal", root))))
    names = (name.replace("-", "/", 1) for name in store.data.names("journal") if name.startswith("L"))
    return tuple(str(node) for node in sorted(NodeId.parse(name) for name in names))


def drop_record(store: SceneStore, treelet: str) -> None:
    """Forget a treelet's record."""
    store.check_writable()
    drop_bundle(store.data, treelet_folder("journal", treelet))


def _record(bundle: Bundle, scene: str, path: str) -> JournalRecord:
    try:
        values: dict[str, Any] = {**bundle.meta, **bundle.arrays}
        values["status"] = TreeletState[str(values["status"]).upper()]
        return JournalRecord(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStoreError(f"scene {scene}: {path} is no journal record ({error!r})") from error
