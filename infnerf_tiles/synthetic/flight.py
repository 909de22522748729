"""Where a drone takes photos of an area: a nadir grid, four oblique directions, a closer and a higher pass."""

import math
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras, unproject
from infnerf_tiles.synthetic.layout import MAX_HEIGHT

Area = tuple[float, float, float, float]  # x0, y0, x1, y1 in metres

_OVERLAP = 0.75  # of the main nadir pass, along each axis
_CLOSE_OVERLAP = 0.6
_FOCAL = 0.85  # focal length over image width: about 61 degrees across
_LOWEST, _HIGHEST = 2.4 * MAX_HEIGHT, 260.0  # of the main pass; the close one flies at half its height, above all roofs
_REACH = 6.0  # content further away than this many flying heights does not count as seen
_NADIR_CAMERA, _OBLIQUE_CAMERA = 0, 1


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One pass: share of all photos, height over that of the main pass, heading of the view (None: nadir)."""

    share: float
    height: float = 1.0
    heading: tuple[float, float] | None = None


_PASSES = (
    _Pass(share=0.45),
    _Pass(share=0.09, heading=(1.0, 0.0)),
    _Pass(share=0.09, heading=(0.0, 1.0)),
    _Pass(share=0.09, heading=(-1.0, 0.0)),
    _Pass(share=0.09, heading=(0.0, -1.0)),
    _Pass(share=0.12, height=0.5),
    _Pass(share=0.07, height=2.0),
)


def plan_flight(
    area: Area, *, num_photos: int, size: tuple[int, int], seed: int, height: float | None = None
) -> PosedCameras:
    """Poses and cameras of a survey of `area` (metres), in the order of the flight.

    `size`: (width, height) of the photos in pixels. `height`: of the main pass over the ground, metres; default: such
    that its photos overlap by three quarters, within what is safe above the roofs. The close pass covers the middle
    of the area only, so that the finest level of detail does too. Nadir photos have a SIMPLE_RADIAL camera, oblique
    ones OPENCV. SettingsError for a count, size or height that makes no survey.
    """
    width_px, height_px = size
    if num_photos < 1 or min(size) < 8:
        raise SettingsError(
            f"city survey: expected at least 1 photo of at least 8x8 pixels, got {num_photos} of {width_px}x{height_px}"
        )
    if height is not None and not 2.0 * MAX_HEIGHT < height < 1e5:
        raise SettingsError(f"city survey height: expected more than {2.0 * MAX_HEIGHT} m (metres), got {height}")
    cameras = _cameras(size)
    focal = cameras[_NADIR_CAMERA].focal
    counts = _share_out(num_photos)
    if height is None:
        spacing = math.sqrt((area[2] - area[0]) * (area[3] - area[1]) / max(counts[0], 1))
        footprint = spacing / (1.0 - _OVERLAP)
        height = min(max(footprint * focal / math.sqrt(width_px * height_px), _LOWEST), _HIGHEST)
    rng = np.random.default_rng((seed, 1))
    poses, index = [], []
    for leg, count in zip(_PASSES, counts, strict=True):
        altitude = height * leg.height
        covered = area
        if leg.height < 1.0:
            footprint = altitude * math.sqrt(width_px * height_px) / focal
            covered = _middle(area, math.sqrt(count) * (1.0 - _CLOSE_OVERLAP) * footprint)
        targets, headings = _grid(covered, count, width_px / height_px)
        poses.append(_poses(targets, headings, altitude, leg.heading, rng))
        index.append(np.full(count, _NADIR_CAMERA if leg.heading is None else _OBLIQUE_CAMERA, dtype=np.int32))
    return PosedCameras(
        cameras=cameras, camera_index=np.concatenate(index), camera_to_world=np.concatenate(poses)
    ).subset(np.arange(num_photos))


def footprint_boxes(cameras: PosedCameras) -> Float64:
    """Bounding boxes (x0, y0, x1, y1), float64 [n, 4], of what each photo can see between the ground and the highest
    roof.

    Rays to or above the horizon count as far as a fixed multiple of the camera's height.
    """
    boxes = np.empty((cameras.num_photos, 4), dtype=np.float64)
    borders = [unproject(camera, _border(camera)) for camera in cameras.cameras]
    for k, border in enumerate(borders):
        rows = np.flatnonzero(cameras.camera_index == k)
        directions = np.einsum("nij,mj->nmi", cameras.camera_to_world[rows, :, :3], border)
        centres = cameras.centres[rows]
        ends = []
        for z in (0.0, MAX_HEIGHT):
            drop = centres[:, None, 2] - z
            down = -directions[:, :, 2]
            flat = np.hypot(directions[:, :, 0], directions[:, :, 1])
            reach = _REACH * np.maximum(centres[:, None, 2], 1.0)
            t = np.where(down * reach > drop * flat, drop / np.maximum(down, 1e-12), reach / np.maximum(flat, 1e-12))
            ends.append(centres[:, None, :2] + np.maximum(t, 0.0)[:, :, None] * directions[:, :, :2])
        corners = np.concatenate(ends, axis=1)
        boxes[rows, :2] = corners.min(axis=1)
        boxes[rows, 2:] = corners.max(axis=1)
    return boxes


def _border(camera: Camera) -> Float64:
    """Pixel positions around the image's border, float64 [16, 2]."""
    steps = np.linspace(0.0, 1.0, 5)
    x, y = steps * camera.width, steps * camera.height
    sides = [
        np.stack([x, np.zeros(5)], axis=1),
        np.stack([x, np.full(5, float(camera.height))], axis=1),
        np.stack([np.zeros(5), y], axis=1)[1:-1],
        np.stack([np.full(5, float(camera.width)), y], axis=1)[1:-1],
    ]
    return np.concatenate(sides)


def _cameras(size: tuple[int, int]) -> tuple[Camera, Camera]:
    """Two slightly distorted cameras with principal points off the centre; the oblique one has the longer lens."""
    width, height = size
    focal = _FOCAL * width
    nadir = Camera("SIMPLE_RADIAL", width, height, (focal, 0.502 * width, 0.497 * height, -0.035))
    oblique = Camera(
        "OPENCV", width, height,
        (1.51 * focal, 1.512 * focal, 0.498 * width, 0.503 * height, -0.045, 0.012, 4e-4, -3e-4),
    )  # fmt: skip
    return nadir, oblique


def _share_out(num_photos: int) -> list[int]:
    """Photos per pass, by largest remainder: they add up exactly."""
    quotas = [leg.share * num_photos for leg in _PASSES]
    counts = [int(q) for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda k: counts[k] - quotas[k])
    for k in by_remainder[: num_photos - sum(counts)]:
        counts[k] += 1
    return counts


def _middle(area: Area, edge: float) -> Area:
    """The square of this edge in the middle of the area, not larger than the area."""
    cx, cy = 0.5 * (area[0] + area[2]), 0.5 * (area[1] + area[3])
    rx, ry = 0.5 * min(edge, area[2] - area[0]), 0.5 * min(edge, area[3] - area[1])
    return cx - rx, cy - ry, cx + rx, cy + ry


def _grid(area: Area, count: int, aspect: float) -> tuple[Float64, Float64]:
    """Exactly `count` places on lines along x, flown to and fro: (places, headings) float64 [count, 2].

    Lines are `aspect` (width over height of a photo, whose width lies across the line) times further apart than places.
    """
    if count == 0:
        return np.zeros((0, 2)), np.zeros((0, 2))
    size_x, size_y = area[2] - area[0], area[3] - area[1]
    lines = min(max(round(math.sqrt(count * size_y / (size_x * aspect))), 1), count)
    per_line = np.diff(np.round(np.linspace(0, count, lines + 1)).astype(np.int64))
    places, headings = [], []
    for line, n in enumerate(per_line):
        x = area[0] + size_x * (np.arange(n) + 0.5) / n
        forth = line % 2 == 0
        y = area[1] + size_y * (line + 0.5) / lines
        places.append(np.stack([x if forth else x[::-1], np.full(n, y)], axis=1))
        headings.append(np.tile([1.0 if forth else -1.0, 0.0], (int(n), 1)))
    return np.concatenate(places), np.concatenate(headings)


def _poses(
    targets: Float64, headings: Float64, altitude: float, view: tuple[float, float] | None, rng: np.random.Generator
) -> Float64:
    """Camera-to-world float64 [n, 3, 4] of photos aimed at ground targets, with a real flight's small deviations."""
    n = len(targets)
    places = targets.copy()
    level = headings if view is None else np.tile(view, (n, 1))
    up = np.concatenate([level, np.zeros((n, 1))], axis=1)
    forward = np.tile([0.0, 0.0, -1.0], (n, 1))
    if view is not None:
        # 45 degrees down; the drone stands back so that the middle of the photo is the target.
        places -= altitude * level
        forward, up = (up + forward) / math.sqrt(2.0), (up - forward) / math.sqrt(2.0)
    places += rng.normal(0.0, 0.01 * altitude, (n, 2))
    altitudes = altitude + rng.uniform(-0.02, 0.02, n) * altitude
    forward += rng.normal(0.0, 0.02, (n, 3))
    up += rng.normal(0.0, 0.03, (n, 3))
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=2)
    centre = np.concatenate([places, altitudes[:, None]], axis=1)
    return np.concatenate([rotation, centre[:, :, None]], axis=2)
