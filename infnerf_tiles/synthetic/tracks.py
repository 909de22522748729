"""Sparse points as structure from motion would give them, from the true geometry: positions, tracks, keypoints."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Float64, Int32, UInt8
from infnerf_tiles.data.records import Points
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.synthetic.flight import footprint_boxes
from infnerf_tiles.synthetic.scene import City

logger = logging.getLogger(__name__)

MIN_TRACK = 3
PIXEL_NOISE = 0.3
_TOLERANCE = 1e-4  # a point this close behind the first surface is on it, metres: rounding, not geometry
_BIN = 20.0  # edge of the bins in which points are looked up, metres
_BATCH = 1 << 18  # rays cast at once when checking what is visible
_SPARE = 1.25  # points drawn per point wanted: some are seen too seldom
_ROUND = 1 << 20  # points drawn at once

_Seen = tuple[Int32, Int32, Float64, Float64]  # photos, point rows, pixel positions [n, 2], depths


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """points: as written to disk, noise included; true_xyz: float64 [m, 3]; keypoints: float64 [k, 2] pixels, aligned
    with points.track_photos."""

    points: Points
    true_xyz: Float64
    keypoints: Float64


def make_tracks(city: City, cameras: PosedCameras, num_points: int, seed: int) -> Tracks:
    """About `num_points` points with every photo that truly sees them, at least MIN_TRACK.

    Points lie on the surfaces seen through random pixels of random photos; positions and keypoints get noise of
    PIXEL_NOISE pixels, and the error column holds the resulting mean reprojection errors.
    """
    rng = np.random.default_rng((seed, 2))
    xyz, rgb = _surface_points(city, cameras, int(_SPARE * num_points) + 8, rng)
    photos, rows, xy, depth = _observations(city, cameras, xyz)
    seen = np.bincount(rows, minlength=len(xyz))
    kept = np.flatnonzero(seen >= MIN_TRACK)[:num_points]
    if len(kept) < num_points:
        logger.info("%d of %d points are seen by %d photos or more", len(kept), num_points, MIN_TRACK)
    new_row = np.full(len(xyz), -1, dtype=np.int32)
    new_row[kept] = np.arange(len(kept))
    mask = new_row[rows] >= 0
    photos, rows, xy, depth = photos[mask], new_row[rows[mask]], xy[mask], depth[mask]
    xyz, rgb = xyz[kept], rgb[kept]

    # One pixel of noise at the observing photos' mean footprint.
    footprint = np.bincount(rows, depth / cameras.focals[photos], minlength=len(kept)) / seen[kept]
    noisy = xyz + rng.normal(0.0, 1.0, xyz.shape) * (PIXEL_NOISE * footprint)[:, None]
    keypoints = xy + rng.normal(0.0, PIXEL_NOISE, xy.shape)
    error = np.bincount(
        rows, np.linalg.norm(_reproject(cameras, photos, noisy[rows]) - keypoints, axis=1), minlength=len(kept)
    )
    order = np.argsort(rows, kind="stable")
    points = Points(
        xyz=noisy,
        rgb=rgb,
        error=(error / seen[kept]).astype(np.float32),
        track_offsets=np.concatenate([[0], np.cumsum(seen[kept])]).astype(np.int64),
        track_photos=photos[order].astype(np.int32),
    )
    return Tracks(points=points, true_xyz=xyz, keypoints=keypoints[order])


def _surface_points(city: City, cameras: PosedCameras, count: int, rng: np.random.Generator) -> tuple[Float64, UInt8]:
    """Surface points inside the city and their colours, through random pixels of random photos."""
    x0, y0, x1, y1 = city.bounds
    xyz, rgb = [], []
    for start in range(0, count, _ROUND):
        n = min(_ROUND, count - start)
        photos = rng.integers(cameras.num_photos, size=n)
        size = np.array([(c.width, c.height) for c in cameras.cameras], dtype=np.float64)
        xy = rng.uniform(0.0, 1.0, (n, 2)) * size[cameras.camera_index[photos]]
        origins, directions = cameras.rays(photos, xy)
        t, colours = city.cast(origins, directions)
        hit = np.isfinite(t)
        places = origins[hit] + t[hit, None] * directions[hit]
        inside = (places[:, 0] > x0) & (places[:, 0] < x1) & (places[:, 1] > y0) & (places[:, 1] < y1)
        xyz.append(places[inside])
        rgb.append((colours[hit][inside] * 255.0 + 0.5).astype(np.uint8))
    return np.concatenate(xyz), np.concatenate(rgb)


def _observations(city: City, cameras: PosedCameras, xyz: Float64) -> _Seen:
    """Every (photo, point row, pixel position, depth) where the photo shows the point, sorted by photo."""
    parts: list[_Seen] = []
    batch: list[_Seen] = []
    size = 0
    for photo, candidates in _candidates(cameras, xyz):
        xy, depth, inside = cameras.project(photo, xyz[candidates])
        rows = candidates[inside]
        batch.append((np.full(len(rows), photo, dtype=np.int32), rows, xy[inside], depth[inside]))
        size += len(rows)
        if size >= _BATCH or photo == cameras.num_photos - 1:
            parts.append(_unhidden(city, cameras, xyz, batch))
            batch, size = [], 0
    return _joined(parts)


def _unhidden(city: City, cameras: PosedCameras, xyz: Float64, batch: list[_Seen]) -> _Seen:
    """The observations of a batch that no surface hides."""
    photos, rows, xy, depth = _joined(batch)
    origins = cameras.centres[photos]
    t = city.distance(origins, (xyz[rows] - origins) / depth[:, None])
    clear = t > depth - _TOLERANCE
    return photos[clear], rows[clear], xy[clear], depth[clear]


def _joined(parts: list[_Seen]) -> _Seen:
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
        np.concatenate([p[3] for p in parts]),
    )


def _candidates(cameras: PosedCameras, xyz: Float64) -> Iterator[tuple[int, Int32]]:
    """For each photo the rows of the points in its footprint's bounding box; bins save it from visiting all."""
    low = xyz[:, :2].min(axis=0, initial=0.0)
    cells = np.floor((xyz[:, :2] - low) / _BIN).astype(np.int64)
    shape = cells.max(axis=0, initial=0) + 1
    key = cells[:, 0] * shape[1] + cells[:, 1]
    order = np.argsort(key, kind="stable").astype(np.int32)
    starts = np.searchsorted(key[order], np.arange(shape[0] * shape[1] + 1))
    boxes = footprint_boxes(cameras)
    first = np.clip(np.floor((boxes[:, :2] - low) / _BIN).astype(np.int64), 0, shape - 1)
    last = np.clip(np.floor((boxes[:, 2:] - low) / _BIN).astype(np.int64), 0, shape - 1)
    for photo in range(cameras.num_photos):
        columns = np.arange(first[photo, 0], last[photo, 0] + 1) * shape[1]
        begin, end = starts[columns + first[photo, 1]], starts[columns + last[photo, 1] + 1]
        yield photo, np.concatenate([order[a:b] for a, b in zip(begin, end, strict=True)])


def _reproject(cameras: PosedCameras, photos: Int32, xyz: Float64) -> Float64:
    """Pixel positions of xyz[i] in photo photos[i], which is sorted."""
    xy = np.zeros((len(xyz), 2))
    bounds = np.searchsorted(photos, np.arange(cameras.num_photos + 1))
    for photo in np.unique(photos):
        rows = slice(bounds[photo], bounds[photo + 1])
        xy[rows] = cameras.project(int(photo), xyz[rows])[0]
    return xy
