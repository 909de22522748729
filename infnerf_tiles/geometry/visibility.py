"""Which photos are likely to see points of which nobody says who saw them."""

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64, check_shape
from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.border import border_positions, view_angles
from infnerf_tiles.geometry.camera import Camera, PosedCameras, unproject
from infnerf_tiles.geometry.footprint import footprint
from infnerf_tiles.geometry.node_id import MAX_LEVEL, morton

MAX_PAIRS = 1 << 24
"""Projections of points into photos that are computed; where there would be more, neighbours share an observer list."""
MAX_OBSERVATIONS = 1 << 25
"""Observations that are kept, unless that were fewer than MIN_KEPT for each point."""
MIN_KEPT = 8
POINTS_PER_CELL = 4
"""Points in an image's cell on average: with fewer, cells miss the surface in front; with more, it hides its sides."""
MIN_CELLS = 12
"""Cells along an image's longer side at least: of a handful of points, hardly any hides another."""
GAP = 0.15
"""A point is hidden behind another one in its cell if it is farther by more than that share of the distance.

What follows in smaller steps is one surface, seen at a slant. Against the true visibility in synthetic cities, seen
from the air and from the street, 0.1 to 0.2 with 4 points per cell lose least of what is seen, while most of what is
hidden from the street is found to be.
"""
_MAX_BLOCKS = 4096
_MIN_BLOCK = 64
_ROOM = 0.02  # radians, for what lies between the border positions of an image
_GATHERED = 1 << 20
_GOLDEN = 0.6180339887498949


def likely_observers(
    points: Float64,
    cameras: PosedCameras,
    *,
    max_pairs: int = MAX_PAIRS,
    max_observations: int = MAX_OBSERVATIONS,
) -> tuple[Int64, Int32]:
    """Photos in whose images points lie unhidden, by the points alone: (offsets int64[m + 1], photos int32[k]).

    points: float64[m, 3], world, finite. The observers of point i are photos[offsets[i]:offsets[i + 1]]. An image is
    divided into cells that hold POINTS_PER_CELL points on average; what lies in a cell beyond a gap in depth is hidden.

    Time and memory are bounded: points are sorted along a space-filling curve and photos look only at the stretches of
    it in their cones of view. If that were more than `max_pairs` (photo, point) pairs, every so-manieth point of the
    curve is looked at, and the points up to the next one share its observers. If there were more than
    `max_observations`, each point keeps its finest observers and an even choice of the others: no photo of an overview
    is to see nothing.
    """
    check_shape("points", points, (None, 3))
    if not len(points) or not cameras.num_photos:
        return np.zeros(len(points) + 1, np.int64), np.empty(0, np.int32)
    order = _along_curve(points)
    cones = _Cones(points[order], cameras)
    stride = -(-sum(cones.pairs(photo) for photo in range(cameras.num_photos)) // max_pairs) or 1
    samples = points[order[::stride]]
    rows = [_unhidden(samples, cones.samples(photo, stride), cameras, photo) for photo in range(cameras.num_photos)]
    sample = np.concatenate(rows)
    photos: Int32 = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
    del rows
    photos = photos[np.argsort(sample, kind="stable")]
    lengths = np.bincount(sample, minlength=len(samples))
    del sample
    place: Int64 = np.empty(len(points), np.int64)
    place[order] = np.arange(len(points))
    sample_of = place // stride
    starts = np.cumsum(lengths) - lengths
    most = None
    if lengths[sample_of].sum() > max_observations:
        most = max(max_observations // len(points), MIN_KEPT)
        _sort_by_fineness(photos, starts, lengths, samples, cameras)
    return gather_rows(photos, starts[sample_of], lengths[sample_of], most=most, phase=np.modf(_GOLDEN * place)[0])


def gather_rows(
    values: Int32, starts: Int64, lengths: Int64, *, most: int | None = None, phase: Float64 | None = None
) -> tuple[Int64, Int32]:
    """Rows of a ragged array: values[starts[i]:starts[i] + lengths[i]] one after the other, (offsets, int32[k]).

    Of rows longer than `most`, its first half stays and of the others every so-manieth, from float64[n] `phase` (0 to
    1) on: where many rows are alike, all their values are met.
    """
    kept = lengths if most is None else np.minimum(lengths, most)
    offsets = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    out: Int32 = np.empty(int(offsets[-1]), np.int32)
    # in runs of rows, as the indices take more room than the values
    first = 0
    while first < len(starts):
        last = max(int(np.searchsorted(offsets, offsets[first] + _GATHERED, side="right")) - 1, first + 1)
        owner = np.repeat(np.arange(first, last), kept[first:last])
        at = np.arange(offsets[first], offsets[last]) - offsets[owner]
        if most is not None and phase is not None:
            half = (most + 1) // 2
            other = (at >= half) & (lengths[owner] > most)
            step = (lengths[owner[other]] - half) / max(most - half, 1)
            at[other] = half + ((at[other] - half + phase[owner[other]]) * step).astype(np.int64)
        out[offsets[first] : offsets[last]] = values[starts[owner] + at]
        first = last
    return offsets, out


def _along_curve(points: Float64) -> Int64:
    """int64[m]: the points in the order of a space-filling curve."""
    # a few strays must not make cells of everything else
    lo, hi = np.percentile(points, [1, 99], axis=0)
    unit = np.clip((points - lo) / max(float((hi - lo).max()), 1e-300), 0.0, 1.0)
    return np.argsort(morton(np.minimum(unit * 2.0**MAX_LEVEL, 2.0**MAX_LEVEL - 1).astype(np.int64)), kind="stable")


class _Cones:
    """Stretches of the curve that a photo's cone of view touches."""

    def __init__(self, points: Float64, cameras: PosedCameras):
        self.count, self.cameras = len(points), cameras
        self.size = max(_MIN_BLOCK, -(-len(points) // _MAX_BLOCKS))
        starts = np.arange(0, len(points), self.size)
        lo, hi = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        self.middle = (lo + hi) / 2
        self.radius = np.linalg.norm(hi - lo, axis=1) / 2
        self.axes = cameras.forwards
        angles = view_angles(cameras.cameras)
        for i in np.flatnonzero(np.isnan(angles)).tolist():
            angles[i] = _border_angle(cameras.cameras[i])
        self.angles = np.minimum(1.05 * angles + _ROOM, np.pi)

    def _touched(self, photo: int) -> Int64:
        towards = self.middle - self.cameras.centres[photo]
        distance = np.linalg.norm(towards, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.arccos(np.clip(towards @ self.axes[photo] / distance, -1.0, 1.0))
            seen = off <= self.angles[self.cameras.camera_index[photo]] + np.arcsin(self.radius / distance)
        return np.flatnonzero(seen | (distance <= self.radius))

    def pairs(self, photo: int) -> int:
        """How many points the stretches hold, about."""
        return len(self._touched(photo)) * self.size

    def samples(self, photo: int, stride: int) -> Int64:
        """Rows of every stride-th point in the stretches."""
        first = self._touched(photo) * self.size
        last = np.minimum(first + self.size, self.count)
        first, last = -(-first // stride), -(-last // stride)
        lengths = last - first
        before = np.cumsum(lengths) - lengths
        rows: Int64 = np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))
        return rows


def _border_angle(camera: Camera) -> float:
    """The largest angle off the optical axis, half a turn where it is unknown."""
    try:
        directions = unproject(camera, border_positions(camera))
    except CameraError:
        return float(np.pi)
    return float(np.arccos(np.clip(directions[:, 2].min(), -1.0, 1.0)))


def _unhidden(points: Float64, rows: Int64, cameras: PosedCameras, photo: int) -> Int32:
    """int32: which of the rows of the points a photo sees."""
    xy, distance, visible = cameras.project(photo, points[rows])
    visible &= distance > 0
    xy, distance, rows = xy[visible], distance[visible], rows[visible]
    if not len(rows):
        return np.empty(0, np.int32)
    camera = cameras.camera(photo)
    coarsest = max(camera.width, camera.height) / MIN_CELLS
    side = min(float(np.sqrt(POINTS_PER_CELL * camera.width * camera.height / len(rows))), coarsest)
    cell = (xy / side).astype(np.int64)
    code = cell[:, 1] * (int(camera.width / side) + 1) + cell[:, 0]
    order = np.lexsort((distance, code))
    code, distance = code[order], distance[order]
    new: Bool = np.concatenate([[True], code[1:] != code[:-1]])
    gaps = np.cumsum(~new & np.concatenate([[False], distance[1:] > (1 + GAP) * distance[:-1]]))
    in_front = gaps == gaps[new][np.cumsum(new) - 1]
    return np.sort(rows[order[in_front]]).astype(np.int32)


def _sort_by_fineness(photos: Int32, starts: Int64, lengths: Int64, points: Float64, cameras: PosedCameras) -> None:
    """Put each point's finest observers first, in place."""
    ends = starts + lengths
    first = 0
    while first < len(points):
        last = max(int(np.searchsorted(ends, starts[first] + _GATHERED, side="right")), first + 1)
        owner = np.repeat(np.arange(first, last), lengths[first:last])
        part = slice(int(starts[first]), int(ends[last - 1]))
        away = np.linalg.norm(points[owner] - cameras.centres[photos[part]], axis=1)
        photos[part] = photos[part][np.lexsort((footprint(away, cameras.focals[photos[part]]), owner))]
        first = last
