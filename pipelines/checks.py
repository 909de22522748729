"""What has to hold before a scene is trained on: the same photos, and the same settings as before."""

from dataclasses import replace

import numpy as np

from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.bundle import drop_bundle
from infnerf_tiles.store.index import TreeletState, plan_again
from infnerf_tiles.store.journal import drop_record, read_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.inputs import Inputs, scene_inputs, scene_settings, stored_settings
from infnerf_tiles.training.tasks import inputs_fingerprint, settings_fingerprint


def check_photos(context: Context, accept_changes: bool) -> None:
    """DatasetError unless the photos are those that the scene was built with: its cameras are stored photo by photo.

    A photo whose file has another size than then was changed; that alone can be accepted.
    """
    stored, now = context.store.read_cameras(), context.photos.names
    built = stored.names
    reasons = {r.name: r.reason for r in context.photos.rejected}
    if gone := sorted(set(built) - set(now)):
        shown = "; ".join(f"{name} ({reasons.get(name, 'it is not listed any more')})" for name in gone[:3])
        raise DatasetError(
            f"{context.photos.root}: expected the {len(built)} photos that the scene was built with, {len(gone)} "
            f"cannot be used: {shown}; put them back, or build again"
        )
    if new := sorted(set(now) - set(built)):
        raise DatasetError(
            f"{context.photos.root}: expected the {len(built)} photos that the scene was built with, got "
            f"{len(new)} more: {', '.join(new[:3])}; take them away, or build again"
        )
    then, sizes = context.store.read_file_bytes(), context.photos.file_bytes()
    if then is None or now != built:
        return
    if len(changed := np.flatnonzero(then != sizes)):
        if accept_changes:
            context.store.write_cameras(stored.cameras, stored.names, stored.is_test, sizes)
            return
        shown = "; ".join(
            f"{now[i]} ({int(then[i]):,} bytes then, {int(sizes[i]):,} now)" for i in changed[:3].tolist()
        )
        raise DatasetError(
            f"{context.photos.root}: expected the photos as they were when the scene was built, {len(changed)} have "
            f"changed: {shown}; put them back, or go on with --accept-changes"
        )


def check_same(context: Context, accept_changes: bool) -> None:
    """SettingsError if a trained treelet was made with other settings or photos, unless that is accepted.

    What is accepted is written into the scene: the new settings are its own from then on.
    """
    index = context.store.read_index()
    now = (settings_fingerprint(context.settings), inputs_fingerprint(context))
    changes = _changed_settings(scene_settings(context.store.header), context.settings)
    inputs = scene_inputs(context.store.header)
    accepted = set(inputs.accepted)
    for key in index.root_keys[index.treelet_states == TreeletState.TRAINED].tolist():
        record = read_record(context.store, str(NodeId.from_key(key)))
        if record is None:
            continue
        what = [
            name
            for name, then, current in (
                (f"the settings{changes}", record.settings_fingerprint, now[0]),
                ("the photos or their poses", record.inputs_fingerprint, now[1]),
            )
            if then != current and f"{then}:{current}" not in accepted
        ]
        if accept_changes:
            former = (record.settings_fingerprint, record.inputs_fingerprint)
            accepted |= {f"{then}:{current}" for then, current in zip(former, now, strict=True) if then != current}
        elif what:
            raise SettingsError(
                f"treelet {record.treelet}: {' and '.join(what)} changed since it was trained; go on with "
                "--accept-changes, or put them back"
            )
    if accept_changes:
        _accept(context, inputs, accepted)


def _accept(context: Context, inputs: Inputs, accepted: set[str]) -> None:
    document = stored_settings(context.settings, replace(inputs, accepted=tuple(sorted(accepted))))
    if document != context.store.header.settings:
        context.store.change_settings(document)


def _changed_settings(stored: Settings, now: Settings) -> str:
    """What differs from the scene's own settings, as text in brackets; nothing if nothing does."""
    before, after = stored.model_dump(), now.model_dump()
    different = [
        f"{section}.{key} {after[section][key]!r} instead of {value!r}"
        for section, values in before.items()
        if section != "rendering"
        for key, value in values.items()
        if after[section][key] != value
    ]
    return f" ({', '.join(different)})" if different else ""


def plan_redo(store: SceneStore, redo: str) -> None:
    """Plan a treelet and everything below it again; for the octree's root, what all treelets share too."""
    index = store.read_index()
    top = NodeId.parse(redo)
    if top.key not in index.root_keys:
        raise SettingsError(f"--redo {redo}: expected the root of a treelet (see 'info'), got another node")
    rows = []
    for row, key in enumerate(index.root_keys.tolist()):
        node = NodeId.from_key(key)
        if node.level >= top.level and node.ancestor(top.level) == top:
            rows.append(row)
            drop_record(store, str(node))
    store.commit(plan_again(index, np.array(rows)))
    if top.level == 0:
        drop_bundle(store.data, "decoder")  # a scene without a decoder begins with the seed stage
