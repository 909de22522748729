"""Small data sets on disk for the tests of the readers."""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.data.records import Points
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.rotation import look_at

WIDTH, HEIGHT = 80, 60
CAMERA = Camera("OPENCV", WIDTH, HEIGHT, (70.0, 71.0, 40.5, 29.5, -0.05, 0.01, 0.001, -0.002))
SIX_NAMES = [f"photo_0{i}.jpg" for i in range(6)]
PINHOLE = Camera("PINHOLE", WIDTH, HEIGHT, (70.0, 70.0, 40.0, 30.0))


def texture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth coloured picture, uint8[height, width, 3], that JPEG keeps well."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(3)]
    return (127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def write_jpeg(path: Path, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(texture(width, height, seed), quality=95, colorsubsampling="444"))
    return path


def png_bytes(pixels: np.ndarray[Any, Any]) -> bytes:
    """An 8- or 16-bit grey, grey-alpha, RGB or RGBA PNG written by hand, so that every kind can be had."""
    height, width = pixels.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def write_png(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(pixels))
    return path


def tiff_bytes(pixels: np.ndarray[Any, Any], orientation: int = 1) -> bytes:
    """An uncompressed little-endian TIFF [h, w, c] written by hand."""
    height, width, channels = pixels.shape
    bits = struct.pack(f"<{channels}H", *[8 * pixels.dtype.itemsize] * channels)
    num_tags = 11 + (channels == 4)
    bits_at = 8 + 2 + 12 * num_tags + 4
    data_at = bits_at + 8

    def tag(number: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", number, kind, count, value)

    tags = [
        tag(256, 4, 1, width),
        tag(257, 4, 1, height),
        tag(258, 3, channels, bits_at if channels > 2 else 8 * pixels.dtype.itemsize),
        tag(259, 3, 1, 1),
        tag(262, 3, 1, 2 if channels > 2 else 1),
        tag(273, 4, 1, data_at),
        tag(274, 3, 1, orientation),
        tag(277, 3, 1, channels),
        tag(278, 4, 1, height),
        tag(279, 4, 1, pixels.nbytes),
        tag(284, 3, 1, 1),
    ]
    tags += [tag(338, 3, 1, 2)] if channels == 4 else []
    head = b"II*\0" + struct.pack("<IH", 8, num_tags) + b"".join(tags) + struct.pack("<I", 0)
    return head + bits.ljust(8, b"\0") + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


def circle(num_photos: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Poses float64[n, 3, 4] on a circle, looking at the origin."""
    angles = np.arange(num_photos) * (2 * np.pi / num_photos)
    eyes = np.stack([4 * np.cos(angles), 4 * np.sin(angles), 2 + 0.1 * angles], axis=1)
    return look_at(eyes, np.zeros_like(eyes), np.array([0.0, 0.0, 1.0]))


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A data set as it was written."""

    folder: Path
    names: tuple[str, ...]
    cameras: PosedCameras
    points: Points


def write_capture(
    folder: Path,
    *,
    names: Sequence[str] = SIX_NAMES,
    cameras: Sequence[Camera] = (CAMERA, PINHOLE),
    num_points: int = 20,
    text: bool = False,
    photos: bool = True,
    poses: np.ndarray[Any, np.dtype[np.float64]] | None = None,
) -> Capture:
    """A COLMAP data set: sparse/0, images/. Photo i has camera i modulo their number; every point is seen by 2 to 4."""
    rng = np.random.default_rng(5)
    count = len(names)
    posed = PosedCameras(
        cameras=tuple(cameras),
        camera_index=(np.arange(count) % len(cameras)).astype(np.int32),
        camera_to_world=circle(count) if poses is None else poses,
    )
    lengths = rng.integers(2, min(4, count) + 1, num_points) if count > 1 else np.ones(num_points, np.int64)
    tracks = [rng.permutation(count)[:length] for length in lengths]
    points = Points(
        xyz=rng.uniform(-0.5, 0.5, (num_points, 3)),
        rgb=rng.integers(0, 256, (num_points, 3)).astype(np.uint8),
        error=rng.uniform(0, 1, num_points).astype(np.float32),
        track_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        track_photos=np.concatenate(tracks).astype(np.int32) if tracks else np.zeros(0, np.int32),
    )
    write_colmap(folder / "sparse/0", names=names, cameras=posed, points=points, text=text)
    for i, name in enumerate(names):
        if photos:
            camera = posed.camera(i)
            write_jpeg(folder / "images" / name, camera.width, camera.height, seed=i)
    return Capture(folder=folder, names=tuple(names), cameras=posed, points=points)


def opengl_matrix(pose: np.ndarray[Any, np.dtype[np.float64]]) -> list[list[float]]:
    """A camera-to-world pose, float64[3, 4] with OpenCV axes, as transforms.json writes it."""
    matrix: list[list[float]] = np.vstack([pose * [1, -1, -1, 1], [0, 0, 0, 1]]).tolist()
    return matrix


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
