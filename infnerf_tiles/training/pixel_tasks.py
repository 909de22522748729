"""The tasks that bring pixels to treelets: say which patches of some photos go where, then decode them and cut them up.

Both are plain functions of one frozen argument, one per chunk of photos, and touch nothing but the scene's scratch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from infnerf_tiles.arrays import Int64
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.assignment import BandCut, assign_patches
from infnerf_tiles.training.context import Context, PhotoReader
from infnerf_tiles.training.pixel_store import PixelWriter, read_assignment, write_assignment
from infnerf_tiles.training.pixels import Patches, all_patches
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.surroundings import read_surroundings, start_base, warm_start
from infnerf_tiles.training.tasks import Progress, TrainTask, open_context


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


@dataclass(frozen=True, kw_only=True)
class AssignTask:
    """Chunks of photos of one scene and band: they are looked at one after the other in the same surroundings."""

    chunks: tuple[PixelTask, ...]


@dataclass(frozen=True, kw_only=True)
class CutReport:
    """patches: how many were looked at. unusable: photos (rows) that were left out, with the reason."""

    patches: int
    unusable: Mapping[int, str]


def assign_photos(task: AssignTask, progress: Progress | None = None) -> dict[int, dict[int, int]]:
    """Say which patches of the photos go to which treelet; returns how many, by chunk and root key (none are left
    out)."""
    del progress
    base, band = task.chunks[0].base, task.chunks[0].band
    set_threads(base.threads)
    counts: dict[int, dict[int, int]] = {}
    with SceneStore.open(base.scene, "r+", sweep=False) as store:
        context, index, levels = open_context(base, store), store.read_index(), store.header.band_levels
        octree = Octree.from_keys(index.keys)
        bottom = levels[band + 1] - 1 if band + 1 < len(levels) else store.header.max_level
        if not all(chunk.everything for chunk in task.chunks):
            arena, shared = _arena_above(context, index, band), context.read_shared()
            shared.to(arena.device)
        for chunk in task.chunks:
            patches = all_patches(context.photos.cameras, chunk.photos)
            assigned: dict[int, Patches]
            if chunk.everything:
                assigned = {int(chunk.roots[0]): patches}
            else:
                cut = BandCut(top=levels[band], bottom=bottom, root_keys=chunk.roots)
                found = assign_patches(context, arena, shared, patches, cut, octree)
                assigned = {key: patches.select(rows.astype(np.int32)) for key, rows in found.items() if len(rows)}
            write_assignment(store, band, chunk.chunk, assigned)
            counts[chunk.chunk] = {key: mine.count for key, mine in assigned.items()}
    return counts


def _arena_above(context: Context, index: SceneIndex, band: int) -> Arena:
    """What decides where rays end: the committed bands above; for the first band what the seed stage left."""
    root = NodeId(0, 0, 0, 0)
    device = chosen_device(context.settings.training.device)
    if band:
        above = read_surroundings(context, index, root, band)
        return TrainingState(context.shape, root, np.empty(0, np.int64), 0, above, device=device).arena
    row = int(np.flatnonzero(index.root_keys == 0)[0])
    keys = index.keys[index.treelets == row]
    state = TrainingState(context.shape, root, keys, len(keys), ResidentNodes.none(context.shape), device=device)
    warm_start(context, index, state)
    start_base(context, index, row, state)
    state.dense_grids[0] = 1
    state.relink()
    return state.arena


def cut_photos(task: PixelTask, progress: Progress | None = None) -> CutReport:
    """Decode the photos one at a time and write the treelets' patches. PhotoError if a photo's file is not the expected
    one; one that cannot be decoded is left out."""
    del progress
    with SceneStore.open(task.base.scene, "r+", sweep=False) as store:
        context = open_context(task.base, store)
        assigned = {
            key: patches
            for key, patches in read_assignment(store, task.band, task.chunk).items()
            if np.isin(key, task.roots)
        }
        writers = {key: PixelWriter(store, str(NodeId.from_key(key)), task.chunk) for key in assigned}
        reader = PhotoReader(context)
        for photo in task.photos:
            seen = {key: np.flatnonzero(patches.photo == photo) for key, patches in assigned.items()}
            if not any(len(rows) for rows in seen.values()):
                continue
            levels = reader.read_pyramid(photo)
            if levels is None:
                continue
            for key, rows in seen.items():
                writers[key].add(assigned[key].select(rows), levels)
        for writer in writers.values():
            writer.close()
    return CutReport(patches=sum(patches.count for patches in assigned.values()), unusable=reader.unusable)
