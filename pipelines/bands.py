"""Training one band: assign photos to treelets, bring their pixels wave by wave, train each treelet that is ready."""

import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from infnerf_tiles.pipelines.allowance import capacities, forget_capacities
from infnerf_tiles.pipelines.cluster import Executor, Outcome
from infnerf_tiles.pipelines.commits import Commits
from infnerf_tiles.pipelines.unusable import UnusablePhotos

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import BudgetError, TrainingError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.training.assignment import assignment_margin
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixel_store import PATCH_BYTES, chunk_photos, drop_assignments, drop_pixels
from infnerf_tiles.training.pixel_tasks import AssignTask, PixelTask, assign_photos, cut_photos
from infnerf_tiles.training.tasks import TrainReport, TrainTask, run_treelet
from infnerf_tiles.training.views import photos_in_reach
from infnerf_tiles.units import format_bytes

_log = logging.getLogger(__name__)

_DEFAULT_SCRATCH_SHARE = 0.5
_PIXELS, _TRAINING = 0, 1
"""Priorities: a treelet that is ready goes before the pixels of the next wave."""
_ASSIGNMENTS_EACH = 4
"""Assignment tasks per worker: each reads the surroundings once, and they end at about the same time."""


@dataclass
class Tally:
    """What has happened so far in a whole training."""

    unusable: UnusablePhotos
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    reports: list[TrainReport] = field(default_factory=list)


@dataclass
class _Wave:
    """Neighbouring treelets whose pixels lie in the scratch at the same time."""

    keys: list[int]
    chunks: int = 0
    """Chunks of photos that are still to be cut."""
    left: int = 0
    """Treelets that are not trained yet."""


def scratch_budget(store_folder: str | None, asked: int | None) -> int:
    """Bytes for the pixels of treelets in waiting: what was asked for, else half of what the disk has left."""
    if asked is not None:
        return asked
    if store_folder is None:
        return 1 << 40
    return int(shutil.disk_usage(store_folder).free * _DEFAULT_SCRATCH_SHARE)


def cut_waves(keys: Sequence[int], patches: Mapping[int, int], scratch: int) -> list[list[int]]:
    """Treelets (root keys, neighbours next to each other) in waves of at most half the scratch each.

    Half, because one wave is decoded while the one before it is trained. BudgetError, naming the treelet, if one alone
    is too large.
    """
    waves: list[list[int]] = []
    size = scratch
    for key in keys:
        own = patches.get(key, 0) * PATCH_BYTES
        if own > scratch // 2:
            raise BudgetError(
                f"treelet {NodeId.from_key(key)}: its pixels take {format_bytes(own)}, more than half of --scratch "
                f"{format_bytes(scratch)}; the nearest that fits is --scratch {2 * own}"
            )
        if size + own > scratch // 2:
            waves.append([])
            size = 0
        waves[-1].append(key)
        size += own
    return waves


def _in_reach(context: Context, roots: Int64, chunks: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The chunks without the photos that none of the treelets (root keys) can get anything from.

    Their patches go to others, and what a treelet gets of a photo depends on that photo alone. The chunks keep their
    numbers and bounds, so that a treelet's pixels are stored and drawn as if all photos were looked at.
    """
    photos = np.array([photo for chunk in chunks for photo in chunk], np.int64)
    seen = photos_in_reach(context, photos, roots, assignment_margin(context))
    kept = set(photos[seen].tolist())
    _log.info("%d of %d photos may see the %d treelets that are left of the band", len(kept), len(photos), len(roots))
    return [tuple(photo for photo in chunk if photo in kept) for chunk in chunks]


class BandTraining:
    """The treelets of one band that are still to be trained; `run` does it."""

    def __init__(
        self,
        context: Context,
        task: TrainTask,
        index: SceneIndex,
        band: int,
        todo: Int64,
        *,
        executor: Executor,
        stop: Callable[[], bool],
        scratch: int,
        tally: Tally,
    ) -> None:
        """todo: rows of the treelets. scratch: bytes."""
        self._context, self._task, self._index, self._band = context, task, index, band
        self._todo: Int64 = np.sort(index.root_keys[todo])
        # of all treelets of the band, whatever is trained already: what one gets depends on what the others get
        self._roots: Int64 = np.sort(index.root_keys[index.bands == band])
        self._capacity = capacities(context.store, index, band)
        self._executor, self._stop, self._commits = executor, stop, Commits(context.store)
        self._scratch, self._tally = scratch, tally
        self._chunks = chunk_photos(context.photos.cameras, context.training_photos)
        if len(self._todo) < len(self._roots):
            self._chunks = _in_reach(context, self._todo, self._chunks)
        self._counts: dict[int, dict[int, int]] = {}  # chunk -> root key -> patches
        self._live: list[_Wave] = []
        self._ready: deque[int] = deque()
        self._wave_of: dict[int, _Wave] = {}
        self._outstanding = 0
        self._running = 0
        self._stopped = False

    def run(self) -> bool:
        """Train everything; False if it was stopped before."""
        self._assign(everything=False)
        if self._band == 0 and not any(self._counts.values()):
            # a seed stage that was too short to show anything must not leave the scene without pixels for good
            self._assign(everything=True)
        total: dict[int, int] = {}
        for counts in self._counts.values():
            for key, count in counts.items():
                total[key] = total.get(key, 0) + count
        waves = deque(cut_waves(self._todo.tolist(), total, self._scratch))
        try:
            while True:
                self._hand_in(waves)
                if not self._outstanding or (self._stopped and not self._running):
                    break
                self._take(self._executor.next())
        finally:
            self._commits.flush()
        if not self._stopped:
            drop_assignments(self._context.store, self._band)
            forget_capacities(self._context.store, self._band)
        return not self._stopped

    def _assign(self, *, everything: bool) -> None:
        jobs = [
            self._pixel_task(chunk, photos, self._roots, everything=everything)
            for chunk, photos in enumerate(self._chunks)
            if photos
        ]
        each = -(-len(jobs) // (_ASSIGNMENTS_EACH * self._executor.capacity))
        runs = range(0, len(jobs), max(each, 1))
        for first in runs:
            task = AssignTask(chunks=tuple(jobs[first : first + each]))
            self._executor.submit(f"assign {first}", assign_photos, task, trains=True)
        for _ in runs:
            outcome = self._executor.next()
            if outcome.error is not None:
                raise outcome.error
            self._counts |= outcome.result

    def _hand_in(self, waves: deque[list[int]]) -> None:
        """Submit what can be: treelets whose pixels are there, then the pixels of up to two waves."""
        while self._ready and not self._stopped and self._running < self._executor.capacity:
            self._stopped = self._stop()
            if self._stopped:
                return
            job = self._train_task(self._ready.popleft())
            self._executor.submit(job.treelet, run_treelet, job, trains=True, priority=_TRAINING)
            self._running += 1
            self._outstanding += 1
        while waves and len(self._live) < 2 and not self._stopped:
            wave = _Wave(keys=waves.popleft())
            wave.left = len(wave.keys)
            self._live.append(wave)
            for key in wave.keys:
                self._wave_of[key] = wave
            wanted = set(wave.keys)
            roots = np.array(wave.keys, np.int64)
            for chunk, photos in enumerate(self._chunks):
                if wanted & self._counts.get(chunk, {}).keys():
                    cut = self._pixel_task(chunk, photos, roots)
                    self._executor.submit(f"pixels {wave.keys[0]} {chunk}", cut_photos, cut, trains=False)
                    wave.chunks += 1
                    self._outstanding += 1
            if not wave.chunks:
                self._ready.extend(wave.keys)
                self._hand_in(waves)

    def _take(self, outcome: Outcome) -> None:
        self._outstanding -= 1
        kind, *rest = outcome.key.split()
        if kind == "pixels":
            if outcome.error is not None:
                raise outcome.error
            self._tally.unusable.add(outcome.result.unusable)
            wave = self._wave_of[int(rest[0])]
            wave.chunks -= 1
            if not wave.chunks:
                self._ready.extend(wave.keys)
            return
        self._running -= 1
        key = NodeId.parse(outcome.key).key
        if outcome.error is None:
            self._tally.reports.append(outcome.result)
        elif isinstance(outcome.error, TrainingError):
            self._tally.failed.append(f"{outcome.key}: {outcome.error}")
        else:
            raise outcome.error
        self._commits.add(outcome.key)
        drop_pixels(self._context.store, outcome.key)
        wave = self._wave_of[key]
        wave.left -= 1
        if not wave.left:
            self._live.remove(wave)

    def _pixel_task(
        self, chunk: int, photos: tuple[int, ...], roots: Int64, *, everything: bool = False
    ) -> PixelTask:
        return PixelTask(
            base=self._task, band=self._band, chunk=chunk, photos=photos, roots=roots, everything=everything
        )

    def _train_task(self, key: int) -> TrainTask:
        store = self._context.store
        slots = store.allocate(self._capacity[key])
        return replace(
            self._task, treelet=str(NodeId.from_key(key)), slots=(slots.start, slots.stop),
            base_slot=store.allocate_treelets(1).start,
        )  # fmt: skip
