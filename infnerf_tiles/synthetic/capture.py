"""Photographs the synthetic city and writes a COLMAP data set whose truth is known."""

import json
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg

from infnerf_tiles.arrays import Bool, Float32, Float64, UInt8, check_shape
from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.data.records import Points
from infnerf_tiles.data.splits import SPLIT_FILE, every_kth
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras, unproject
from infnerf_tiles.synthetic.flight import footprint_boxes, plan_flight
from infnerf_tiles.synthetic.layout import BLOCK_EDGE
from infnerf_tiles.synthetic.scene import City, block_bounds
from infnerf_tiles.synthetic.tracks import make_tracks

logger = logging.getLogger(__name__)

TEST_EVERY = 8
MARKER_FILE = "city.json"
_JPEG_QUALITY = 95
_POINTS_PER_PHOTO = 133
_MAX_POINTS = 250_000  # by default: every point of a large survey is in some 50 photos
_STRIP_RAYS = 1 << 20  # rays of one camera kept and cast at once


class CityPhotographer:
    """Draws photos of a city with exact anti-aliasing by averaging `supersample`^2 rays per pixel.

    Keeps the rays of the cameras it met, up to a fixed number of bytes, so that the distortion is inverted once per
    camera.
    """

    def __init__(self, city: City, supersample: int = 3) -> None:
        if not 1 <= supersample <= 16:
            raise SettingsError(f"supersample: expected 1 to 16 rays per pixel edge, got {supersample}")
        self.city = city
        self.supersample = supersample
        self._directions = lru_cache(maxsize=8)(_subpixel_directions)

    def photo(self, camera: Camera, camera_to_world: Float64) -> Float32:
        """The view of a camera: float32 [h, w, 3] display values in [0, 1]. `camera_to_world`: float64 [3, 4]."""
        check_shape("camera_to_world", camera_to_world, (3, 4))
        k = self.supersample
        rows = max(_STRIP_RAYS // (camera.width * k * k), 1)
        strips = [
            self.city.mean_colours(
                camera_to_world, self._directions(camera, k, top, min(top + rows, camera.height)), k * k
            )
            for top in range(0, camera.height, rows)
        ]
        return np.concatenate(strips).reshape(camera.height, camera.width, 3)


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticDataset:
    """A written data set and its truth.

    root: its folder; names: of the photos, in the order of `cameras`; is_test: bool [n]; points: as written;
    true_xyz: float64 [m, 3], the points without noise; gains: float32 [n, 3], the colour gains of the photos.
    """

    root: Path
    city: City
    names: tuple[str, ...]
    cameras: PosedCameras
    is_test: Bool
    points: Points
    true_xyz: Float64
    gains: Float32

    def depth(self, photo: int) -> Float32:
        """True distance along the ray through every pixel centre, metres, inf for the sky: float32 [h, w]."""
        camera = self.cameras.camera(photo)
        directions = _subpixel_directions(camera, 1, 0, camera.height)
        pose = self.cameras.camera_to_world[photo]
        t = self.city.distance(pose[None, :, 3], directions @ pose[:, :3].T)
        return t.reshape(camera.height, camera.width).astype(np.float32)


def write_city_dataset(
    folder: Path,
    *,
    blocks: tuple[int, int] = (3, 3),
    num_photos: int = 60,
    size: tuple[int, int] = (320, 240),
    seed: int = 0,
    supersample: int = 3,
    exposure: float = 0.03,
    num_points: int | None = None,
    height: float | None = None,
    poses_only: bool = False,
) -> SyntheticDataset:
    """Flies over `blocks` city blocks (60 m each) and writes sparse/0 (binary COLMAP), images/, split.json.

    The city goes on beyond the flown blocks as far as any photo sees. size: (width, height) in pixels. exposure:
    relative range of a random brightness gain per photo, a third of it per colour channel on top. num_points: default
    133 per photo, at most 250,000. height: of the main pass, metres (default: from the overlap). poses_only: writes
    no photos. Every eighth photo is a test photo. The same arguments write the same data set; an earlier city in the
    folder is overwritten. SettingsError for arguments that make no survey, DatasetError if the folder holds something
    else.
    """
    if not 0.0 <= exposure < 0.5:
        raise SettingsError(f"exposure: expected 0 <= exposure < 0.5, got {exposure}")
    if num_points is not None and num_points < 0:
        raise SettingsError(f"num_points: expected at least 0, got {num_points}")
    if seed < 0:
        raise SettingsError(f"seed: expected an integer >= 0, got {seed}")
    area = block_bounds(blocks)
    cameras = plan_flight(area, num_photos=num_photos, size=size, seed=seed, height=height)
    seen = footprint_boxes(cameras)
    overhang = max((area[0] - seen[:, 0]).max(), (area[1] - seen[:, 1]).max(),
                   (seen[:, 2] - area[2]).max(), (seen[:, 3] - area[3]).max())  # fmt: skip
    margin = max(math.ceil(overhang / BLOCK_EDGE), 1)
    city = City.generate((blocks[0] + 2 * margin, blocks[1] + 2 * margin), seed)
    names = tuple(f"photo_{i:0{max(len(str(num_photos - 1)), 4)}d}.jpg" for i in range(num_photos))
    gains = _gains(num_photos, exposure, seed)

    arguments = {"blocks": blocks, "num_photos": num_photos, "size": size, "seed": seed, "supersample": supersample}
    _claim(folder, arguments)
    sparse = folder / "sparse" / "0"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    # The model comes last: a folder whose writing was interrupted is no data set instead of a mixed one.
    for old in sparse.glob("*.bin"):
        old.unlink()
    if not poses_only:
        photographer = CityPhotographer(city, supersample)
        for i, name in enumerate(names):
            photo = photographer.photo(cameras.camera(i), cameras.camera_to_world[i])
            (folder / "images" / name).write_bytes(_jpeg(photo * gains[i]))
    wanted = min(_POINTS_PER_PHOTO * num_photos, _MAX_POINTS) if num_points is None else num_points
    tracks = make_tracks(city, cameras, wanted, seed)
    is_test = every_kth(names, TEST_EVERY)
    split = {
        "rule": f"every {TEST_EVERY}th photo in file-name order",
        "test": [name for name, held_out in zip(names, is_test, strict=True) if held_out],
    }
    (folder / SPLIT_FILE).write_text(json.dumps(split, indent=0) + "\n", encoding="utf-8")
    write_colmap(sparse, names=names, cameras=cameras, points=tracks.points, track_xy=tracks.keypoints)
    logger.info("%s: %d photos, %d points", folder, num_photos, tracks.points.num_points)
    return SyntheticDataset(
        root=folder,
        city=city,
        names=names,
        cameras=cameras,
        is_test=is_test,
        points=tracks.points,
        true_xyz=tracks.true_xyz,
        gains=gains,
    )


def _claim(folder: Path, arguments: dict[str, object]) -> None:
    """Marks the folder as a synthetic city's. DatasetError if it holds anything else: photos there may be someone's."""
    if folder.exists() and not (folder / MARKER_FILE).is_file() and any(folder.iterdir()):
        raise DatasetError(
            f"{folder}: expected an empty folder or an earlier synthetic city, got other files; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER_FILE).write_text(json.dumps({"synthetic_city": arguments}) + "\n", encoding="utf-8")


def _subpixel_directions(camera: Camera, supersample: int, top: int, bottom: int) -> Float64:
    """Unit directions (camera frame) of a k x k grid in every pixel of some rows: float64 [rows * w * k^2, 3]."""
    rows, columns = np.arange(top, bottom), np.arange(camera.width)
    offsets = (np.arange(supersample) + 0.5) / supersample
    y, x, dy, dx = np.meshgrid(rows, columns, offsets, offsets, indexing="ij")
    return unproject(camera, np.stack([x + dx, y + dy], axis=-1).reshape(-1, 2))


def _gains(num_photos: int, exposure: float, seed: int) -> Float32:
    """Brightness and white-balance gains, float32 [n, 3]."""
    rng = np.random.default_rng((seed, 3))
    brightness = rng.uniform(-exposure, exposure, (num_photos, 1))
    balance = rng.uniform(-exposure / 3.0, exposure / 3.0, (num_photos, 3))
    return ((1.0 + brightness) * (1.0 + balance)).astype(np.float32)


def _jpeg(image: Float32) -> bytes:
    pixels: UInt8 = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_JPEG_QUALITY, colorsubsampling="444"))
