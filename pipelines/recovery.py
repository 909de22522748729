"""Making finished treelets part of the scene, also those whose driver died before it could."""

import logging

import numpy as np

from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.journal import read_record, rows_exist
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.merge import with_record

_log = logging.getLogger(__name__)


def commit_record(store: SceneStore, treelet: str) -> SceneIndex:
    """Commit what the treelet's record says, if it has one; returns the index as it is then."""
    index = store.read_index()
    record = read_record(store, treelet)
    if record is None:
        return index
    index = with_record(index, record, store.header.band_levels)
    store.commit(index)
    return index


def take_up_finished(store: SceneStore) -> SceneIndex:
    """Take up treelets whose record was complete when the driver died before it could commit them; the index then."""
    index = store.read_index()
    for row in np.flatnonzero(index.treelet_states == TreeletState.PLANNED).tolist():
        name = str(NodeId.from_key(int(index.root_keys[row])))
        record = read_record(store, name)
        if record is not None and record.status == TreeletState.TRAINED and rows_exist(store, record):
            _log.info("treelet %s: trained before the last stop, taken up", name)
            index = commit_record(store, name)
    return index
