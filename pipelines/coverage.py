"""Coverage: what the photos see of each region, and what they do not."""

import itertools
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from infnerf_tiles.pipelines.partition import Partition

from infnerf_tiles.arrays import Float64, Int32, Int64, UInt8
from infnerf_tiles.data.observers import observers
from infnerf_tiles.geometry.bounds import point_wanted_levels
from infnerf_tiles.geometry.node_id import NodeId, decode_keys, encode_keys
from infnerf_tiles.geometry.octree import unit_cells

MIN_PHOTOS = 3
"""Photos without which nothing can be learned of a region's depth."""
MAP_PIXELS = 768
_SAMPLED_CORNERS = 5  # per axis of a region's cube
_NEAREST = 64
_BLOCK = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Region:
    """One treelet of the finest band, or a coarser one that nothing hangs below.

    photos: training photos that see it, by who sees its points, or by its cube where it has no points. pixels: of
    those photos, at level 0, that show it (estimated). gsd: finest footprint reached there, world units, None where
    nothing is known.
    """

    treelet: str
    points: int
    photos: int
    pixels: int
    gsd: float | None

    @property
    def lost(self) -> bool:
        """Whether no photo sees it: it cannot be trained."""
        return self.photos == 0


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """regions: of the finest band. blind_photos: names of training photos that see no region. points_outside: points
    outside the root cube."""

    regions: tuple[Region, ...]
    blind_photos: tuple[str, ...]
    points_outside: int

    @property
    def lost(self) -> tuple[Region, ...]:
        """Regions that no photo sees."""
        return tuple(region for region in self.regions if region.lost)

    @property
    def weak(self) -> tuple[Region, ...]:
        """Regions that some photos see, but fewer than MIN_PHOTOS."""
        return tuple(region for region in self.regions if 0 < region.photos < MIN_PHOTOS)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "regions": [asdict(region) for region in self.regions],
            "lost_regions": [region.treelet for region in self.lost],
            "weak_regions": [region.treelet for region in self.weak],
            "blind_photos": list(self.blind_photos),
        }


_covered: "weakref.WeakKeyDictionary[Partition, Coverage]" = weakref.WeakKeyDictionary()


def cover(found: Partition) -> Coverage:
    """Count what the training photos see of each region: by who sees the points, else by what is in their images."""
    if found not in _covered:  # asked for several times, and all observations are looked at for it
        _covered[found] = _cover(found)
    return _covered[found]


def _cover(found: Partition) -> Coverage:
    keys = _region_keys(found)
    photos, cameras = found.photos, found.photos.cameras
    training = ~photos.is_test
    points = photos.points
    outside = int((~found.inside).sum())
    if points is None or not len(found.evidence):
        return _cover_by_cubes(found, keys, outside)
    seen_by = observers(points, cameras)
    owner_region = _region_of(found, keys, found.root.to_unit(points.xyz))
    reliable = np.zeros(points.num_points, np.bool_)
    reliable[found.evidence] = True
    owner_region[~reliable] = -1
    finest = point_wanted_levels(points.xyz, seen_by.offsets, seen_by.photos, cameras, found.gsd_root)
    seen: Int64 = np.empty(0, np.int64)
    per_photo: Int64 = np.zeros(photos.num_photos, np.int64)
    hits: Int64 = np.zeros(0, np.int64)
    owner = np.repeat(np.arange(points.num_points, dtype=np.int32), seen_by.lengths)
    for start in range(0, len(owner), _BLOCK):
        photo = seen_by.photos[start : start + _BLOCK].astype(np.int64)
        region = owner_region[owner[start : start + _BLOCK]]
        use = (region >= 0) & training[photo]
        code, count = np.unique(region[use] * photos.num_photos + photo[use], return_counts=True)
        everything, inverse = np.unique(np.concatenate([seen, code]), return_inverse=True)
        merged = np.zeros(len(everything), np.int64)
        np.add.at(merged, inverse, np.concatenate([hits, count]))
        seen, hits = everything, merged
        per_photo += np.bincount(photo[use], minlength=photos.num_photos)
    region, photo = np.divmod(seen, photos.num_photos)
    # a photo's pixels belong to regions as its points do
    size = np.array([c.width * c.height for c in cameras.cameras], np.float64)[cameras.camera_index]
    share = size[photo] * hits / np.maximum(per_photo[photo], 1)
    pixels = np.bincount(region, share, len(keys))
    num_photos = np.bincount(region, minlength=len(keys))
    inside = owner_region[owner_region >= 0]
    num_points = np.bincount(inside, minlength=len(keys))
    best = np.full(len(keys), -np.inf)
    np.maximum.at(best, inside, finest[owner_region >= 0])
    regions = tuple(
        Region(
            treelet=str(NodeId.from_key(int(key))),
            points=int(num_points[k]),
            photos=int(num_photos[k]),
            pixels=int(pixels[k]),
            gsd=float(found.gsd_root / 2.0 ** best[k]) if np.isfinite(best[k]) else None,
        )
        for k, key in enumerate(keys.tolist())
    )
    bare = np.flatnonzero(num_points == 0)  # around what the points show, where growth reaches by a margin
    if len(bare):
        near = _seen_cubes(found, keys[bare])
        regions = tuple(near.get(region.treelet, region) for region in regions)
    blind = np.flatnonzero(training & (per_photo == 0))
    return Coverage(
        regions=regions, blind_photos=tuple(photos.names[i] for i in blind.tolist()), points_outside=outside
    )


def _region_keys(found: Partition) -> Int64:
    """int64[r], sorted keys of the regions: treelet roots that no other treelet's root lies below."""
    last = len(found.bands) - 1
    keys = [t.root.key for t in found.treelets if t.band == last]
    if not keys:
        keys = [t.root.key for t in found.treelets if t.band == found.treelets[-1].band]
    return np.sort(np.array(keys, np.int64))


def _region_of(found: Partition, keys: Int64, unit: Float64) -> Int64:
    """int64[m]: row in `keys` of the region that each point lies in, -1 for none."""
    level = int(decode_keys(keys[:1])[0][0])
    rows: Int64 = np.full(len(unit), -1, np.int64)
    inside = np.flatnonzero(((unit >= 0) & (unit < 1)).all(axis=1))
    code = encode_keys(np.full(len(inside), level), unit_cells(unit[inside], level))
    at = np.minimum(np.searchsorted(keys, code), len(keys) - 1)
    match = keys[at] == code
    rows[inside[match]] = at[match]
    return rows


def _cover_by_cubes(found: Partition, keys: Int64, outside: int) -> Coverage:
    """Without points that count: a photo sees a region if one of some points spread over its cube is in the image."""
    photos, cameras = found.photos, found.photos.cameras
    levels, cells = decode_keys(keys)
    steps = (np.arange(_SAMPLED_CORNERS) + 0.5) / _SAMPLED_CORNERS
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    edge = found.root.edge / np.exp2(levels)
    places = np.array(found.root.origin) + (cells[:, None] + grid) * edge[:, None, None]
    num_photos: Int64 = np.zeros(len(keys), np.int64)
    pixels: Float64 = np.zeros(len(keys))
    nearest = np.full(len(keys), np.inf)
    blind = []
    for photo in np.flatnonzero(~photos.is_test).tolist():
        _, distance, visible = cameras.project(photo, places.reshape(-1, 3))
        share = visible.reshape(len(keys), -1).mean(axis=1)
        num_photos += share > 0
        camera = cameras.camera(photo)
        covered = np.where(visible, edge.repeat(len(grid)) * cameras.focals[photo] / np.maximum(distance, 1e-9), 0.0)
        whole = camera.width * camera.height
        pixels += np.minimum((covered.reshape(len(keys), -1) ** 2).mean(axis=1), whole)
        width = np.where(visible, distance / cameras.focals[photo], np.inf)
        nearest = np.minimum(nearest, width.reshape(len(keys), -1).min(axis=1))
        if not share.any():
            blind.append(photos.names[photo])
    regions = tuple(
        Region(
            treelet=str(NodeId.from_key(int(key))),
            points=0,
            photos=int(num_photos[k]),
            pixels=int(pixels[k]),
            gsd=float(nearest[k]) if np.isfinite(nearest[k]) else None,
        )
        for k, key in enumerate(keys.tolist())
    )
    return Coverage(regions=regions, blind_photos=tuple(blind), points_outside=outside)


def _seen_cubes(found: Partition, keys: Int64) -> dict[str, Region]:
    """Regions without points, by treelet: a photo among the nearest sees one if its cube's middle or a corner of its
    inner half is in the image."""
    photos, cameras = found.photos, found.photos.cameras
    levels, cells = decode_keys(keys)
    edge = found.root.edge / np.exp2(levels)
    steps = np.array([[0.5, 0.5, 0.5], *np.stack(np.meshgrid(*[[0.25, 0.75]] * 3), axis=-1).reshape(-1, 3)])
    places = np.array(found.root.origin) + (cells[:, None] + steps) * edge[:, None, None]
    training = np.flatnonzero(~photos.is_test)
    count = min(len(training), _NEAREST)
    nearest: Int64 = np.empty((len(keys), count), np.int64)
    for k in range(len(keys)):
        away = np.linalg.norm(cameras.centres[training] - places[k, 0], axis=1)
        nearest[k] = training[np.argpartition(away, count - 1)[:count]]
    num_photos, pixels = np.zeros(len(keys), np.int64), np.zeros(len(keys))
    best = np.full(len(keys), np.inf)
    order = np.argsort(nearest, axis=None, kind="stable")
    photo_of, region_of = nearest.ravel()[order], order // count
    bounds = np.flatnonzero(np.diff(photo_of, prepend=-1, append=-1))
    for first, last in itertools.pairwise(bounds.tolist()):
        photo, rows = int(photo_of[first]), region_of[first:last]
        _, distance, visible = cameras.project(photo, places[rows].reshape(-1, 3))
        visible, distance = visible.reshape(len(rows), -1), distance.reshape(len(rows), -1)
        num_photos[rows] += visible.any(axis=1)
        width = np.where(visible, distance / cameras.focals[photo], np.inf).min(axis=1)
        camera = cameras.camera(photo)
        pixels[rows] += np.minimum((edge[rows] / width) ** 2 * visible.mean(axis=1), camera.width * camera.height)
        best[rows] = np.minimum(best[rows], width)
    made = (
        Region(
            treelet=str(NodeId.from_key(int(key))),
            points=0,
            photos=int(num_photos[k]),
            pixels=int(pixels[k]),
            gsd=float(best[k]) if np.isfinite(best[k]) else None,
        )
        for k, key in enumerate(keys.tolist())
    )
    return {region.treelet: region for region in made}


def draw_map(found: Partition, coverage: Coverage) -> UInt8:
    """The regions from above, uint8[h, w, 3], the second world axis upwards: dark red where no photo sees one, red to
    yellow below MIN_PHOTOS, then from green to white with the number of photos; cameras are blue."""
    keys = np.array([NodeId.parse(region.treelet).key for region in coverage.regions], np.int64)
    levels, cells = decode_keys(keys)
    side = 1 << int(levels.max(initial=0))
    scale = max(1, MAP_PIXELS // side)
    picture: UInt8 = np.full((side * scale, side * scale, 3), 24, np.uint8)
    seen: Int32 = np.full((side, side), -1, np.int32)
    for (x, y, _), region in zip(cells.tolist(), coverage.regions, strict=True):
        seen[y, x] = max(seen[y, x], region.photos)
    for y, x in np.argwhere(seen >= 0).tolist():
        block = picture[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
        block[:] = _colour(int(seen[y, x]))
        if scale > 4:
            block[0], block[:, 0] = 24, 24
    unit = found.root.to_unit(found.photos.cameras.centres)
    inside = ((unit[:, :2] >= 0) & (unit[:, :2] < 1)).all(axis=1)
    at = (unit[inside, :2] * side * scale).astype(np.int64)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = np.minimum(at[:, 0] + dx, side * scale - 1), np.minimum(at[:, 1] + dy, side * scale - 1)
            picture[y, x] = (64, 96, 255)
    return np.ascontiguousarray(picture[::-1])


def write_map(path: Path, found: Partition, coverage: Coverage) -> None:
    """Write `draw_map` as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_map(found, coverage)).save(path, "PNG")


def _colour(photos: int) -> tuple[int, int, int]:
    if photos == 0:
        return (96, 0, 0)
    if photos < MIN_PHOTOS:
        return (230, 80 * photos, 0)
    light = min(1.0, np.log2(photos / MIN_PHOTOS) / 5.0)
    return (int(40 + 215 * light), int(140 + 115 * light), int(60 + 195 * light))
