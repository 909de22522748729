"""What the seed stage trains: a sample of root-to-leaf regions, and the patches that show them."""

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.geometry.node_id import ancestor_keys, key_levels
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixels import Patches, patch_points

MAX_PATCHES = 1 << 18
"""Most patches of the seed stage (768 bytes each)."""
_COARSE_SHARE = 0.25


def seed_nodes(keys: Int64, band_levels: tuple[int, ...], budget: int, seed: int) -> Int64:
    """Nodes of the seed stage, sorted: all of them where `budget` allows; else coarse levels and sampled regions.

    The regions are treelets of the finest band, drawn at random from the octree with `seed`, each with its ancestors.
    """
    if len(keys) <= budget:
        return np.sort(keys)
    levels = key_levels(keys)
    chosen = np.zeros(1, np.int64)
    for level in range(1, int(levels.max()) + 1):
        if (levels <= level).sum() > _COARSE_SHARE * budget:
            break
        chosen = keys[levels <= level]
    top = band_levels[-1]
    deep = keys[levels >= top]
    roots = ancestor_keys(deep, np.full(len(deep), top))
    order = np.random.default_rng((seed, 2)).permutation(np.unique(roots))
    for root in order.tolist():
        region = deep[roots == root]
        chain = np.array([int(ancestor_keys(np.array([root]), np.array([k]))[0]) for k in range(top)], np.int64)
        grown = np.union1d(np.union1d(chosen, region), chain)
        if len(grown) > budget:
            continue
        chosen = grown
    return np.sort(chosen)


def seed_patches(context: Context, patches: Patches, own: Int64, everything: Int64) -> Patches:
    """The patches that the seed stage's nodes can explain.

    Where the octree is deeper than the sample, a patch stays if the sample is as deep as its pixels want, judged by the
    nearest sparse point of its photo; so do the coarsest patches of every photo. Too many are thinned at random.
    """
    keep = np.ones(patches.count, np.bool_)
    if len(own) < len(everything):
        keep = _explained(context, patches, Octree.from_keys(own))
    index = np.flatnonzero(keep)
    if len(index) > MAX_PATCHES:
        rng = np.random.default_rng((context.settings.training.seed, 3))
        index = np.sort(rng.choice(index, MAX_PATCHES, replace=False))
    return patches.select(index.astype(np.int32))


def _explained(context: Context, patches: Patches, octree: Octree) -> Bool:
    cameras, root = context.photos.cameras, context.store.header.root
    xy = patch_points(patches, 1)[:, 0]
    size = np.array([[c.width, c.height] for c in cameras.cameras], np.float64)[cameras.camera_index[patches.photo]]
    origins, directions = cameras.rays(patches.photo, np.minimum(xy, size - 0.5))
    distance = _point_distance(context, patches, xy)
    wanted = np.log2(context.gsd_root * cameras.focals[patches.photo] / (distance * np.exp2(patches.pyramid)))
    unit = root.to_unit(origins + distance[:, None] * directions)
    deepest = octree.deepest_level(unit)
    coarsest: Bool = np.zeros(patches.count, np.bool_)
    for photo in np.unique(patches.photo).tolist():
        mine = patches.photo == photo
        coarsest |= mine & (patches.pyramid == patches.pyramid[mine].max())
    explained: Bool = coarsest | (wanted <= deepest + 0.5)
    return explained


def _point_distance(context: Context, patches: Patches, xy: Float64) -> Float64:
    """Distance of the sparse point nearest in the image to each patch; without points, half the root cube's edge."""
    points = context.photos.points
    cameras = context.photos.cameras
    out = np.full(patches.count, context.store.header.root.edge / 2)
    if points is None or not len(points.track_photos):
        return out
    owner = np.repeat(np.arange(points.num_points), points.track_lengths)
    for photo in np.unique(patches.photo).tolist():
        seen = owner[points.track_photos == photo]
        if not len(seen):
            continue
        pixel, depth, visible = cameras.project(photo, points.xyz[seen])
        mine = np.flatnonzero(patches.photo == photo)
        if not visible.any():
            continue
        pixel, depth = pixel[visible], depth[visible]
        for first in range(0, len(mine), 512):
            part = mine[first : first + 512]
            away = ((xy[part][:, None] - pixel[None]) ** 2).sum(axis=2)
            out[part] = depth[away.argmin(axis=1)]
    return out
