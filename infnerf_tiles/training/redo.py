"""Planning treelets again, so that nothing of what they were before is gone on from. All of it or nothing.

What is to be done is first written down; then the parts follow, each of which may be repeated. Whoever trains the scene
next after a kill finishes it.
"""

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.bundle import drop_bundle, read_bundle, write_bundle
from infnerf_tiles.store.index import plan_again
from infnerf_tiles.store.journal import drop_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import drop_checkpoint
from infnerf_tiles.training.seed_result import drop_seed_result

_PATH = "scratch/redo"


def redo(store: SceneStore, root_keys: Int64) -> None:
    """Plan the treelets with these roots (int64[k]) again; with the octree's root, what all treelets share goes too.

    A kill at any time leaves the scene as it was or as `finish_redo` completes it.
    """
    write_bundle(store.data, _PATH, {"root_keys": root_keys}, {})
    finish_redo(store)


def finish_redo(store: SceneStore) -> bool:
    """Finish what `redo` began, if it did; returns whether it had."""
    try:
        found = read_bundle(store.data, _PATH)
    except DamagedStoreError as error:
        drop_bundle(store.data, _PATH)  # else no other command could ever make it good
        raise DamagedStoreError(f"{error}; which treelets it was about is lost: give --redo again") from error
    if found is None:
        return False
    keys = found.arrays["root_keys"]
    for key in keys.tolist():
        treelet = str(NodeId.from_key(key))
        drop_record(store, treelet)
        drop_checkpoint(store, treelet)
    from_the_start = bool((keys == NodeId(0, 0, 0, 0).key).any())
    if from_the_start:
        drop_seed_result(store)
    index = store.read_index()
    store.commit(plan_again(index, np.flatnonzero(np.isin(index.root_keys, keys))))
    if from_the_start:
        drop_bundle(store.data, "decoder")  # a scene without a decoder begins with the seed stage
    drop_bundle(store.data, _PATH)
    return True
