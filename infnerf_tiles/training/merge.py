"""How the index changes: warm rows after the seed stage, trained rows and growth per treelet, photos that came."""

from collections.abc import Mapping, Sequence

import numpy as np

from infnerf_tiles.arrays import AnyArray, Int32, Int64
from infnerf_tiles.geometry.node_id import NodeId, key_levels, parent_keys
from infnerf_tiles.geometry.octree import Octree, cut, treelet_root_keys
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord


def with_warm_rows(
    octree: Octree, band_levels: tuple[int, ...], keys: Int64, slots: Int32, base_slots: Mapping[int, int]
) -> SceneIndex:
    """A planned index of the octree; these nodes, and bases by treelet root key, name rows of the seed stage."""
    planned = SceneIndex.planned(cut(octree, band_levels))
    planned.slots[np.searchsorted(planned.keys, keys)] = slots
    for key, slot in base_slots.items():
        planned.base_slots[planned.root_keys == key] = slot
    return planned


def with_record(index: SceneIndex, record: JournalRecord, band_levels: tuple[int, ...]) -> SceneIndex:
    """The index after a treelet's record: its trained nodes, without what was pruned, with what was grown.

    Nodes that the training wants below its band become treelets of the next band, with one planned node each, unless
    they exist. A failed treelet keeps its planned nodes.
    """
    return with_records(index, [record], band_levels)


def with_records(index: SceneIndex, records: Sequence[JournalRecord], band_levels: tuple[int, ...]) -> SceneIndex:
    """As `with_record` for one record after the other, each of another treelet of `index`, in one pass over the index:
    no record says anything about another one's nodes."""
    row_of = _rows_of(index, [NodeId.parse(record.treelet).key for record in records])
    states = index.treelet_states.copy()
    states[row_of] = [record.status for record in records]
    trained = [(row, r) for row, r in zip(row_of.tolist(), records, strict=True) if r.status == TreeletState.TRAINED]
    if not trained:
        return _replaced(index, treelet_states=states)
    changed = np.zeros(index.num_treelets, np.bool_)
    changed[[row for row, _ in trained]] = True
    others = ~changed[index.treelets]
    wanted = np.concatenate([_wanted(index, record) for _, record in trained])
    new_rows = np.arange(len(wanted), dtype=np.int32) + index.num_treelets
    mine = np.concatenate([record.keys for _, record in trained])
    rows = np.repeat([row for row, _ in trained], [len(record.keys) for _, record in trained])
    keys = np.concatenate([index.keys[others], mine, wanted])
    order = np.argsort(keys, kind="stable")
    base_slots = index.base_slots.copy()
    base_slots[[row for row, _ in trained]] = [record.base_slot for _, record in trained]

    def column(old: AnyArray, own: object, new: object) -> AnyArray:
        fresh = np.concatenate(
            [
                old[others],
                np.broadcast_to(np.asarray(own, old.dtype), (len(mine),)),
                np.broadcast_to(np.asarray(new, old.dtype), (len(wanted),)),
            ]
        )
        return fresh[order]

    return SceneIndex(
        keys=keys[order],
        slots=column(index.slots, np.concatenate([record.slots for _, record in trained]), NO_SLOT),
        treelets=column(index.treelets, rows, new_rows),
        states=column(index.states, NodeState.TRAINED, NodeState.PLANNED),
        lambda_max=column(index.lambda_max, np.concatenate([record.lambda_max for _, record in trained]), 0.0),
        root_keys=np.concatenate([index.root_keys, wanted]),
        bands=np.concatenate([index.bands, np.searchsorted(band_levels, key_levels(wanted)).astype(np.int32)]),
        base_slots=np.concatenate([base_slots, np.full(len(wanted), NO_SLOT, np.int32)]),
        treelet_states=np.concatenate([states, np.zeros(len(wanted), np.uint8)]),
    )


def _rows_of(index: SceneIndex, roots: Sequence[int]) -> Int64:
    """Rows of the treelets with these root keys."""
    order = np.argsort(index.root_keys)
    rows: Int64 = order[np.searchsorted(index.root_keys, np.array(roots, np.int64), sorter=order)]
    return rows


def _wanted(index: SceneIndex, record: JournalRecord) -> Int64:
    """Nodes that the record's training wants below its band and that do not exist, sorted."""
    wanted: Int64 = np.unique(record.want_children[np.isin(parent_keys(record.want_children), record.keys)])
    at = np.minimum(np.searchsorted(index.keys, wanted), max(index.num_nodes - 1, 0))
    new: Int64 = wanted[index.keys[at] != wanted]
    return new


def with_new_photos(index: SceneIndex, added: Int64, again: Int64, band_levels: tuple[int, ...]) -> SceneIndex:
    """The index with these nodes added, planned, and these treelets to be trained again.

    added: keys whose parents are among them or in the index; those that exist already change nothing. again: root keys.
    Rows stay where they are: they are drawn until the treelet has been trained, which starts from them.
    """
    added = np.setdiff1d(added, index.keys)
    roots = treelet_root_keys(added, band_levels)
    new_roots = np.setdiff1d(roots, index.root_keys)
    root_keys = np.concatenate([index.root_keys, new_roots])
    order = np.argsort(root_keys)
    rows = order[np.searchsorted(root_keys, roots, sorter=order)].astype(np.int32)
    keys = np.concatenate([index.keys, added])
    place = np.argsort(keys, kind="stable")

    def column(old: AnyArray, new: object) -> AnyArray:
        return np.concatenate([old, np.broadcast_to(np.asarray(new, old.dtype), (len(added),))])[place]

    fresh = np.full(len(new_roots), NO_SLOT, np.int32)
    states = np.concatenate([index.treelet_states, np.zeros(len(new_roots), np.uint8)])
    states[np.isin(root_keys, np.union1d(again, roots))] = TreeletState.PLANNED
    return SceneIndex(
        keys=keys[place],
        slots=column(index.slots, NO_SLOT),
        treelets=column(index.treelets, rows),
        states=column(index.states, NodeState.PLANNED),
        lambda_max=column(index.lambda_max, 0.0),
        root_keys=root_keys,
        bands=np.concatenate([index.bands, np.searchsorted(band_levels, key_levels(new_roots)).astype(np.int32)]),
        base_slots=np.concatenate([index.base_slots, fresh]),
        treelet_states=states,
    )


def _replaced(index: SceneIndex, **columns: AnyArray) -> SceneIndex:
    names = ("keys", "slots", "treelets", "states", "lambda_max", "root_keys", "bands", "base_slots", "treelet_states")
    return SceneIndex(**{name: columns.get(name, getattr(index, name)) for name in names})
