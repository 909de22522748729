"""What has to hold before a scene is trained on: the same photos, and the same settings as before."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from infnerf_tiles.pipelines.allowance import forget_capacities
from infnerf_tiles.pipelines.partition import reliable_points
from infnerf_tiles.pipelines.recovery import take_up_finished
from infnerf_tiles.pipelines.same_points import check_points, point_facts
from infnerf_tiles.pipelines.sameness import check_common

from infnerf_tiles.arrays import Int64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.data.marks import PhotoMarks, read_marks
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.journal import read_all, read_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.stored_cameras import StoredCameras, StoredFiles
from infnerf_tiles.training.context import Context, in_scene_order
from infnerf_tiles.training.inputs import Inputs, scene_inputs, scene_settings, stored_settings
from infnerf_tiles.training.redo import redo as redo_treelets
from infnerf_tiles.training.renewal import Renewal, renew
from infnerf_tiles.training.sightings import sighted_treelets
from infnerf_tiles.training.tasks import inputs_fingerprint, settings_fingerprint

_log = logging.getLogger(__name__)
_OTHER_POSES = (
    "a scene keeps the poses that it was built with: put them back, or build again; to add photos, register them with "
    "these held fixed and take them in with 'build --add'"
)


def checked_context(
    store: SceneStore, photos: PosedPhotos, settings: Settings, accept_changes: bool
) -> Context:
    """The scene with its photos, in its order. DatasetError unless `photos` are those that it was built with.

    Poses and intrinsics are the scene's own; those of `photos` may differ by a pixel, beyond that they are refused.
    So are sparse points that came, went or moved, unless that is accepted.
    A photo whose file is not the one of then was changed; that alone can be accepted: the treelets that see it are to
    be trained again. By default only files with another size or time are read; one that was changed without either is
    found out when it is decoded. With `accept_changes` all are read.
    """
    stored, now = store.read_cameras(), photos.names
    reasons = {r.name: r.reason for r in photos.rejected}
    if gone := sorted(set(stored.names) - set(now)):
        shown = "; ".join(f"{name} ({reasons.get(name, 'it is not listed any more')})" for name in gone[:3])
        raise DatasetError(
            f"{photos.root}: expected the {len(stored.names)} photos that the scene was built with, {len(gone)} "
            f"cannot be used: {shown}; put them back, or build again"
        )
    if new := sorted(set(now) - set(stored.names)):
        raise DatasetError(
            f"{photos.root}: expected the {len(stored.names)} photos that the scene was built with, got "
            f"{len(new)} more: {', '.join(new[:3])}; add them with 'build --add', or take them away"
        )
    header = store.header
    check_common(photos, stored, header.root.edge / header.cells / 2.0**header.max_level, advice=_OTHER_POSES)
    _check_points(store, photos, accept_changes)
    then = store.read_files()
    photos = in_scene_order(photos, stored, then)
    if then is None:
        return Context(store, photos, settings)
    files, changed = changed_files(photos.paths, photos.mask_paths, then, thorough=accept_changes)
    photos = replace(photos, digests=files.digest)
    context = Context(store, photos, settings)
    if not len(changed):
        if not np.array_equal(files.mtime_ns, then.mtime_ns):  # copied since: not to be read again the next time
            store.write_cameras(stored.cameras, stored.names, stored.is_test, files)
        return context
    if not accept_changes:
        shown = "; ".join(_change(photos.names[i], then, files, i) for i in changed[:3].tolist())
        raise DatasetError(
            f"{photos.root}: expected the photos as they were when the scene was built, {len(changed)} have "
            f"changed: {shown}; put them back, or go on with --accept-changes"
        )
    _accept_photos(context, stored, files, changed)
    return context


def _check_points(store: SceneStore, photos: PosedPhotos, accept_changes: bool) -> None:
    header, inputs, now = store.header, scene_inputs(store.header), point_facts(photos)
    if inputs.points is None or inputs.points == now:
        return
    if not accept_changes:
        check_points(photos, inputs.points, now, header.root.edge / header.cells / 2.0**header.max_level)
        return
    store.change_settings(stored_settings(scene_settings(header), replace(inputs, points=now)))


def changed_files(
    paths: Sequence[Path], masks: Sequence[Path | None], then: StoredFiles, *, thorough: bool = False
) -> tuple[StoredFiles, Int64]:
    """The marks of photos and masks now, and the rows of those with other contents, int64[k].

    thorough: also read files whose size and time are the same.
    """
    known = None if thorough else PhotoMarks(num_bytes=then.num_bytes, mtime_ns=then.mtime_ns, digest=then.digest)
    now = read_marks(paths, masks, known)
    return StoredFiles(now.num_bytes, now.mtime_ns, now.digest), np.flatnonzero((now.digest != then.digest).any(axis=1))


def accepted_anew(store: SceneStore, context: Context, inputs: Inputs, again: Int64) -> tuple[str, ...]:
    """`Inputs.accepted` with the photos of `context` for all treelets but those to be trained again (root keys)."""
    now = inputs_fingerprint(context)
    dropped = {str(NodeId.from_key(int(key))) for key in again.tolist()}
    kept = (record for record in read_all(store) if record.treelet not in dropped)
    pairs = {f"{record.inputs_fingerprint}:{now}" for record in kept if record.inputs_fingerprint != now}
    return tuple(sorted(pairs.union(inputs.accepted)))


def _change(name: str, then: StoredFiles, now: StoredFiles, row: int) -> str:
    before, after = int(then.num_bytes[row]), int(now.num_bytes[row])
    if before == after:
        return f"{name} (other contents in {after:,} bytes)"
    return f"{name} ({before:,} bytes then, {after:,} now)"


def _accept_photos(context: Context, stored: StoredCameras, files: StoredFiles, changed: Int64) -> None:
    """Take the changed photos (rows) as they are; the trained treelets that see them are to be trained again."""
    store = context.store
    index = take_up_finished(store)
    training = changed[~stored.is_test[changed]]
    evidence, octree = reliable_points(context.photos), Octree.from_keys(index.keys)
    sighted = sighted_treelets(context, index, training, evidence=evidence, octree=octree)
    again = np.intersect1d(sighted, index.root_keys[index.treelet_states == TreeletState.TRAINED])
    inputs = scene_inputs(store.header)
    inputs = replace(inputs, accepted=accepted_anew(store, context, inputs, again))
    forget_capacities(store)
    renew(
        store,
        Renewal(
            cameras=stored, files=files, again=again, added=np.empty(0, np.int64), unknown=changed,
            settings=stored_settings(scene_settings(store.header), inputs),
        ),
    )  # fmt: skip
    _log.info("%d photos have changed: %d treelets that see them are trained again", len(changed), len(again))


def check_same(context: Context, accept_changes: bool) -> None:
    """SettingsError if what is trained was made with other settings or photos, unless that is accepted.

    The settings given before anything is trained become the scene's own; so do those that are accepted.
    """
    store = context.store
    index, inputs = store.read_index(), scene_inputs(store.header)
    stored = scene_settings(store.header)
    changes = _changed_settings(stored, context.settings)
    trained = index.root_keys[index.treelet_states == TreeletState.TRAINED]
    if not len(trained) and not store.has_small("decoder"):
        if changes:
            store.change_settings(stored_settings(_own(stored, context.settings), inputs))
        return
    now = (settings_fingerprint(context.settings), inputs_fingerprint(context))
    accepted = set(inputs.accepted)
    fitting = 0
    for key in trained.tolist():
        record = read_record(store, str(NodeId.from_key(key)))
        if record is None:
            continue
        former = (record.settings_fingerprint, record.inputs_fingerprint)
        pairs = [None if then == current else f"{then}:{current}" for then, current in zip(former, now, strict=True)]
        other = [pair is not None and pair not in accepted for pair in pairs]
        if accept_changes:
            accepted.update(pair for pair in pairs if pair is not None)
        elif any(other):
            _refuse(record.treelet, other, changes)
        fitting += pairs[0] is None
    if changes and not accept_changes and not fitting:
        raise SettingsError(_changed_message(f"scene {store.name}", changes))
    if changes or accept_changes:
        document = stored_settings(_own(stored, context.settings), replace(inputs, accepted=tuple(sorted(accepted))))
        if document != store.header.settings:
            store.change_settings(document)


def _refuse(treelet: str, other: Sequence[bool], changes: Sequence[str]) -> None:
    """other: whether settings and photos are others than those that the treelet was trained with."""
    if other[0] and changes:
        raise SettingsError(_changed_message(f"treelet {treelet}", changes))
    named = ("the settings (those of the scene are not the ones that it was trained with)", "the photos or their poses")
    what = [name for name, is_other in zip(named, other, strict=True) if is_other]
    raise SettingsError(
        f"treelet {treelet}: {' and '.join(what)} changed since it was trained; go on with --accept-changes, or put "
        "them back"
    )


def _changed_message(name: str, changes: Sequence[str]) -> str:
    return (
        f"{name}: expected the settings that it was trained with, got {', '.join(changes)}; leave them out, or go on "
        "with --accept-changes, which keeps what is trained and stores them"
    )


def _own(stored: Settings, given: Settings) -> Settings:
    """The settings to keep: not how to draw, nor where it is computed this time."""
    training = given.training.model_copy(update={"device": stored.training.device})
    return given.model_copy(update={"rendering": stored.rendering, "training": training})


def _changed_settings(stored: Settings, given: Settings) -> list[str]:
    """What differs from the scene's own settings of what matters to what is learned, as texts."""
    before, after = stored.model_dump(), _own(stored, given).model_dump()
    return [
        f"{section}.{key} {after[section][key]!r} instead of {value!r}"
        for section, values in before.items()
        for key, value in values.items()
        if after[section][key] != value
    ]


def plan_redo(store: SceneStore, redo: str) -> None:
    """Plan a treelet and everything below it again; for the octree's root, what all treelets share too."""
    index = store.read_index()
    top = NodeId.parse(redo)
    if top.key not in index.root_keys:
        raise SettingsError(f"--redo {redo}: expected the root of a treelet (see 'info'), got another node")
    nodes = [NodeId.from_key(key) for key in index.root_keys.tolist()]
    below = [node.key for node in nodes if node.level >= top.level and node.ancestor(top.level) == top]
    redo_treelets(store, np.array(below, np.int64))
