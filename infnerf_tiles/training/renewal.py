"""Changing what a scene is made of: photos that come, photos that were changed. All of it or nothing.

A change touches several parts of the store. It is first written down as a whole, in one bundle that is there or not;
then the parts follow, each of which may be repeated. Whoever writes to the scene next after a kill finishes it. Readers
meanwhile see the scene as it was, for the index goes last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray, Int64
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.bundle import Bundle, drop_bundle, read_bundle, write_bundle
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.journal import drop_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import drop_checkpoint
from infnerf_tiles.store.stored_cameras import (
    StoredCameras,
    StoredFiles,
    cameras_from_bundle,
    cameras_to_bundle,
    files_from_bundle,
)
from infnerf_tiles.training.merge import with_new_photos

_PATH = "scratch/renewal"
_CAMERAS = "cameras/"


@dataclass(frozen=True, kw_only=True, eq=False)
class Renewal:
    """What the scene is to become.

    cameras, files: of all photos, those that there are first, in their order. again: int64, root keys of the treelets
    to be trained again. added: int64, keys of nodes to be added. unknown: int64, rows of photos whose colour transform
    is to be fitted anew. settings: the header's, JSON values.
    """

    cameras: StoredCameras
    files: StoredFiles | None
    again: Int64
    added: Int64
    unknown: Int64
    settings: Mapping[str, Any]


def renew(store: SceneStore, renewal: Renewal) -> None:
    """Make the change, so that a kill at any time leaves the scene as it was or as `finish_renewal` completes it."""
    arrays, meta = cameras_to_bundle(*renewal.cameras, renewal.files)
    parts: dict[str, AnyArray] = {f"{_CAMERAS}{name}": array for name, array in arrays.items()}
    parts |= {"again": renewal.again, "added": renewal.added, "unknown": renewal.unknown}
    write_bundle(store.data, _PATH, parts, {"cameras": dict(meta), "settings": dict(renewal.settings)})
    finish_renewal(store)


def finish_renewal(store: SceneStore) -> bool:
    """Finish the change that was begun, if there is one; returns whether there was.

    DamagedStoreError, once, if what was to be changed cannot be read; the scene is usable then, with all or nothing of
    the change.
    """
    try:
        found = read_bundle(store.data, _PATH)
    except DamagedStoreError as error:
        after = _without_record(store)
        raise DamagedStoreError(
            f"{error}; what was to be changed is lost. {after} Give the change again: 'build --add' with the photos "
            "that came, or 'train --accept-changes' for photos that were edited; then run 'train'"
        ) from error
    if found is None:
        return False
    parts = {n.removeprefix(_CAMERAS): a for n, a in found.arrays.items() if n.startswith(_CAMERAS)}
    bundle = Bundle(arrays=parts, meta=found.meta["cameras"])
    cameras = cameras_from_bundle(bundle, store.name)
    _renew_appearance(store, len(cameras.names), found.arrays["unknown"])
    # from here on the new place of the photos counts, which holds the former ones too
    store.change_settings(found.meta["settings"])
    store.write_cameras(*cameras, files_from_bundle(bundle))
    _plan(store, found.arrays["added"], found.arrays["again"])
    drop_bundle(store.data, _PATH)
    return True


def _plan(store: SceneStore, added: Int64, again: Int64) -> None:
    for key in again.tolist():
        treelet = str(NodeId.from_key(key))
        drop_record(store, treelet)  # else it would be taken for what the last training left
        drop_checkpoint(store, treelet)
    index = store.read_index()
    renewed = with_new_photos(index, added, again, store.header.band_levels)
    if not renewed.same_as(index):
        store.commit(renewed)


def _without_record(store: SceneStore) -> str:
    """Make the scene whole although nobody knows what was to be changed; a sentence that says how it is now."""
    is_test, index = store.read_cameras().is_test, store.read_index()
    begun = False
    if store.has_small("appearance"):
        arrays = {name: array[: len(is_test)] for name, array in store.read_small("appearance").items()}
        store.write_small("appearance", arrays)  # its new rows come before the cameras that they are for
        begun = bool((~is_test & (arrays["known"] == 0)).any())
    if begun:  # some treelets have yet to learn from these photos, and it is not known which
        _plan(store, np.empty(0, np.int64), index.root_keys[index.treelet_states == TreeletState.TRAINED])
    drop_bundle(store.data, _PATH)
    if begun:
        return "Part of it was done, so all treelets are to be trained again, from what they know."
    return "The scene is as it was."


def _renew_appearance(store: SceneStore, num_photos: int, unknown: AnyArray) -> None:
    if not store.has_small("appearance"):
        return
    arrays = store.read_small("appearance")
    affine, known = arrays["affine"].copy(), arrays["known"].copy()
    more = max(num_photos - len(affine), 0)
    affine = np.concatenate([affine, np.tile(np.eye(3, 4, dtype=affine.dtype), (more, 1, 1))])
    known = np.concatenate([known, np.zeros(more, known.dtype)])
    known[unknown] = 0
    store.write_small("appearance", {"affine": affine, "known": known})
