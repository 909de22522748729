"""The two tasks of training: the seed stage of a scene and the training of one treelet.

Each is a plain function of one frozen argument that opens what it needs, writes rows and a record, and returns a few
numbers, so that a pipeline can call it here, in another process or on another machine.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import DatasetError, NonFiniteError, PhotoError
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, key_levels
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.documents import fingerprint
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord, write_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.scratch import drop_checkpoint, read_checkpoint, write_checkpoint
from infnerf_tiles.training import checkpoint
from infnerf_tiles.training.context import Context, PhotoReader, num_readers, scene_photos
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.growth import MIN_PHOTOS
from infnerf_tiles.training.kept import facts_of
from infnerf_tiles.training.pixel_store import RESIDENT_PATCH_BYTES, StreamedPixels, open_pixels
from infnerf_tiles.training.pixels import PixelSet
from infnerf_tiles.training.result import TrainedTreelet, finish
from infnerf_tiles.training.seed import MAX_PATCHES, seed_nodes, seed_patches
from infnerf_tiles.training.seed_result import SeedSlots, write_seed_result
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.training.surroundings import read_surroundings, start_base, start_occupancy, warm_start
from infnerf_tiles.training.trainer import Trainer, psnr_of

_log = logging.getLogger(__name__)

Progress = Callable[[str, float, float], None]
"""(treelet, share done, PSNR in dB) while a training runs."""

GROWTH_ROOM = 64
"""Free slots for growth in every training."""
_KEEPING = 20.0
"""Seconds of training for each that keeping its state takes, at least: states of gigabytes take a while."""
_WARM = 0.5
"""Share of its nodes with features from the seed stage at which a treelet starts slowly, so as not to undo them."""


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """What a training task needs to know; everything else it reads itself."""

    scene: str
    """Path or URL of the scene."""
    dataset: str
    """Folder of the data set."""
    images: str | None = None
    """Folder of the photos, if not the data set's own."""
    settings: Settings
    treelet: str = "L0/0-0-0"
    """Root of the treelet."""
    pixel_bytes: int | None = None
    """Most memory for the pixels that a treelet is trained on; more are streamed, in the seed stage thinned. None: no
    limit."""
    slots: tuple[int, int] = (0, 0)
    """First and one-past-last node slot that the task may write."""
    base_slot: int = -1
    """Its base slot; for the seed stage the first of as many as it has node slots, and one more."""
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a task did, in a few numbers."""

    treelet: str
    nodes: int
    steps: int
    seconds: float
    psnr: float | None
    """dB on its training pixels; None if it had none."""
    rays: int
    samples: int
    pixels: int
    peak_bytes: int
    unusable: Mapping[int, str] = field(default_factory=dict)
    """Photos (rows) that the seed stage left out because they cannot be decoded, with the reason."""


def inputs_fingerprint(context: Context) -> str:
    """Fingerprint of poses, intrinsics, photo names, sizes and files: what a trained treelet depends on besides
    settings."""
    return facts_of(context.photos).fingerprint(context.photos)


def settings_fingerprint(settings: Settings) -> str:
    """Fingerprint of the settings that change what is learned."""
    document = settings.model_dump(mode="json")
    document.pop("rendering", None)
    # where it is computed is no part of what is learned
    document["training"].pop("device")
    return fingerprint(document)


def open_context(task: TrainTask, store: SceneStore) -> Context:
    """The task's scene and photos."""
    images = None if task.images is None else Path(task.images)
    return Context(store, scene_photos(store, task.settings, Path(task.dataset), images), task.settings)


def seed_capacity(index: SceneIndex, band_levels: tuple[int, ...], settings: Settings, node_limit: int) -> int:
    """Node slots that the seed stage may use; it needs one base slot more than that.

    node_limit: most nodes that the scene may have; the sampled regions get their share of what is left for growth.
    """
    most = settings.training.seed_nodes
    count = len(seed_nodes(index.keys, band_levels, most, settings.training.seed))
    return count + seed_room(count, index.num_nodes, node_limit, most)


def seed_room(count: int, nodes: int, node_limit: int, most: int) -> int:
    """Nodes that the seed stage may grow, which samples `count` of `nodes` nodes and aims at `most`."""
    room = max(node_limit - nodes, 0) * count // max(nodes, 1)
    return min(room, max(GROWTH_ROOM, most - count, count // 4))


def treelet_capacity(nodes: int, room: int | None = None) -> int:
    """Most node slots of a treelet that starts with that many nodes; at most `room` of them to grow into."""
    most = max(GROWTH_ROOM, nodes // 4)
    return nodes + (most if room is None else min(most, room))


def run_seed_stage(task: TrainTask, progress: Progress | None = None) -> TrainReport:
    """Train decoder and appearance jointly with a sample of the octree, and leave the features as a warm start.

    Writes the warm rows into the task's slots and leaves the rest to `take_up_seed_result`, which the caller calls.
    Goes on from a checkpoint. Errors: NonFiniteError, PhotoError, StoreError, DatasetError if masks leave no pixel.
    """
    threads = set_threads(task.threads)
    started = time.monotonic()
    with SceneStore.open(task.scene, "r+", sweep=False) as store:
        context = open_context(task, store)
        index, header, s = store.read_index(), store.header, task.settings
        keys = seed_nodes(index.keys, header.band_levels, s.training.seed_nodes, s.training.seed)
        top = NodeId(0, 0, 0, 0)
        capacity = task.slots[1] - task.slots[0]
        device = chosen_device(s.training.device)
        state = TrainingState(context.shape, top, keys, capacity, ResidentNodes.none(context.shape), device=device)
        state.start_occupancy(
            start_occupancy(context, state, np.zeros(len(keys), np.bool_)), 2 * s.training.occupancy_threshold
        )
        most = MAX_PATCHES if task.pixel_bytes is None else min(MAX_PATCHES, task.pixel_bytes // RESIDENT_PATCH_BYTES)
        reader = PhotoReader(context)
        # a budget counts one photo
        readers = 1 if task.pixel_bytes is not None else num_readers(context.photos, threads)
        pixels = PixelSet.gather(seed_patches(context, keys, index.keys, most), reader.read_pyramid, readers)
        if reader.unusable and not pixels.num_pixels:
            raise PhotoError(
                f"photos: expected some that can be decoded, got none among the {len(reader.unusable)} of the seed "
                f"stage, such as {next(iter(reader.unusable.values()))}"
            )
        if not pixels.num_pixels:
            raise DatasetError(
                f"{context.photos.root}: expected pixels to train on, got none that may be used in the "
                f"{len(context.training_photos)} training photos; look at the masks, where nonzero means use; when "
                "they are mended, go on with --accept-changes"
            )
        shared = context.new_shared()
        rays = int(s.training.passes * s.training.seed_share * pixels.num_pixels)
        frame = Frame(
            root=header.root, march=context.march(s.training.step_size), max_own_level=header.max_level,
            can_go_below=False,
        )  # fmt: skip
        trainer = _trainer(context, frame, state, shared, pixels, rays, warm=False)
        _run(context, trainer, "seed", progress, {})
        trained = finish(trainer, s.training.occupancy_threshold, np.empty(0, np.int64))
        slots = SeedSlots(nodes=range(*task.slots), bases=range(task.base_slot, task.base_slot + capacity + 1))
        write_seed_result(store, trained, trainer, slots)
        drop_checkpoint(store, str(top))
        return replace(_report("seed", trainer, trained, started), unusable=reader.unusable)


def run_treelet(task: TrainTask, progress: Progress | None = None) -> TrainReport:
    """Train one treelet on its patches and write its rows and its journal record; the caller commits the index.

    Goes on from a checkpoint. A non-finite loss leaves a record that says so and raises NonFiniteError.
    """
    set_threads(task.threads)
    started = time.monotonic()
    with SceneStore.open(task.scene, "r+", sweep=False) as store:
        context = open_context(task, store)
        index, header, s = store.read_index(), store.header, task.settings
        top = NodeId.parse(task.treelet)
        row = int(np.flatnonzero(index.root_keys == top.key)[0])
        band = int(index.bands[row])
        bands = header.band_levels
        bottom = bands[band + 1] - 1 if band + 1 < len(bands) else header.max_level
        keys = index.keys[index.treelets == row]
        capacity = task.slots[1] - task.slots[0]
        device = chosen_device(s.training.device)
        around = read_surroundings(context, index, top, band)
        state = TrainingState(context.shape, top, keys, capacity, around, device=device)
        del around  # the state has its own copy
        filled = warm_start(context, index, state)
        start_base(context, index, row, state)
        cells = start_occupancy(context, state, filled)
        # trained before, now again for photos that have come since
        again = index.states[index.treelets == row] == NodeState.TRAINED
        if not context.has_surface_points:  # then nothing tells where those see something
            cells |= again[:, None, None, None]
        state.start_occupancy(cells, 2 * s.training.occupancy_threshold)
        seed = (s.training.seed, top.key)
        # a step on the device draws from what was put there once
        limit = task.pixel_bytes if device.type == "cpu" else None
        pixels = open_pixels(store, str(top), limit, s.training.passes, seed)
        # what the seed stage knew nothing of, regions beyond its sample and photos that came later, takes all passes
        covered = 0.0 if again.any() else float(filled.mean())
        rays = int(s.training.passes * (1.0 - s.training.seed_share * covered) * pixels.num_pixels)
        frame = Frame(
            root=header.root, march=context.march(s.training.step_size), max_own_level=bottom,
            can_go_below=bottom < header.max_level,
        )  # fmt: skip
        trainer = _trainer(context, frame, state, context.read_shared(), pixels, rays, warm=covered >= _WARM)
        record = JournalRecord(
            treelet=str(top), status=TreeletState.FAILED, seconds=0.0, peak_bytes=0, steps=0,
            settings_fingerprint=settings_fingerprint(s), inputs_fingerprint=inputs_fingerprint(context),
        )  # fmt: skip
        try:
            _run(context, trainer, str(top), progress, _stands_on(index, top, trainer.shared))
            trained = finish(trainer, s.training.occupancy_threshold, _held(index, row))
            # what it asks for below itself counts as its growth
            wanted = trained.want_children[: max(capacity - len(trained.keys), 0)]
        except NonFiniteError as error:
            seconds = time.monotonic() - started
            write_record(store, replace(record, message=str(error), seconds=seconds, steps=trainer.step))
            raise
        slots = np.arange(task.slots[0], task.slots[0] + len(trained.keys), dtype=np.int32)
        for k, slot in enumerate(slots.tolist()):
            store.write_node(slot, trained.tables[k], trained.occupancy[k])
        store.write_base(task.base_slot, trained.base)
        report = _report(str(top), trainer, trained, started)
        write_record(
            store,
            replace(
                record, status=TreeletState.TRAINED, seconds=report.seconds, peak_bytes=report.peak_bytes,
                steps=report.steps, psnr=report.psnr, keys=trained.keys, slots=slots, lambda_max=trained.lambda_max,
                want_children=wanted, base_slot=task.base_slot,
                facts={"rays": report.rays, "samples": report.samples, "pixels": pixels.num_pixels},
            ),
        )  # fmt: skip
        drop_checkpoint(store, str(top))
        return report


def _trainer(
    context: Context,
    frame: Frame,
    state: TrainingState,
    shared: Shared,
    pixels: PixelSet | StreamedPixels,
    rays: int,
    *,
    warm: bool,
) -> Trainer:
    settings = context.settings.training
    return Trainer(
        frame=frame,
        state=state,
        shared=shared,
        pixels=pixels,
        cameras=context.photos.cameras,
        settings=settings,
        total_rays=rays,
        seed=(settings.seed, state.top.key, int(shared.trainable)),
        grows=len(context.training_photos) >= MIN_PHOTOS,
        min_points=context.settings.octree.min_points,
        warm=warm,
        depth=DepthTargets.of_treelet(context, state.top),
    )


def _run(
    context: Context, trainer: Trainer, name: str, progress: Progress | None, stands_on: Mapping[str, str | int]
) -> None:
    """Run to the end from the last checkpoint, if there is one of this very stage; keep new ones on the way.

    stands_on: what this training takes as given, by which a checkpoint that stands on something else is known.
    """
    store, settings = context.store, context.settings.training
    treelet = str(trainer.state.top)
    stage = {
        "stage": name,
        "settings": settings_fingerprint(context.settings),
        "inputs": inputs_fingerprint(context),
        **stands_on,
    }
    found = read_checkpoint(store, treelet)
    if found is not None and all(found.meta.get(k) == v for k, v in stage.items()):
        try:
            checkpoint.restore(trainer, found.arrays, found.meta)
            _log.info("treelet %s: goes on at step %d", name, trainer.step)
        except ValueError as error:  # its nodes changed since: the seed stage died between its index and its decoder
            _log.warning("%s; it starts over", error)
    last, pause = time.monotonic(), settings.checkpoint_seconds

    def on_step(now: Trainer) -> None:
        nonlocal last, pause
        now.pixels.seek(now.progress)
        if progress is not None:
            progress(name, now.progress, psnr_of(now.recent_error))
        began = time.monotonic()
        if began - last >= pause:
            arrays, counters = checkpoint.save(now)
            write_checkpoint(store, treelet, arrays, {**stage, **counters})
            last = time.monotonic()
            pause = max(settings.checkpoint_seconds, _KEEPING * (last - began))

    if pixels_missing := trainer.pixels.num_pixels == 0:
        _log.warning("treelet %s: no photo shows it; it keeps what it starts from", name)
    if not pixels_missing:
        trainer.pixels.seek(trainer.progress)
        trainer.run(on_step)


def _stands_on(index: SceneIndex, top: NodeId, shared: Shared) -> dict[str, str | int]:
    """The decoder that a treelet is trained with and the base slot of its parent, which no other training ever has."""
    digest = hashlib.sha256()
    for name, array in sorted(shared.decoder.to_arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    above = -1
    if top.level:
        parent = index.treelets[np.searchsorted(index.keys, top.parent.key)]
        above = int(index.base_slots[parent])
    return {"decoder": digest.hexdigest(), "parent": above}


def _held(index: SceneIndex, row: int) -> Int64:
    """Nodes of the treelet below which treelets of the next band hang."""
    level = int(key_levels(index.root_keys[row : row + 1])[0])
    roots = index.root_keys
    levels = key_levels(roots)
    below = roots[levels > level]
    if not len(below):
        return np.empty(0, np.int64)
    parents = ancestor_keys(below, key_levels(below) - 1)
    mine = index.keys[index.treelets == row]
    return np.intersect1d(parents, mine)


def _report(name: str, trainer: Trainer, trained: TrainedTreelet, started: float) -> TrainReport:
    return TrainReport(
        treelet=name,
        nodes=len(trained.keys),
        steps=trainer.step,
        seconds=time.monotonic() - started,
        psnr=psnr_of(trainer.recent_error) if trainer.step else None,
        rays=trainer.rays_done,
        samples=trainer.samples_done,
        pixels=trainer.pixels.num_pixels,
        peak_bytes=peak_memory(),
    )
