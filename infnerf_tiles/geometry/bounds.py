"""Where the root cube lies, how deep the octree may grow, and how fine each point was seen. Fixed once, at build."""

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float64, Int64, check_shape
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.footprint import footprint, gsd, wanted_level
from infnerf_tiles.geometry.node_id import MAX_LEVEL, RootCube

PADDING = 0.04  # of the cube's edge, on each side
MIN_INSIDE = 0.99  # share of the points that the cube must hold
FINEST_PERCENTILE = 2.0
# 1/3 of a cube is 1/3 or 2/3 of a node at every level below it: a plane there is never near a node face
PLANE_FRACTION = 1 / 3
# in the same way 2/5 stays at least 1/5 away from the faces of every level, and is nearly the middle
FOCUS_FRACTION = 2 / 5
_SAMPLED_POINTS = 16_384
_SAMPLED_PHOTOS = 256
_MIN_SPREAD = 0.01  # mean squared sine between optical axes
_MAX_MISS = 0.25  # mean squared sine between an optical axis and the direction of the convergence point
_BLOCK = 1 << 18  # points or observations handled at a time
_SAMPLED_OBSERVATIONS = 1 << 22


def root_cube_from_points(points: Float64, cameras: PosedCameras, *, padding: float = PADDING) -> RootCube:
    """The root cube of a scene with SfM points.

    It holds the 0.5 to 99.5 percentiles of `points` (float64[m, 3], world; non-finite ones are ignored) and of the
    ground in the photos' corners (each photo's corners at its median point distance), `padding` of its edge on each
    side, and at least 99 % of the points. Along an axis where the scene is flat, its dominant plane is put at a third
    of the edge (with the larger part on the cameras' side) so that it is near no node face at any level. Cameras may
    lie outside.

    DatasetError if there are no points or they do not spread.
    """
    check_shape("points", points, (None, 3))
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        raise DatasetError("points: expected at least one finite point to derive the bounds from, got none; set bounds")
    lo, hi = _box(finite, 0.5)
    if _share(finite, lo, hi) < MIN_INSIDE:
        # three axes with two sides each leave out at most 1 % together
        lo, hi = _box(finite, 100 * (1 - MIN_INSIDE) / 6)
    corners = _corners_in_view(finite, cameras)
    if len(corners):
        ground_lo, ground_hi = _box(corners, 0.5)
        lo, hi = np.minimum(lo, ground_lo), np.maximum(hi, ground_hi)
    extent = hi - lo
    edge = float(extent.max()) / (1 - 2 * padding)
    if not edge > 0 or not np.isfinite(edge):
        raise DatasetError(f"points: expected points that spread over a volume, got an extent of {edge}; set bounds")
    origin = (lo + hi - edge) / 2
    for axis in np.flatnonzero(extent <= edge / 2):
        plane = _dominant(finite[:, axis], lo[axis], hi[axis])
        above = np.median(cameras.centres[:, axis]) >= plane if cameras.num_photos else True
        start = plane - edge * (PLANE_FRACTION if above else 1 - PLANE_FRACTION)
        origin[axis] = np.clip(start, hi[axis] - edge * (1 - padding), lo[axis] - edge * padding)
    return _cube(origin, edge)


def root_cube_from_cameras(cameras: PosedCameras, reach: float = 16.0) -> RootCube:
    """The root cube of a scene without points.

    Its edge is `reach` times the largest edge of the camera box (2 to 98 percentiles of the centres), and large enough
    to hold the box's centre together with the convergence point. The convergence point, or where there is none the
    centre of the camera box, lies at 2/5 of each edge: as good as the middle, without node faces through it.

    DatasetError if all cameras stand in one place and look nowhere in common, or there are none.
    """
    if reach <= 0:
        raise ValueError(f"reach: expected a factor > 0, got {reach}")
    if not cameras.num_photos:
        raise DatasetError("cameras: expected at least one posed photo to derive the bounds from, got none")
    lo, hi = _box(cameras.centres, 2.0)
    middle = (lo + hi) / 2
    focus = convergence_point(cameras)
    if focus is None:
        focus = middle
    # the nearer side of the cube is 2/5 of its edge away from the focus
    edge = max(reach * float((hi - lo).max()), float(np.linalg.norm(focus - middle)) / FOCUS_FRACTION)
    if not edge > 0:
        raise DatasetError(
            "cameras: expected positions that differ, got all photos in one place; set bounds or give SfM points"
        )
    return _cube(focus - edge * FOCUS_FRACTION, edge)


def convergence_point(cameras: PosedCameras) -> Float64 | None:
    """float64[3], the world point closest to all optical axes.

    None where the photos do not look at something in common: axes that are nearly parallel (within 6 degrees rms), or
    a point that lies behind the typical camera or far off its axis (30 degrees rms), as in a survey with oblique views.
    """
    if not cameras.num_photos:
        return None
    axes, centres = cameras.forwards, cameras.centres
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    system = across.mean(axis=0)
    # the smallest eigenvalue is the mean squared sine of the angles between the axes and their common direction
    if np.linalg.eigvalsh(system)[0] < _MIN_SPREAD:
        return None
    # centred, so that large map coordinates cost no digits
    middle = centres.mean(axis=0)
    offset = np.einsum("nij,nj->i", across, centres - middle) / len(axes)
    point: Float64 = middle + np.linalg.solve(system, offset)
    to_point = point - centres
    ahead = np.einsum("ni,ni->n", to_point, axes)
    missed = np.einsum("nij,nj->ni", across, to_point)
    in_common = np.median(ahead) > 0 and np.sum(missed**2) <= _MAX_MISS * np.sum(to_point**2)
    return point if in_common else None


def finest_level(
    root: RootCube,
    cells: int,
    cameras: PosedCameras,
    max_level: int = MAX_LEVEL,
    *,
    points: Float64 | None = None,
    track_offsets: AnyArray | None = None,
    track_photos: AnyArray | None = None,
) -> int:
    """The deepest level that the photos can ask for, 0 to `max_level`.

    It follows from the finest footprint (the 2nd percentile, robust against stray points near cameras): over the
    observations if points with tracks are given, over the sampled (photo, point in its image) pairs if points alone
    are, else over the photos at their distance to the convergence point (where there is none, at twice the typical
    spacing of the photos). A level d counts as asked for at λ >= d − 0.5, as in growth.

    points: float64[m, 3], world; tracks as in `point_wanted_levels`. DatasetError if no distance can be had.
    """
    if points is not None and track_offsets is not None and track_photos is not None:
        some = _every(len(track_photos), _SAMPLED_OBSERVATIONS)
        _check_tracks(points, track_offsets, track_photos, cameras)
        seen = _footprints(points, np.searchsorted(track_offsets, some, side="right") - 1, track_photos[some], cameras)
    elif points is not None:
        seen = _sampled_footprints(points, cameras)
    else:
        seen = np.empty(0)
    if not len(seen):
        seen = footprint(_focus_distances(cameras), cameras.focals)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if not len(seen):
        raise DatasetError("finest level: expected photos at a distance from what they show, got none; give SfM points")
    finest = float(np.percentile(seen, FINEST_PERCENTILE))
    wanted = float(wanted_level(float(gsd(root.edge, cells, 0)), finest))
    return int(np.clip(np.floor(wanted + 0.5), 0, min(max_level, MAX_LEVEL)))


def point_wanted_levels(
    points: Float64, track_offsets: AnyArray, track_photos: AnyArray, cameras: PosedCameras, gsd_root: float
) -> Float64:
    """Wanted level of each point at its finest observing footprint, float64[m]; −inf for a point without observers.

    points: float64[m, 3], world. Point i was observed in photos track_photos[track_offsets[i]:track_offsets[i + 1]];
    track_offsets: int[m + 1], from 0 to k; track_photos: int[k]. gsd_root: GSD of level 0, world units.
    """
    _check_tracks(points, track_offsets, track_photos, cameras)
    finest = np.full(len(points), np.inf)
    for start in range(0, len(points), _BLOCK):
        offsets = track_offsets[start : start + _BLOCK + 1]
        lengths = np.diff(offsets)
        owner = np.repeat(np.arange(start, start + len(lengths)), lengths)
        seen = _footprints(points, owner, track_photos[offsets[0] : offsets[-1]], cameras)
        # empty tracks take no room, so the starts of the others delimit the groups
        if len(seen):
            observed = np.flatnonzero(lengths > 0)
            finest[start + observed] = np.minimum.reduceat(seen, (offsets[:-1] - offsets[0])[observed])
    return wanted_level(gsd_root, finest)


def _check_tracks(points: Float64, track_offsets: AnyArray, track_photos: AnyArray, cameras: PosedCameras) -> None:
    """ValueError unless the tracks fit the points and the photos."""
    check_shape("points", points, (None, 3))
    check_shape("track_offsets", track_offsets, (len(points) + 1,))
    check_shape("track_photos", track_photos, (None,))
    if track_offsets[0] != 0 or track_offsets[-1] != len(track_photos) or (np.diff(track_offsets) < 0).any():
        raise ValueError(f"track_offsets: expected ascending offsets from 0 to {len(track_photos)}")
    if len(track_photos) and not 0 <= track_photos.min() <= track_photos.max() < cameras.num_photos:
        raise ValueError(f"track_photos: expected photos 0 to {cameras.num_photos - 1}, got others")


def _footprints(points: Float64, owner: AnyArray, photos: AnyArray, cameras: PosedCameras) -> Float64:
    """float64[k]: footprint of every observation of points[owner[i]] in photos[i]."""
    seen: Float64 = np.empty(len(photos))
    for start in range(0, len(photos), _BLOCK):
        block = slice(start, start + _BLOCK)
        distance = np.linalg.norm(points[owner[block]] - cameras.centres[photos[block]], axis=1)
        seen[block] = footprint(distance, cameras.focals[photos[block]])
    return seen


def _sampled_footprints(points: Float64, cameras: PosedCameras) -> Float64:
    """Footprints of (photo, point inside its image) pairs, of evenly chosen photos and points; occlusion ignored."""
    sample = points[_every(len(points), _SAMPLED_POINTS)]
    parts = [np.empty(0)]
    for photo in _every(cameras.num_photos, _SAMPLED_PHOTOS).tolist():
        _, distance, visible = cameras.project(photo, sample)
        parts.append(footprint(distance[visible], cameras.focals[photo]))
    return np.concatenate(parts)


def _corners_in_view(points: Float64, cameras: PosedCameras) -> Float64:
    """float64[4 n, 3]: the corners of evenly chosen photos at the median distance of the points in their image."""
    sample = points[_every(len(points), _SAMPLED_POINTS)]
    parts = [np.empty((0, 3))]
    for photo in _every(cameras.num_photos, _SAMPLED_PHOTOS).tolist():
        _, distance, visible = cameras.project(photo, sample)
        if visible.any():
            camera = cameras.camera(photo)
            xy = np.array([[u * camera.width, v * camera.height] for u in (0.02, 0.98) for v in (0.02, 0.98)])
            origins, directions = cameras.rays(photo, xy)
            parts.append(origins + directions * np.median(distance[visible]))
    return np.concatenate(parts)


def _focus_distances(cameras: PosedCameras) -> Float64:
    focus = convergence_point(cameras)
    if focus is not None:
        distances: Float64 = np.linalg.norm(cameras.centres - focus, axis=1)
        return distances
    if not cameras.num_photos:
        return np.empty(0)
    # photos of a survey overlap: their spacing is about half their distance from the ground
    lo, hi = _box(cameras.centres, 2.0)
    return np.full(cameras.num_photos, 2 * float((hi - lo).max()) / np.sqrt(cameras.num_photos))


def _box(points: Float64, percent: float) -> tuple[Float64, Float64]:
    """Corners of the box that leaves out at most `percent` of the points on each side of each axis."""
    # rounded outwards: a handful of points all count
    lo: Float64 = np.percentile(points, percent, axis=0, method="lower")
    hi: Float64 = np.percentile(points, 100 - percent, axis=0, method="higher")
    return lo, hi


def _share(points: Float64, lo: Float64, hi: Float64) -> float:
    return float(((points >= lo) & (points <= hi)).all(axis=1).mean())


def _dominant(values: Float64, lo: float, hi: float) -> float:
    """The densest place of 1-D `values` between lo and hi: the centre of the fullest of 64 overlapping windows."""
    if hi <= lo:
        return lo
    counts, edges = np.histogram(values, bins=64, range=(lo, hi))
    smooth = np.convolve(counts, (1, 2, 1), mode="same")
    best = int(np.argmax(smooth))
    return float(edges[best] + edges[best + 1]) / 2


def _every(count: int, limit: int) -> Int64:
    """int64: at most `limit` evenly spaced rows of `count`."""
    rows: Int64 = np.linspace(0, count - 1, min(count, limit)).astype(np.int64)
    return rows


def _cube(origin: Float64, edge: float) -> RootCube:
    x, y, z = origin.tolist()
    return RootCube((x, y, z), edge)
