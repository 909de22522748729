"""What the seed stage trains: a sample of root-to-leaf regions, and the patches that show them."""

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64
from infnerf_tiles.data.observers import observers
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.geometry.node_id import ancestor_keys, encode_keys, key_levels
from infnerf_tiles.geometry.octree import Octree, inside_unit, unit_cells
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixel_store import chunk_photos
from infnerf_tiles.training.pixels import Patches, all_patches, join_patches, patch_points
from infnerf_tiles.training.views import photos_in_reach

MAX_PATCHES = 1 << 18
"""Most patches of the seed stage (768 bytes each)."""
MAX_PHOTOS = 1024
"""Most photos that the seed stage opens where it samples a larger octree: what a region learns from does not grow with
the collection, and each photo's coarsest patches are some of all."""
_REGION_SHARE = 0.75
"""Of them, at most, for the sampled regions; the rest are from everywhere, for the coarse levels."""
_COARSE_SHARE = 0.25


def seed_nodes(keys: Int64, band_levels: tuple[int, ...], budget: int, seed: int) -> Int64:
    """Nodes of the seed stage, sorted: all of them where `budget` allows; else coarse levels and sampled regions.

    The regions are treelets of the finest band, drawn at random from the octree with `seed`, each with its ancestors.
    """
    if len(keys) <= budget:
        return np.sort(keys)
    keys = np.sort(keys)
    levels = key_levels(keys)
    up_to = np.cumsum(np.bincount(levels))
    coarse = int(np.searchsorted(up_to[1:], _COARSE_SHARE * budget, side="right"))
    chosen: Bool = levels <= coarse
    top = band_levels[-1]
    deep = np.flatnonzero(levels >= top)
    roots, region = np.unique(ancestor_keys(keys[deep], np.full(len(deep), top)), return_inverse=True)
    members = deep[np.argsort(region, kind="stable")]
    first = np.concatenate([[0], np.cumsum(np.bincount(region, minlength=len(roots)))]).tolist()
    # regions have no node in common, so that only their ancestors may be there by the time that they are looked at
    missing = np.bincount(region, ~chosen[deep], len(roots)).astype(np.int64).tolist()
    above = np.zeros((len(roots), top), np.int64)
    for level in range(top):
        above[:, level] = np.searchsorted(keys, ancestor_keys(roots, np.full(len(roots), level)))
    room = budget - int(chosen.sum())
    order = np.random.default_rng((seed, 2)).permutation(roots)
    for row in np.searchsorted(roots, order).tolist():
        if not room:
            break
        if missing[row] > room:
            continue
        chain = above[row][~chosen[above[row]]]
        if missing[row] + len(chain) > room:
            continue
        chosen[members[first[row] : first[row + 1]]] = True
        chosen[chain] = True
        room -= missing[row] + len(chain)
    return keys[chosen]


def seed_patches(context: Context, own: Int64, everything: Int64, most: int = MAX_PATCHES) -> Patches:
    """The patches of the training photos that the seed stage's nodes can explain.

    Where the octree is deeper than the sample, a patch stays if the sample is as deep as its pixels want, judged by the
    nearest sparse point of its photo; so do the coarsest patches of every photo that is looked at (`seed_photos`). More
    than `most` are thinned at random. Photos are looked at in runs: the patches of a large collection would not fit
    into memory.
    """
    octree = Octree.from_keys(own) if len(own) < len(everything) else None
    sightings = _Sightings(context) if octree is not None else None
    photos = context.training_photos if sightings is None else seed_photos(context, own, sightings, MAX_PHOTOS)
    kept: list[Patches] = []
    luck: list[Float64] = []
    worst = 1.0
    for run in chunk_photos(context.photos.cameras, photos):
        patches = all_patches(context.photos.cameras, run)
        # by photo, so that neither the order nor the size of the runs counts
        chance = np.concatenate(
            [
                np.random.default_rng((context.settings.training.seed, 3, photo)).random(int(count))
                for photo, count in zip(*np.unique(patches.photo, return_counts=True), strict=True)
            ]
        )
        if worst < 1.0:  # those that are thinned out for sure need no further look
            lucky = chance <= worst
            patches, chance = patches.select(lucky), chance[lucky]
        if octree is not None and sightings is not None:
            explained = _explained(context, patches, octree, sightings)
            patches, chance = patches.select(explained), chance[explained]
        kept, luck = [*kept, patches], [*luck, chance]
        if sum(p.count for p in kept) > 2 * most:
            kept, luck = _luckiest(kept, luck, most)
            worst = float(luck[0].max())
    kept, _ = _luckiest(kept, luck, most)
    return kept[0]


def seed_photos(context: Context, own: Int64, sightings: "_Sightings", most: int) -> list[int]:
    """Rows of the training photos that the seed stage of a sample looks at: all, if they are at most so many.

    Else photos drawn at random, first those that show the sample's regions of the finest band: by the points that they
    see there, likely ones too; without points, those whose images its cubes may be in.
    """
    photos = np.array(context.training_photos, np.int64)
    if len(photos) <= most:
        return context.training_photos
    photos = np.random.default_rng((context.settings.training.seed, 4)).permutation(photos)
    top = context.store.header.band_levels[-1]
    deep = own[key_levels(own) >= top]
    regions = np.unique(ancestor_keys(deep, np.full(len(deep), top)))
    points = context.photos.points
    if points is None or sightings.nothing:
        shows = photos_in_reach(context, photos, regions) if top else np.zeros(len(photos), np.bool_)
    else:
        unit = context.store.header.root.to_unit(points.xyz)
        inside = inside_unit(unit)
        inside[inside] = np.isin(encode_keys(top, unit_cells(unit[inside], top)), regions)
        shows = np.isin(photos, sightings.photos(inside)) if top else np.zeros(len(photos), np.bool_)
    first = photos[shows][: int(most * _REGION_SHARE)]
    rest = photos[~np.isin(photos, first)][: most - len(first)]
    return sorted([*first.tolist(), *rest.tolist()])


def _luckiest(kept: list[Patches], luck: list[Float64], most: int) -> tuple[list[Patches], list[Float64]]:
    """At most so many of the patches, in their order."""
    patches, chance = join_patches(kept), np.concatenate([np.empty(0), *luck])
    if patches.count <= most:
        return [patches], [chance]
    chosen = np.sort(np.argpartition(chance, most)[:most])
    return [patches.select(chosen)], [chance[chosen]]


class _Sightings:
    """Which sparse points each photo sees, likely ones included: they choose patches, and measure nothing."""

    def __init__(self, context: Context) -> None:
        points = context.photos.points
        self._owner = np.empty(0, np.int32)
        self._start = np.zeros(context.photos.num_photos + 1, np.int64)
        if points is not None:
            seen = observers(points, context.photos.cameras)
            order = np.argsort(seen.photos, kind="stable")
            self._owner = np.repeat(np.arange(points.num_points, dtype=np.int32), seen.lengths)[order]
            counts = np.bincount(seen.photos, minlength=context.photos.num_photos)
            self._start = np.concatenate([[0], np.cumsum(counts)])

    @property
    def nothing(self) -> bool:
        """Whether no photo sees any point."""
        return not len(self._owner)

    def photos(self, chosen: Bool) -> Int64:
        """Rows of the photos that saw any of the chosen points, bool[m]; sorted."""
        seen: Int64 = np.unique(np.searchsorted(self._start, np.flatnonzero(chosen[self._owner]), side="right") - 1)
        return seen

    def points(self, photo: int) -> Int32:
        """Rows of the points that a photo sees."""
        return self._owner[self._start[photo] : self._start[photo + 1]]


def _explained(context: Context, patches: Patches, octree: Octree, sightings: _Sightings) -> Bool:
    cameras, root = context.photos.cameras, context.store.header.root
    xy = patch_points(patches, 1)[:, 0]
    size = np.array([[c.width, c.height] for c in cameras.cameras], np.float64)[cameras.camera_index[patches.photo]]
    origins, directions = cameras.rays(patches.photo, np.minimum(xy, size - 0.5))
    distance = _point_distance(context, patches, xy, sightings)
    wanted = np.log2(context.gsd_root * cameras.focals[patches.photo] / (distance * np.exp2(patches.pyramid)))
    unit = root.to_unit(origins + distance[:, None] * directions)
    deepest = octree.deepest_level(unit)
    levels = np.array([num_pyramid_levels(c.width, c.height) for c in cameras.cameras])
    coarsest: Bool = patches.pyramid == levels[cameras.camera_index[patches.photo]] - 1
    explained: Bool = coarsest | (wanted <= deepest + 0.5)
    return explained


def _point_distance(context: Context, patches: Patches, xy: Float64, sightings: _Sightings) -> Float64:
    """Distance of the sparse point nearest in the image to each patch; without points, half the root cube's edge."""
    points = context.photos.points
    cameras = context.photos.cameras
    out = np.full(patches.count, context.store.header.root.edge / 2)
    if points is None:
        return out
    for photo in np.unique(patches.photo).tolist():
        seen = sightings.points(photo)
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
