"""Verification: read everything that the scene needs and name what is damaged."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from infnerf_tiles.errors import DamagedStoreError, StoreError, UnreachableError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.documents import document_key, read_document
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord, apply_record, read_all, read_record, record_names, rows_exist
from infnerf_tiles.store.root import CONTAINERS, SMALL_GROUPS
from infnerf_tiles.store.row_arrays import ROW_KINDS, RowArrays, RowKind
from infnerf_tiles.store.scene_store import SceneStore

_log = logging.getLogger(__name__)
DamageKind = Literal["node", "base", "journal", "group", "metadata", "index", "spare index"]
_THREADS = 4
_MOST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged thing. name: node id, treelet root id, group or path. treelet: root of the treelet concerned."""

    kind: DamageKind
    name: str
    reason: str
    treelet: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` read and what of it is damaged. moved: whether a writer was at it whenever the scene was read, so
    that what seems damaged may only have been replaced."""

    scene: str
    generation: int
    nodes_checked: int
    bases_checked: int
    damage: tuple[Damage, ...]
    moved: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def names(self, kind: DamageKind) -> tuple[str, ...]:
        """Names of the damaged things of one kind."""
        return tuple(damage.name for damage in self.damage if damage.kind == kind)

    @property
    def damaged_nodes(self) -> tuple[str, ...]:
        """Ids of nodes whose row or occupancy cannot be used."""
        return self.names("node")

    @property
    def damaged_treelets(self) -> tuple[str, ...]:
        """Root ids of the treelets that have to be trained again."""
        return tuple(sorted({d.treelet for d in self.damage if d.kind in ("node", "base") and d.treelet is not None}))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "ok": self.ok,
            "scene": self.scene,
            "generation": self.generation,
            "nodes_checked": self.nodes_checked,
            "bases_checked": self.bases_checked,
            "moved": self.moved,
            "damage": [{"kind": d.kind, "name": d.name, "treelet": d.treelet, "reason": d.reason} for d in self.damage],
        }


def verify(store: SceneStore, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every row that the index names, and everything else, against checksums and journal.

    `progress` is called with (rows done, rows in all). Where the current index is damaged, the rows of the one that
    `repair` would restore are checked. Nothing is changed and nothing raised for damage; UnreachableError if a server
    fails, which says nothing about the scene. If something seems damaged and another generation has been committed
    meanwhile, everything is read again, up to three times in all.
    """
    for _ in range(_MOST_ROUNDS):
        before = _newest(store)
        report = _verify_once(store, progress)
        if report.ok or _newest(store) == before:
            return report
        _log.info("scene %s: it was changed while it was being read", store.name)
    return replace(report, moved=True)


def _newest(store: SceneStore) -> int:
    """The generation that the root document names, or last named if it is damaged."""
    with suppress(DamagedStoreError):
        store.refresh()
    return store.generation


def _verify_once(store: SceneStore, progress: Callable[[int, int], None] | None) -> VerifyReport:
    found = list(_metadata(store))
    arrays = RowArrays(store.data, store.header, assumed=[damage.name for damage in found])
    found += _groups(store)
    index, index_damage = _index(store)
    generation = store.generation
    found += [*index_damage, *_journal(store, index)]
    rows = _rows_to_read(index)
    with ThreadPoolExecutor(_THREADS) as pool:
        done = 0
        pending = iter(rows)
        while batch := list(islice(pending, 64)):  # in batches, so that memory stays bounded
            found += [damage for damage in pool.map(lambda row: _read_row(arrays, index, row), batch) if damage]
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    if (index.states == NodeState.TRAINED).any() and not store.has_small("decoder"):
        found.append(Damage(kind="group", name="decoder", reason="it is missing although nodes are trained"))
    return VerifyReport(
        scene=store.name,
        generation=generation,
        nodes_checked=sum(kind == "params" for kind, _ in rows),
        bases_checked=sum(kind == "base" for kind, _ in rows),
        damage=tuple(_once(found)),
    )


def recovered_index(store: SceneStore) -> SceneIndex:
    """The index to go on with when the current one is damaged: the previous generation and what the journal has since.

    DamagedStoreError if there is no previous generation that can be read.
    """
    previous = store.root.previous_generation
    if previous == 0:
        raise DamagedStoreError(
            f"scene {store.name}: index generation {store.generation} is damaged and there is none before it; "
            "build the scene again"
        )
    index = store.read_generation(previous)
    for record in read_all(store):
        index = apply_record(index, record) or index
    return index


def _index(store: SceneStore) -> tuple[SceneIndex, list[Damage]]:
    found = []
    try:
        index = store.read_index()
    except DamagedStoreError as error:
        found.append(Damage(kind="index", name=str(store.generation), reason=str(error)))
        try:
            return recovered_index(store), found
        except DamagedStoreError as no_spare:
            found.append(Damage(kind="spare index", name=str(store.root.previous_generation), reason=str(no_spare)))
            return SceneIndex.planned(()), found
    try:
        store.read_generation(store.root.previous_generation)
    except DamagedStoreError as error:
        found.append(Damage(kind="spare index", name=str(store.root.previous_generation), reason=str(error)))
    return index, found


def _rows_to_read(index: SceneIndex) -> list[tuple[RowKind, int]]:
    """(array, row of the index's node or treelet table) of everything that must be there."""
    nodes = np.flatnonzero(index.slots != NO_SLOT).tolist()
    treelets = np.flatnonzero(index.base_slots != NO_SLOT).tolist()
    return [
        *(("params", node) for node in nodes),
        *(("occupancy", node) for node in nodes),
        *(("base", treelet) for treelet in treelets),
    ]


def _read_row(arrays: RowArrays, index: SceneIndex, row: tuple[RowKind, int]) -> Damage | None:
    kind, at = row
    slot = int((index.base_slots if kind == "base" else index.slots)[at])
    try:
        values = arrays.read(kind, slot)
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return None
        reason = f"{kind} slot {slot} holds values that are not finite"
    except UnreachableError:  # says nothing about the row
        raise
    except (StoreError, OSError) as error:
        reason = str(error)
    treelet = str(NodeId.from_key(int(index.root_keys[at if kind == "base" else index.treelets[at]])))
    if kind == "base":
        return Damage(kind="base", name=treelet, treelet=treelet, reason=reason)
    return Damage(kind="node", name=str(NodeId.from_key(int(index.keys[at]))), treelet=treelet, reason=reason)


def _metadata(store: SceneStore) -> Iterator[Damage]:
    for kind in ROW_KINDS:
        try:
            store.rows.check_metadata(kind)
        except DamagedStoreError as error:
            yield Damage(kind="metadata", name=kind, reason=str(error))
    for path in CONTAINERS:
        try:
            if (read_document(store.data, path) or {}).get("node_type") != "group":
                yield Damage(kind="metadata", name=path, reason=f"{document_key(path)} is missing or no group document")
        except DamagedStoreError as error:
            yield Damage(kind="metadata", name=path, reason=str(error))


def _groups(store: SceneStore) -> Iterator[Damage]:
    for group in SMALL_GROUPS:
        if store.has_small(group):
            try:
                store.read_group(group)
            except UnreachableError:
                raise
            except StoreError as error:
                yield Damage(kind="group", name=group, reason=str(error))


def _journal(store: SceneStore, index: SceneIndex) -> Iterator[Damage]:
    for treelet in record_names(store):
        try:
            record = read_record(store, treelet)
        except DamagedStoreError as error:
            yield Damage(kind="journal", name=treelet, treelet=treelet, reason=str(error))
            continue
        if record is None or record.status != TreeletState.TRAINED or _is_committed(index, record):
            continue
        # Finished, but not committed yet: then all of its rows are new, and there.
        if np.isin(record.slots, index.slots).any() or record.base_slot in index.base_slots:
            reason = "the record names slots that the index gives to other nodes"
        elif not rows_exist(store, record):
            reason = "rows that the record names are missing"
        else:
            continue
        yield Damage(kind="journal", name=treelet, treelet=treelet, reason=reason)


def _is_committed(index: SceneIndex, record: JournalRecord) -> bool:
    """Whether the index has the treelet's trained nodes (some may have been pruned since) where the record says."""
    row = np.flatnonzero(index.root_keys == NodeId.parse(record.treelet).key)
    if not len(row) or record.base_slot != index.base_slots[row[0]]:
        return False
    nodes = (index.treelets == row[0]) & (index.states == NodeState.TRAINED)
    recorded = zip(record.keys.tolist(), record.slots.tolist(), strict=True)
    return set(zip(index.keys[nodes].tolist(), index.slots[nodes].tolist(), strict=True)) <= set(recorded)


def _once(found: Sequence[Damage]) -> list[Damage]:
    """One entry per damaged thing: a node counts once even if its row and its occupancy are gone."""
    first: dict[tuple[str, str], Damage] = {}
    for damage in found:
        first.setdefault((damage.kind, damage.name), damage)
    return list(first.values())
