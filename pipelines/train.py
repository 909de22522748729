"""train: the seed stage, then band after band, every treelet after its parent; goes on where it was stopped."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.allowance import forget_capacities, node_limit
from infnerf_tiles.pipelines.appearance import fit_missing, fit_on
from infnerf_tiles.pipelines.bands import BandTraining, Tally, scratch_budget
from infnerf_tiles.pipelines.checks import check_same, checked_context, plan_redo
from infnerf_tiles.pipelines.cluster import Executor, Workplace, open_executor
from infnerf_tiles.pipelines.partition import scene_partition
from infnerf_tiles.pipelines.plan import Budgets, train_needs
from infnerf_tiles.pipelines.recovery import take_up_finished
from infnerf_tiles.pipelines.unusable import UnusablePhotos

from infnerf_tiles.arrays import Int64
from infnerf_tiles.data.records import Rejected
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.geometry.node_id import NodeId, key_levels, parent_keys
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.garbage import collect_garbage
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import read_all
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context, scene_dataset
from infnerf_tiles.training.inputs import photo_places, scene_settings
from infnerf_tiles.training.pixel_store import drop_all_pixels
from infnerf_tiles.training.redo import finish_redo
from infnerf_tiles.training.renewal import finish_renewal
from infnerf_tiles.training.seed_result import take_up_seed_result
from infnerf_tiles.training.tasks import (
    Progress,
    TrainReport,
    TrainTask,
    run_seed_stage,
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
    photo_pixels: int = 0
    """Pixels of all training photos, without their pyramids."""
    treelet_pixels: int = 0
    """Pixels that the trained treelets were trained on, in this call and before; a pixel counts once per treelet."""
    unusable: tuple[Rejected, ...] = ()
    """Photos that were left out because they cannot be decoded, of those that this call opened."""
    reports: tuple[TrainReport, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        names = (
            "treelets", "skipped", "remaining", "nodes", "rays", "samples", "seconds", "peak_bytes", "photo_pixels",
            "treelet_pixels",
        )  # fmt: skip
        unusable = [{"photo": photo.name, "reason": photo.reason} for photo in self.unusable]
        return {**{name: getattr(self, name) for name in names}, "failed": list(self.failed), "unusable": unusable}


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
    budgets: Budgets | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = _log.info,
) -> TrainSummary:
    """Train what is not yet trained.

    data, images: where the photos are now, if not where they were at build. settings: other training settings than the
    scene's (None keeps them). redo: root of a treelet to train again, with what hangs below it. accept_changes: go on
    although settings or photos differ from those of the trained treelets. place: where to run (default: this process,
    with `threads` processor threads). budgets: of each process's memory and of the disk for pixels in waiting (default:
    no limit, and half of what is free). stop: asked before each treelet; those in hand are finished. say: told where
    the work can be watched.

    A treelet that fails with NaN, or whose worker dies again and again, is left out; the others go on. So is a photo
    that cannot be decoded; PhotoError if those are too many. Finished treelets become part of the scene many at a time
    (`commits`); what a kill left uncommitted is taken up by the next call.
    """
    started = time.monotonic()
    place = place or Workplace(threads=threads)
    budgets = budgets or Budgets()
    with SceneStore.open(scene, "r+") as store, store.exclusive():
        store.check_built()
        if any([finish_redo(store), finish_renewal(store)]):
            forget_capacities(store)
        if not store.has_small("decoder") and take_up_seed_result(store):
            _log.info("seed stage: done before the last stop, taken up")
        folder, photo_folder = photo_places(store.header, data, images)
        task = TrainTask(
            scene=scene if "://" in scene else str(Path(scene).resolve()),
            dataset=folder,
            images=photo_folder,
            settings=settings or scene_settings(store.header),
            threads=place.threads_per_task,
        )
        if place.scheduler is None:  # a cluster's workers may have the device that is not here
            chosen_device(task.settings.training.device)
        photos = scene_dataset(task.settings, Path(task.dataset), None if task.images is None else Path(task.images))
        context = checked_context(store, photos, task.settings, accept_changes)
        photos = context.photos
        summary = Tally(unusable=UnusablePhotos(photos.names, len(context.training_photos)))
        check_same(context, accept_changes)
        index = store.read_index()
        left = (index.treelet_states != TreeletState.TRAINED).any() or not store.has_small("decoder")
        summary.skipped = int((index.treelet_states == TreeletState.TRAINED).sum())
        if left or redo is not None:
            if budgets != Budgets():
                found = scene_partition(store, photos, task.settings)
                task = replace(task, pixel_bytes=train_needs(found, budgets, place.threads_per_task).pixel_bytes)
            with open_executor(place, progress) as executor:
                if redo is not None:
                    # gives up what is trained, so not before everything that may refuse has agreed
                    plan_redo(store, redo)
                    forget_capacities(store)
                    index = store.read_index()
                    summary.skipped = int((index.treelet_states == TreeletState.TRAINED).sum())
                if executor.dashboard:
                    say(f"dashboard: {executor.dashboard}")
                if not store.has_small("decoder"):
                    _seed_stage(store, task, place, executor, summary)
                drop_all_pixels(store)  # an interrupted training's
                room = scratch_budget(str(store.data.local_root) if store.data.local_root else None, budgets.scratch)
                try:
                    for band in range(len(store.header.band_levels)):
                        if _shows_something(store.read_index(), band):
                            fit_missing(context, store, fit_on(executor, task))
                        if stop() or not _train_band(context, task, band, executor, stop, room, summary):
                            break
                finally:
                    drop_all_pixels(store)
        collect_garbage(store)
        index = store.read_index()
        given = _pixels_given(store, index)
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
        photo_pixels=_photo_pixels(context),
        treelet_pixels=given,
        unusable=summary.unusable.listed(),
        reports=tuple(reports),
    )


def _shows_something(index: SceneIndex, band: int) -> bool:
    """Whether colour transforms can be fitted before this band: later ones follow the bands above; the first one has
    something to go by only where photos came to a trained scene."""
    left = (index.bands == band) & (index.treelet_states != TreeletState.TRAINED)
    return bool((index.states == NodeState.TRAINED).any() and (band > 0 or left.any()))


def _photo_pixels(context: Context) -> int:
    cameras = [context.photos.cameras.camera(photo) for photo in context.training_photos]
    return sum(camera.width * camera.height for camera in cameras)


def _pixels_given(store: SceneStore, index: SceneIndex) -> int:
    trained = {
        str(NodeId.from_key(int(key))) for key in index.root_keys[index.treelet_states == TreeletState.TRAINED]
    }
    return sum(int(r.facts.get("pixels", 0)) for r in read_all(store) if r.treelet in trained)


def _seed_stage(store: SceneStore, task: TrainTask, place: Workplace, executor: Executor, tally: Tally) -> None:
    capacity = seed_capacity(store.read_index(), store.header.band_levels, task.settings, node_limit(store))
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
    tally.unusable.add(outcome.result.unusable)
    tally.reports.append(outcome.result)
    if not take_up_seed_result(store):
        raise DamagedStoreError(f"scene {store.name}: the seed stage left no result; run the same command again")


def _train_band(
    context: Context,
    task: TrainTask,
    band: int,
    executor: Executor,
    stop: Callable[[], bool],
    scratch: int,
    tally: Tally,
) -> bool:
    """Train what is left of a band; False if it was stopped."""
    store = context.store
    index = take_up_finished(store)
    todo = np.flatnonzero((index.bands == band) & (index.treelet_states != TreeletState.TRAINED))
    todo = _with_parent(index, todo)
    if not len(todo):
        return True
    training = BandTraining(
        context, task, index, band, todo, executor=executor, stop=stop, scratch=scratch, tally=tally
    )
    return training.run()


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
