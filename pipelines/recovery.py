"""Making finished treelets part of the scene, also those whose driver died before it could."""

import logging
from collections.abc import Sequence

import numpy as np
from infnerf_tiles.pipelines.acceptance import Acceptance

from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord, read_record, record_names, rows_exist
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.merge import with_records

_log = logging.getLogger(__name__)


def commit_records(store: SceneStore, treelets: Sequence[str]) -> SceneIndex:
    """Commit what the treelets' records say, of those that have one, at once; returns the index as it is then."""
    found = (read_record(store, treelet) for treelet in treelets)
    return _committed(store, store.read_index(), [record for record in found if record is not None])


def _committed(store: SceneStore, index: SceneIndex, records: Sequence[JournalRecord]) -> SceneIndex:
    if not records:
        return index
    index = with_records(index, records, store.header.band_levels)
    store.commit(index)
    return index


def take_up_finished(store: SceneStore) -> SceneIndex:
    """Take up treelets whose record was complete when the driver died before it could commit them; the index then.

    A record of other settings or photos than the scene's is left alone: its treelet is trained again.
    """
    index, acceptance = store.read_index(), Acceptance(store)
    untrained = index.root_keys[index.treelet_states != TreeletState.TRAINED]
    recorded = np.array([NodeId.parse(name).key for name in record_names(store)], np.int64)
    finished = []
    for key in untrained[np.isin(untrained, recorded)].tolist():
        record = read_record(store, str(NodeId.from_key(key)))
        if record is None or record.status != TreeletState.TRAINED or not acceptance.holds(record):
            continue
        if rows_exist(store, record):
            _log.info("treelet %s: trained before the last stop, taken up", record.treelet)
            finished.append(record)
    return _committed(store, index, finished)
