"""Which trained treelets see some photos: what has to be trained again when photos come or change."""

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Int64
from infnerf_tiles.data.observers import observers
from infnerf_tiles.geometry.node_id import NodeId, decode_keys, encode_keys, key_levels
from infnerf_tiles.geometry.octree import Octree, inside_unit, unit_cells
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.store.index import NodeState, SceneIndex
from infnerf_tiles.training.assignment import BandCut, ending_patches
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixel_store import chunk_photos
from infnerf_tiles.training.pixels import all_patches
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.surroundings import read_surroundings

MIN_PATCHES = 1.0
"""Patches that have to end in a treelet for it to learn from them."""
MIN_POINTS = 3
"""Observations of points in a treelet's cube without which nothing is said to be seen there."""
_SAMPLES_PER_EDGE = 4


def sighted_treelets(context: Context, index: SceneIndex, photos: Int64, *, evidence: Int64, octree: Octree) -> Int64:
    """int64, sorted root keys of the treelets with trained nodes that see training photos (int64[k] rows) anew.

    A treelet sees photos if a patch's worth of their rays ends in it by what the scene shows now, at its levels; or if
    some of their sparse points lie in its cube (without points that count: if its cube is in the image), for the scene
    shows nothing yet where only these photos look. The octree's root sees every photo. evidence: int64, rows of the
    points that count. octree: as it is to become. Children count by themselves: a treelet is complete, whatever its
    ancestors come to be.
    """
    rows = np.unique(index.treelets[index.states == NodeState.TRAINED])
    roots = np.sort(index.root_keys[rows])
    if not len(photos) or not len(roots):
        return np.empty(0, np.int64)
    found = [roots[roots == 0], _by_points(context, roots, photos, evidence)]
    bands = context.store.header.band_levels
    for band in range(1, len(bands)):
        mine = roots[key_levels(roots) == bands[band]]
        if len(mine):
            bottom = bands[band + 1] - 1 if band + 1 < len(bands) else context.store.header.max_level
            cut = BandCut(top=bands[band], bottom=bottom, root_keys=mine)
            found.append(_by_patches(context, index, band, cut, photos, octree))
    return np.unique(np.concatenate(found))


def _by_patches(context: Context, index: SceneIndex, band: int, cut: BandCut, photos: Int64, octree: Octree) -> Int64:
    arena = _arena_above(context, index, band)
    shared = context.new_shared()
    shared.decoder.load_arrays(context.store.read_small("decoder"))
    shared.to(arena.device)
    total = np.zeros(len(cut.root_keys))
    with torch.no_grad():
        for chunk in chunk_photos(context.photos.cameras, photos.tolist()):
            patches = all_patches(context.photos.cameras, chunk)
            total += ending_patches(context, arena, shared, patches, cut, octree)
    return cut.root_keys[total >= MIN_PATCHES]


def _arena_above(context: Context, index: SceneIndex, band: int) -> Arena:
    root = NodeId(0, 0, 0, 0)
    above: ResidentNodes = read_surroundings(context, index, root, band)
    device = chosen_device(context.settings.training.device)
    return TrainingState(context.shape, root, np.empty(0, np.int64), 0, above, device=device).arena


def _by_points(context: Context, roots: Int64, photos: Int64, evidence: Int64) -> Int64:
    """Treelets in whose cubes the photos show points, finer than the levels above the treelet's."""
    points, cameras = context.photos.points, context.photos.cameras
    if points is None or not len(evidence):
        return _by_cubes(context, roots, photos)
    seen = observers(points, cameras)
    at = np.flatnonzero(np.isin(seen.photos, photos))
    owner = seen.owners(at)
    at, owner = at[np.isin(owner, evidence)], owner[np.isin(owner, evidence)]
    photo = seen.photos[at]
    distance = np.linalg.norm(points.xyz[owner] - cameras.centres[photo], axis=1)
    wanted = np.log2(context.gsd_root * cameras.focals[photo] / np.maximum(distance, 1e-9))
    wanted += context.settings.octree.lod_bias
    unit = context.store.header.root.to_unit(points.xyz[owner])
    inside = inside_unit(unit)
    found = [np.empty(0, np.int64)]
    for level in np.unique(key_levels(roots)).tolist():
        fine: Bool = inside & (wanted > level - 1)
        keys = encode_keys(np.full(int(fine.sum()), level), unit_cells(unit[fine], level))
        shown, count = np.unique(keys, return_counts=True)
        found.append(np.intersect1d(shown[count >= MIN_POINTS], roots))
    return np.concatenate(found)


def _by_cubes(context: Context, roots: Int64, photos: Int64) -> Int64:
    """Treelets of whose cubes some part is in a photo's image, near enough for the treelet's top level."""
    cameras, root = context.photos.cameras, context.store.header.root
    levels, cells = decode_keys(roots)
    steps = (np.arange(_SAMPLES_PER_EDGE) + 0.5) / _SAMPLES_PER_EDGE
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    edge = root.edge / np.exp2(levels)
    places = np.array(root.origin) + (cells[:, None] + grid) * edge[:, None, None]
    seen: Bool = np.zeros(len(roots), np.bool_)
    for photo in photos.tolist():
        _, distance, visible = cameras.project(photo, places.reshape(-1, 3))
        wanted = np.log2(context.gsd_root * cameras.focals[photo] / np.maximum(distance, 1e-9))
        fine = visible & (wanted > np.repeat(levels, len(grid)) - 1)
        seen |= fine.reshape(len(roots), -1).any(axis=1)
    return roots[seen]
