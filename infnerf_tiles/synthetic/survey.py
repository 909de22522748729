"""Surveys of any size for tests of scale: real poses, points on a rolling ground and their tracks, tiny photos or none.

The city's photographs take seconds each; here a survey of 20,000 photos and 30 million observations takes seconds in
all, because the ground is a formula and every pass of the loop is over arrays.
"""

import json
import math
from pathlib import Path

import numpy as np
import simplejpeg

from infnerf_tiles.arrays import Float64, Int64, UInt8
from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.data.records import Points
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras

HEIGHT = 100.0
"""Metres above the ground."""
_SPACING = 25.0  # metres between photos, along and across
_NOISE = 0.3  # pixels
_JPEG_QUALITY = 90


def write_survey(
    folder: Path,
    *,
    num_photos: int,
    points_per_photo: int = 180,
    track_length: int = 8,
    size: tuple[int, int] = (64, 48),
    photos: bool = True,
    seed: int = 0,
) -> None:
    """Write a nadir survey as a binary COLMAP model in `folder`/sparse/0 and, with `photos`, images/.

    The area grows with the number of photos: density and overlap stay what they are. Each point is seen by the
    `track_length` photos nearest to it. SettingsError for a count below 2.
    """
    if num_photos < 2 or points_per_photo < 1 or track_length < 1:
        raise SettingsError(f"survey: expected at least 2 photos, a point and an observer, got {num_photos} photos")
    rng = np.random.default_rng(seed)
    side = math.ceil(math.sqrt(num_photos))
    k = np.arange(num_photos)
    row, column = np.divmod(k, side)
    centres = np.stack([column * _SPACING, row * _SPACING, np.full(num_photos, HEIGHT)], axis=1).astype(np.float64)
    centres += rng.normal(0.0, 0.5, centres.shape)
    camera = Camera("PINHOLE", size[0], size[1], (size[0] * 0.9, size[0] * 0.9, size[0] / 2, size[1] / 2))
    poses = np.zeros((num_photos, 3, 4))
    poses[:, :, :3] = np.diag([1.0, -1.0, -1.0])
    poses[:, :, 3] = centres
    cameras = PosedCameras((camera,), np.zeros(num_photos, np.int32), poses)

    num_points = num_photos * points_per_photo // 2
    xy = rng.uniform(-0.5, 0.5, (num_points, 2)) * _SPACING
    home = rng.integers(0, num_photos, num_points)
    xy += centres[home, :2]
    xyz = np.column_stack([xy, _ground(xy)])
    tracks = _nearest(xyz, side, num_photos, track_length)
    order = np.argsort(xyz[:, 0] // 200 * 1e6 + xyz[:, 1])  # neighbours in the file are neighbours on the ground
    xyz, tracks = xyz[order], tracks[order]
    lengths = (tracks >= 0).sum(axis=1)
    points = Points(
        xyz=xyz,
        rgb=rng.integers(0, 256, (num_points, 3)).astype(np.uint8),
        error=rng.uniform(0.2, 1.2, num_points).astype(np.float32),
        track_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        track_photos=tracks[tracks >= 0].astype(np.int32),
    )
    owner = np.repeat(np.arange(num_points), lengths)
    away = xyz[owner] - centres[points.track_photos]
    focal = camera.focal
    seen = np.column_stack([away[:, 0], -away[:, 1]]) / -away[:, 2:] * focal + np.array(size) / 2
    seen += rng.normal(0.0, _NOISE, seen.shape)
    names = tuple(f"photo_{i:06d}.jpg" for i in range(num_photos))
    write_colmap(folder / "sparse" / "0", names=names, cameras=cameras, points=points, track_xy=seen)
    if photos:
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            (images / name).write_bytes(_photo(camera, centres[i]))
    facts = {"survey": {"num_photos": num_photos, "points": num_points, "observations": len(owner)}}
    (folder / "survey.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _ground(xy: Float64) -> Float64:
    """Height of the ground, metres."""
    height: Float64 = 3.0 * np.sin(xy[:, 0] / 40.0) * np.cos(xy[:, 1] / 55.0)
    return height


def _nearest(xyz: Float64, side: int, num_photos: int, count: int) -> Int64:
    """int64 [m, count]: photos of the grid around each point's own, nearest first; -1 beyond the grid."""
    cell = np.floor(xyz[:, :2] / _SPACING + 0.5).astype(np.int64)
    reach = math.ceil(math.sqrt(count))
    offsets = np.array([(x, y) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1)])
    offsets = offsets[np.argsort((offsets**2).sum(axis=1), kind="stable")][:count]
    at = cell[:, None] + offsets
    photo: Int64 = at[..., 1] * side + at[..., 0]
    photo[(at[..., 0] < 0) | (at[..., 0] >= side) | (photo < 0) | (photo >= num_photos)] = -1
    return photo


def _photo(camera: Camera, centre: Float64) -> bytes:
    """What a camera that looks straight down sees of a chequered ground."""
    y, x = np.meshgrid(np.arange(camera.height) + 0.5, np.arange(camera.width) + 0.5, indexing="ij")
    scale = HEIGHT / camera.focal
    east = centre[0] + (x - camera.width / 2) * scale
    north = centre[1] - (y - camera.height / 2) * scale
    squares = (np.floor(east / 12.0) + np.floor(north / 9.0)) % 2
    light = 0.5 + 0.25 * np.sin(east / 5.0) * np.cos(north / 7.0) + 0.2 * squares
    rgb: UInt8 = (np.clip(np.stack([light, 0.9 * light, 0.8 * light], axis=-1), 0, 1) * 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=_JPEG_QUALITY))
