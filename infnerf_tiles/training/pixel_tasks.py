"""The tasks that bring pixels to treelets: say which patches of some photos go where, then decode them and cut them up.

Both are plain functions of one frozen argument, one per chunk of photos, and touch nothing but the scene's scratch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.assignment import BandCut, assign_patches
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixel_store import PATCH_BYTES, read_assignment, write_assignment, write_pixels
from infnerf_tiles.training.pixels import PATCH, Patches, PixelSet, all_patches
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.surroundings import read_surroundings, start_base, warm_start
from infnerf_tiles.training.tasks import Progress, TrainTask, open_context

CHUNK_BYTES = 32 << 20
"""Patches of one chunk of photos, unless a single photo has more."""


@dataclass(frozen=True, kw_only=True)
class PixelTask:
    """A chunk of photos and a band. base: where scene, photos and settings are."""

    base: TrainTask
    band: int
    chunk: int
    photos: tuple[int, ...]
    """Rows of the photos, ascending."""
    roots: Int64 = field(repr=False)
    """int64 [k], sorted root keys of the treelets that get pixels."""
    everything: bool = False
    """Whether all patches go to the first treelet, whatever it shows."""


def chunk_photos(cameras: PosedCameras, photos: Sequence[int]) -> list[tuple[int, ...]]:
    """The photos cut into runs whose patches take up to CHUNK_BYTES, at least one photo each."""
    chunks: list[tuple[int, ...]] = []
    run: list[int] = []
    size = 0
    bytes_of = [_photo_bytes(c.width, c.height) for c in cameras.cameras]
    for photo in photos:
        own = bytes_of[int(cameras.camera_index[photo])]
        if run and size + own > CHUNK_BYTES:
            chunks.append(tuple(run))
            run, size = [], 0
        run.append(photo)
        size += own
    return [*chunks, tuple(run)] if run else chunks


def _photo_bytes(width: int, height: int) -> int:
    levels = ((width >> p, height >> p) for p in range(num_pyramid_levels(width)))
    return sum(-(-w // PATCH) * -(-h // PATCH) for w, h in levels) * PATCH_BYTES


def assign_photos(task: PixelTask, progress: Progress | None = None) -> dict[int, int]:
    """Say which patches of the photos go to which treelet; returns how many, by root key (none are left out)."""
    del progress
    set_threads(task.base.threads)
    with SceneStore.open(task.base.scene, "r+", sweep=False) as store:
        context = open_context(task.base, store)
        patches = all_patches(context.photos.cameras, task.photos)
        assigned: dict[int, Patches]
        if task.everything:
            assigned = {int(task.roots[0]): patches}
        else:
            index = store.read_index()
            levels = store.header.band_levels
            bottom = levels[task.band + 1] - 1 if task.band + 1 < len(levels) else store.header.max_level
            cut = BandCut(top=levels[task.band], bottom=bottom, root_keys=task.roots)
            arena, shared = _arena_above(context, index, task), context.read_shared()
            shared.to(arena.device)
            found = assign_patches(context, arena, shared, patches, cut, Octree.from_keys(index.keys))
            assigned = {key: patches.select(rows.astype(np.int32)) for key, rows in found.items() if len(rows)}
        write_assignment(store, task.band, task.chunk, assigned)
    return {key: mine.count for key, mine in assigned.items()}


def _arena_above(context: Context, index: SceneIndex, task: PixelTask) -> Arena:
    """What decides where rays end: the committed bands above; for the first band what the seed stage left."""
    root = NodeId(0, 0, 0, 0)
    device = chosen_device(context.settings.training.device)
    if task.band:
        above = read_surroundings(context, index, root, task.band)
        return TrainingState(context.shape, root, np.empty(0, np.int64), 0, above, device=device).arena
    row = int(np.flatnonzero(index.root_keys == 0)[0])
    keys = index.keys[index.treelets == row]
    state = TrainingState(context.shape, root, keys, len(keys), ResidentNodes.none(context.shape), device=device)
    warm_start(context, index, state)
    start_base(context, index, row, state)
    state.dense_grids[0] = 1
    state.relink()
    return state.arena


def cut_photos(task: PixelTask, progress: Progress | None = None) -> int:
    """Decode the photos one at a time and write the treelets' patches; returns how many were written."""
    del progress
    with SceneStore.open(task.base.scene, "r+", sweep=False) as store:
        context = open_context(task.base, store)
        assigned = {
            key: patches
            for key, patches in read_assignment(store, task.band, task.chunk).items()
            if np.isin(key, task.roots)
        }
        if not assigned:
            return 0
        # all treelets' patches side by side, so that a photo is decoded once
        patches = Patches(
            **{
                name: np.concatenate([getattr(p, name) for p in assigned.values()])
                for name in ("photo", "pyramid", "column", "row")
            }
        )
        pixels = PixelSet.gather(patches, context.read_pyramid, keep_all=True)
        starts = np.concatenate([[0], np.cumsum([p.count for p in assigned.values()])])
        for key, (first, last) in zip(assigned, itertools.pairwise(starts.tolist()), strict=True):
            part = slice(first, last)
            keep = np.flatnonzero(pixels.valid[part].any(axis=(1, 2)))
            mine = PixelSet(assigned[key].select(keep), pixels.rgb[part][keep], pixels.valid[part][keep])
            write_pixels(store, str(NodeId.from_key(key)), task.chunk, mine)
    return patches.count
