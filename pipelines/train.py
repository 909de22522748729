"""train: the seed stage, then band after band, every treelet after its parent; goes on where it was stopped."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import DatasetError, NonFiniteError, SettingsError
from infnerf_tiles.geometry.node_id import NodeId, key_levels, parent_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.bundle import drop_bundle
from infnerf_tiles.store.garbage import collect_garbage
from infnerf_tiles.store.index import SceneIndex, TreeletState, plan_again
from infnerf_tiles.store.journal import drop_record, read_record, rows_exist
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.assignment import BandCut, assign_patches
from infnerf_tiles.training.context import Context, scene_dataset
from infnerf_tiles.training.inputs import scene_inputs, scene_settings
from infnerf_tiles.training.merge import with_record
from infnerf_tiles.training.pixels import Patches, all_patches
from infnerf_tiles.training.state import TrainingState
from infnerf_tiles.training.surroundings import read_surroundings
from infnerf_tiles.training.tasks import (
    GROWTH_ROOM,
    Progress,
    TrainReport,
    TrainTask,
    inputs_fingerprint,
    open_context,
    run_seed_stage,
    run_treelet,
    settings_fingerprint,
)
from infnerf_tiles.training.trainer import training_device

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a whole training did."""

    treelets: int
    """Treelets trained in this call."""
    skipped: int
    """Treelets that had been trained before."""
    failed: tuple[str, ...]
    """Treelets that could not be trained, with the reason."""
    nodes: int
    rays: int
    samples: int
    seconds: float
    peak_bytes: int
    reports: tuple[TrainReport, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        names = ("treelets", "skipped", "nodes", "rays", "samples", "seconds", "peak_bytes")
        return {**{name: getattr(self, name) for name in names}, "failed": list(self.failed)}


def train(
    scene: str,
    *,
    data: str | None = None,
    images: str | None = None,
    settings: Settings | None = None,
    redo: str | None = None,
    accept_changes: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainSummary:
    """Train what is not yet trained.

    data, images: where the photos are now, if not where they were at build. settings: other training settings than the
    scene's (None keeps them). redo: root of a treelet to train again, with what hangs below it. accept_changes: go on
    although settings or photos differ from those of the trained treelets. stop: asked between treelets.

    A treelet that fails with NaN is recorded and left out; the others go on.
    """
    started = time.monotonic()
    reports: list[TrainReport] = []
    failed: list[str] = []
    with SceneStore.open(scene, "r+") as store, store.exclusive():
        inputs = scene_inputs(store.header)
        task = TrainTask(
            scene=scene,
            dataset=data or inputs.dataset,
            images=images or inputs.images,
            settings=settings or scene_settings(store.header),
            threads=threads,
        )
        context = open_context(task, store)
        _check_photos(context)
        _check_same(context, accept_changes)
        if redo is not None:
            _plan_redo(store, redo)
        if not store.has_small("decoder"):
            reports.append(run_seed_stage(task, progress))
        skipped = 0
        index = store.read_index()
        for band in range(len(store.header.band_levels)):
            if stop():
                break
            index = _recover(store, index)
            todo = np.flatnonzero((index.bands == band) & (index.treelet_states != TreeletState.TRAINED))
            skipped += int(((index.bands == band) & (index.treelet_states == TreeletState.TRAINED)).sum())
            todo = _with_parent(index, todo)
            if not len(todo):
                continue
            for job in _jobs(context, task, index, band, todo):
                if stop():
                    break
                try:
                    reports.append(run_treelet(job, progress))
                except NonFiniteError as error:
                    failed.append(f"{job.treelet}: {error}")
                index = _commit(store, store.read_index(), job.treelet)
        collect_garbage(store)
        nodes = int((index.states == 1).sum())
    return TrainSummary(
        treelets=sum(r.treelet != "seed" for r in reports),
        skipped=skipped,
        failed=tuple(failed),
        nodes=nodes,
        rays=sum(r.rays for r in reports),
        samples=sum(r.samples for r in reports),
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory(),
        reports=tuple(reports),
    )


def _jobs(context: Context, task: TrainTask, index: SceneIndex, band: int, todo: Int64) -> list[TrainTask]:
    """One task per treelet, with its patches and the slots it may write."""
    store, levels = context.store, context.store.header.band_levels
    bottom = levels[band + 1] - 1 if band + 1 < len(levels) else store.header.max_level
    cut = BandCut(top=levels[band], bottom=bottom, root_keys=np.sort(index.root_keys[todo]))
    patches = all_patches(context.photos.cameras, context.training_photos)
    if band == 0:
        assigned = {0: _band_zero(context, patches, bottom, index)}
    else:
        root = NodeId(0, 0, 0, 0)
        above = read_surroundings(context, index, root, band)
        device = training_device(context.settings.training.device)
        state = TrainingState(context.shape, root, np.empty(0, np.int64), 0, above, device=device)
        shared = context.read_shared()
        shared.to(device)
        assigned = dict(assign_patches(context, state.arena, shared, patches, cut, Octree.from_keys(index.keys)))
    jobs = []
    for row in todo[np.argsort(index.root_keys[todo])].tolist():
        key = int(index.root_keys[row])
        nodes = int((index.treelets == row).sum())
        slots = store.allocate(nodes + max(GROWTH_ROOM, nodes // 4))
        mine: Patches = patches.select(assigned[key].astype(np.int32))
        jobs.append(
            TrainTask(
                scene=task.scene, dataset=task.dataset, images=task.images, settings=task.settings,
                treelet=str(NodeId.from_key(key)), patches=mine, slots=(slots.start, slots.stop),
                base_slot=store.allocate_treelets(1).start, threads=task.threads,
            )
        )  # fmt: skip
    return jobs


def _band_zero(context: Context, patches: Patches, bottom: int, index: SceneIndex) -> Int64:
    """Patches of the first treelet: what its seed-stage features show decides, as the parent does for the others."""
    row = int(np.flatnonzero(index.root_keys == 0)[0])
    root = NodeId(0, 0, 0, 0)
    from infnerf_tiles.training.state import ResidentNodes
    from infnerf_tiles.training.surroundings import start_base, warm_start

    keys = index.keys[index.treelets == row]
    device = training_device(context.settings.training.device)
    state = TrainingState(context.shape, root, keys, len(keys), ResidentNodes.none(context.shape), device=device)
    filled = warm_start(context, index, state)
    if not filled.any():
        return np.arange(patches.count)
    start_base(context, index, row, state)
    state.dense_grids[0] = 1
    state.relink()
    cut = BandCut(top=0, bottom=bottom, root_keys=np.zeros(1, np.int64))
    octree = Octree.from_keys(index.keys)
    shared = context.read_shared()
    shared.to(device)
    shown = assign_patches(context, state.arena, shared, patches, cut, octree)[0]
    # a seed stage that was too short to show anything must not leave the scene without pixels for good
    return shown if len(shown) else np.arange(patches.count)


def _commit(store: SceneStore, index: SceneIndex, treelet: str) -> SceneIndex:
    record = read_record(store, treelet)
    if record is None:
        return index
    index = with_record(index, record, store.header.band_levels)
    store.commit(index)
    return index


def _recover(store: SceneStore, index: SceneIndex) -> SceneIndex:
    """Take up treelets whose record was complete when the driver died before it could commit them."""
    for row in np.flatnonzero(index.treelet_states == TreeletState.PLANNED).tolist():
        name = str(NodeId.from_key(int(index.root_keys[row])))
        record = read_record(store, name)
        if record is not None and record.status == TreeletState.TRAINED and rows_exist(store, record):
            _log.info("treelet %s: trained before the last stop, taken up", name)
            index = _commit(store, store.read_index(), name)
    return index


def _with_parent(index: SceneIndex, todo: Int64) -> Int64:
    """Those of the treelets (rows) whose parent treelet is trained; the others wait for it."""
    levels = key_levels(index.root_keys[todo])
    below = todo[levels > 0]
    parents = parent_keys(index.root_keys[below])
    at = np.searchsorted(index.keys, parents)
    ready = index.treelet_states[index.treelets[at]] == TreeletState.TRAINED
    if not ready.all():
        _log.warning("%d treelets wait for a parent that could not be trained", int((~ready).sum()))
    return np.concatenate([todo[levels == 0], below[ready]])


def _check_photos(context: Context) -> None:
    """DatasetError unless the photos are those that the scene was built with: its cameras are stored photo by photo."""
    built, now = context.store.read_cameras()[1], context.photos.names
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


def _check_same(context: Context, accept_changes: bool) -> None:
    """SettingsError if a trained treelet was made with other settings or photos, unless that is accepted."""
    if accept_changes:
        return
    index = context.store.read_index()
    now = (settings_fingerprint(context.settings), inputs_fingerprint(context))
    changes = _changed_settings(scene_settings(context.store.header), context.settings)
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
            if then != current
        ]
        if what:
            raise SettingsError(
                f"treelet {record.treelet}: {' and '.join(what)} changed since it was trained; go on with "
                "--accept-changes, or put them back"
            )


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


def _plan_redo(store: SceneStore, redo: str) -> None:
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


__all__ = ["TrainSummary", "scene_dataset", "train"]
