"""Scratch: the state of treelets in training, to go on from after an interruption. Gone after commit."""

import logging
from collections.abc import Mapping
from typing import Any

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.store.bundle import StoredBundle, drop_bundle, open_bundle, write_bundle
from infnerf_tiles.store.journal import treelet_folder
from infnerf_tiles.store.scene_store import SceneStore

_log = logging.getLogger(__name__)


def write_checkpoint(store: SceneStore, treelet: str, arrays: Mapping[str, AnyArray], meta: Mapping[str, Any]) -> None:
    """Replace the training state of the treelet with that root ("L3/5-2-0").

    `arrays`: plain numeric arrays, gigabytes in all; they pass through memory in pieces of 16 MiB. `meta`: JSON values.
    The former state is kept until this one is complete and on disk. StorageFullError if the disk is full.
    """
    store.check_writable()
    # Optimiser states are noise to a compressor
    write_bundle(store.data, treelet_folder("scratch", treelet), arrays, meta, compressed=False)


def read_checkpoint(store: SceneStore, treelet: str) -> StoredBundle | None:
    """The last complete training state, whose arrays are read one by one as they are asked for; None if there is none,
    or it is damaged (which is logged: training starts over)."""
    try:
        return open_bundle(store.data, treelet_folder("scratch", treelet))
    except DamagedStoreError as error:
        _log.warning("%s; the training of %s starts over", error, treelet)
        return None


def drop_checkpoint(store: SceneStore, treelet: str) -> None:
    """Remove the training state of a treelet, if there is one."""
    store.check_writable()
    drop_bundle(store.data, treelet_folder("scratch", treelet))
