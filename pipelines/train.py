"""train: the seed stage, then band after band, every treelet after its parent; goes on where it was stopped."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.checks import check_photos, check_same, plan_redo
from infnerf_tiles.pipelines.cluster import Executor, Workplace, open_executor

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import DamagedStoreError, TrainingError
from infnerf_tiles.geometry.node_id import NodeId, key_levels, parent_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.garbage import collect_garbage
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import read_record, rows_exist
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.assignment import BandCut, assign_patches
from infnerf_tiles.training.context import Context, scene_dataset
from infnerf_tiles.training.inputs import scene_inputs, scene_settings
from infnerf_tiles.training.merge import with_record
from infnerf_tiles.training.pixels import Patches, all_patches
from infnerf_tiles.training.seed_result import take_up_seed_result
from infnerf_tiles.training.state import TrainingState
from infnerf_tiles.training.surroundings import read_surroundings
from infnerf_tiles.training.tasks import (
    GROWTH_ROOM,
    Progress,
    TrainReport,
    TrainTask,
    open_context,
    run_seed_stage,
    run_treelet,
    seed_capacity,
)

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
    remaining: int
    """Treelets that are still to be trained, failed ones among them."""
    nodes: int
    rays: int
    samples: int
    seconds: float
    peak_bytes: int
    reports: tuple[TrainReport, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        names = ("treelets", "skipped", "remaining", "nodes", "rays", "samples", "seconds", "peak_bytes")
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
    place: Workplace | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = _log.info,
) -> TrainSummary:
    """Train what is not yet trained.

    data, images: where the photos are now, if not where they were at build. settings: other training settings than the
    scene's (None keeps them). redo: root of a treelet to train again, with what hangs below it. accept_changes: go on
    although settings or photos differ from those of the trained treelets. place: where to run (default: this process,
    with `threads` processor threads). stop: asked before each treelet; those in hand are finished. say: told where the
    work can be watched.

    A treelet that fails with NaN, or whose worker dies again and again, is left out; the others go on.
    """
    started = time.monotonic()
    place = place or Workplace(threads=threads)
    summary = _Tally()
    with SceneStore.open(scene, "r+") as store, store.exclusive():
        inputs = scene_inputs(store.header)
        task = TrainTask(
            scene=scene if "://" in scene else str(Path(scene).resolve()),
            dataset=data or inputs.dataset,
            images=images or inputs.images,
            settings=settings or scene_settings(store.header),
            threads=place.threads_per_task,
        )
        context = open_context(task, store)
        check_photos(context)
        check_same(context, accept_changes)
        if redo is not None:
            plan_redo(store, redo)
        index = store.read_index()
        seeded = store.has_small("decoder")
        summary.skipped = int((index.treelet_states == TreeletState.TRAINED).sum())
        if not seeded or (index.treelet_states != TreeletState.TRAINED).any():
            with open_executor(place, progress) as executor:
                if executor.dashboard:
                    say(f"dashboard: {executor.dashboard}")
                if not seeded:
                    _seed_stage(store, task, place, executor, summary)
                for band in range(len(store.header.band_levels)):
                    if stop() or not _train_band(context, task, band, executor, stop, summary):
                        break
        collect_garbage(store)
        index = store.read_index()
    reports = summary.reports
    return TrainSummary(
        treelets=sum(r.treelet != "seed" for r in reports),
        skipped=summary.skipped,
        failed=tuple(summary.failed),
        remaining=int((index.treelet_states != TreeletState.TRAINED).sum()),
        nodes=int((index.states == NodeState.TRAINED).sum()),
        rays=sum(r.rays for r in reports),
        samples=sum(r.samples for r in reports),
        seconds=time.monotonic() - started,
        peak_bytes=max([peak_memory(), *(r.peak_bytes for r in reports)]),
        reports=tuple(reports),
    )


@dataclass
class _Tally:
    """What has happened so far."""

    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    reports: list[TrainReport] = field(default_factory=list)


def _seed_stage(store: SceneStore, task: TrainTask, place: Workplace, executor: Executor, tally: _Tally) -> None:
    if take_up_seed_result(store):
        _log.info("seed stage: done before the last stop, taken up")
        return
    capacity = seed_capacity(store.read_index(), store.header.band_levels, task.settings)
    nodes, bases = store.allocate(capacity), store.allocate_treelets(capacity + 1)
    job = replace(
        task,
        slots=(nodes.start, nodes.stop),
        base_slot=bases.start,
        # nothing else runs meanwhile
        threads=place.threads,
    )
    executor.submit("seed", run_seed_stage, job, trains=True)
    outcome = executor.next()
    if outcome.error is not None:
        raise outcome.error
    tally.reports.append(outcome.result)
    if not take_up_seed_result(store):
        raise DamagedStoreError(f"scene {store.name}: the seed stage left no result; run the same command again")


def _train_band(
    context: Context, task: TrainTask, band: int, executor: Executor, stop: Callable[[], bool], tally: _Tally
) -> bool:
    """Train what is left of a band; False if it was stopped."""
    store = context.store
    index = _recover(store, store.read_index())
    todo = np.flatnonzero((index.bands == band) & (index.treelet_states != TreeletState.TRAINED))
    todo = _with_parent(index, todo)
    if not len(todo):
        return True
    jobs = _jobs(context, task, index, band, todo)
    running, stopped = 0, False
    while True:
        while not stopped and running < executor.capacity:
            stopped = stop()
            job = None if stopped else next(jobs, None)
            if job is None:
                break
            executor.submit(job.treelet, run_treelet, job, trains=True)
            running += 1
        if not running:
            return not stopped
        outcome = executor.next()
        running -= 1
        if outcome.error is None:
            tally.reports.append(outcome.result)
        elif isinstance(outcome.error, TrainingError):
            tally.failed.append(f"{outcome.key}: {outcome.error}")
        else:
            raise outcome.error
        _commit(store, store.read_index(), outcome.key)


def _jobs(context: Context, task: TrainTask, index: SceneIndex, band: int, todo: Int64) -> Iterator[TrainTask]:
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
        state = TrainingState(context.shape, root, np.empty(0, np.int64), 0, above)
        assigned = dict(
            assign_patches(context, state.arena, context.read_shared(), patches, cut, Octree.from_keys(index.keys))
        )
    for row in todo[np.argsort(index.root_keys[todo])].tolist():
        key = int(index.root_keys[row])
        nodes = int((index.treelets == row).sum())
        slots = store.allocate(nodes + max(GROWTH_ROOM, nodes // 4))
        mine: Patches = patches.select(assigned[key].astype(np.int32))
        yield replace(
            task, treelet=str(NodeId.from_key(key)), patches=mine, slots=(slots.start, slots.stop),
            base_slot=store.allocate_treelets(1).start,
        )  # fmt: skip


def _band_zero(context: Context, patches: Patches, bottom: int, index: SceneIndex) -> Int64:
    """Patches of the first treelet: what its seed-stage features show decides, as the parent does for the others."""
    row = int(np.flatnonzero(index.root_keys == 0)[0])
    root = NodeId(0, 0, 0, 0)
    from infnerf_tiles.training.state import ResidentNodes
    from infnerf_tiles.training.surroundings import start_base, warm_start

    keys = index.keys[index.treelets == row]
    state = TrainingState(context.shape, root, keys, len(keys), ResidentNodes.none(context.shape))
    filled = warm_start(context, index, state)
    if not filled.any():
        return np.arange(patches.count)
    start_base(context, index, row, state)
    state.dense_grids[0] = 1
    state.relink()
    cut = BandCut(top=0, bottom=bottom, root_keys=np.zeros(1, np.int64))
    octree = Octree.from_keys(index.keys)
    shown = assign_patches(context, state.arena, context.read_shared(), patches, cut, octree)[0]
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


__all__ = ["TrainSummary", "scene_dataset", "train"]
