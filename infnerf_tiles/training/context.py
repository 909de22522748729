"""What every training task opens for itself: the scene, the photos, and the constants that follow from both."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float64, UInt8
from infnerf_tiles.data.colmap import model_folders
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.observers import observers
from infnerf_tiles.data.photos import decode_masked_photo, mask_pyramid, num_pyramid_levels, pyramid
from infnerf_tiles.errors import DamagedPhotoError, DatasetError, NoPosesError
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.stored_cameras import StoredCameras, StoredFiles
from infnerf_tiles.training.shared import Shared

_POSE_FILES = (".bin", ".txt", ".json", ".ply")
MOST_READERS = 4
"""Most photos that are decoded at the same time where nothing else is to be done."""
READING_BYTES = 1 << 30
"""Memory for that, unless a single photo takes more."""
TRAINING_NEAR = 16.0
"""Where training rays start, in finest GSDs: nearer than that a floater fills the view and no photo can correct it."""


@dataclass(frozen=True)
class Context:
    """An open scene with its photos."""

    store: SceneStore
    photos: PosedPhotos
    settings: Settings

    @cached_property
    def shape(self) -> FieldShape:
        """Sizes of the scene's field."""
        h = self.store.header
        return FieldShape(cells=h.cells, table_size=h.table_size, features=h.features)

    @cached_property
    def gsd_root(self) -> float:
        """GSD of level 0, world units."""
        return float(gsd(self.store.header.root.edge, self.store.header.cells, 0))

    @cached_property
    def gsd_finest(self) -> float:
        """GSD of the deepest level, world units."""
        return self.gsd_root / 2.0**self.store.header.max_level

    @cached_property
    def surface_points(self) -> Float64:
        """float64 [k, 3], world: sparse points that enough photos see, likely ones where tracks are missing."""
        points = self.photos.points
        if points is None:
            return np.empty((0, 3))
        return points.xyz[observers(points, self.photos.cameras).reliable]

    @property
    def has_surface_points(self) -> bool:
        """Whether there are `surface_points`."""
        points = self.photos.points
        return points is not None and bool(observers(points, self.photos.cameras).reliable.any())

    def march(self, step: float) -> MarchSettings:
        """The training lattice with the given step C."""
        return MarchSettings(
            near=TRAINING_NEAR * self.gsd_finest,
            step=step,
            gsd_root=self.gsd_root,
            lod_bias=self.settings.octree.lod_bias,
        )

    def new_shared(self) -> Shared:
        """Fresh decoder, appearance and background, drawn from the training seed."""
        s = self.settings
        generator = torch.Generator().manual_seed(s.training.seed)
        return Shared(
            decoder=Decoder(
                decoder_shape(
                    features=s.field.features,
                    hidden=s.field.hidden,
                    geometry_features=s.field.geometry_features,
                    density_bias=s.field.density_bias,
                    gsd_ref=self.store.header.gsd_ref,
                    gsd_finest=self.gsd_finest,
                ),
                generator,
            ),
            appearance=Appearance(self.photos.num_photos),
            background=Background(s.field.background),
            trainable=True,
            learns_appearance=s.field.appearance,
        )

    def read_shared(self) -> Shared:
        """Decoder, appearance and background as the seed stage left them, frozen."""
        shared = self.new_shared()
        shared.trainable = False
        shared.load_arrays(
            self.store.read_small("decoder"), self.store.read_small("appearance"), self.store.read_small("background")
        )
        return shared

    @cached_property
    def training_photos(self) -> list[int]:
        """Rows of the photos that train."""
        return [int(i) for i in np.flatnonzero(~self.photos.is_test)]

    @cached_property
    def read_pyramid(self) -> Callable[[int], list[tuple[UInt8, Bool | None]]]:
        """photo -> its pyramid levels with masks. Nothing is kept: whoever reads goes photo by photo."""

        def read(photo: int) -> list[tuple[UInt8, Bool | None]]:
            decoded = decode_masked_photo(self.photos.photo_file(photo))
            levels = num_pyramid_levels(decoded.rgb.shape[1], decoded.rgb.shape[0])
            images = pyramid(decoded.rgb, levels)
            masks: list[Bool | None] = [None] * levels
            if decoded.mask is not None:
                masks = list(mask_pyramid(decoded.mask, levels))
            return list(zip(images, masks, strict=True))

        return read


def decoding_bytes(photos: PosedPhotos) -> int:
    """Most bytes that decoding the largest photo, reducing it and building its pyramid take."""
    largest = max(c.width * c.height for c in photos.cameras.cameras)
    scale = photos.downscale
    # the file and its pixels; sums of rows and of blocks
    reducing = 4 * largest * scale**2 + (6 * largest * scale + 12 * largest if scale > 1 else 0)
    return max(reducing, 3 * largest + 12 * largest)


def num_readers(photos: PosedPhotos, threads: int = MOST_READERS) -> int:
    """Photos that may be decoded at the same time, by so many threads."""
    return max(1, min(threads, MOST_READERS, READING_BYTES // decoding_bytes(photos)))


class PhotoReader:
    """Reads photos for a task, from any number of threads; takes note of those whose contents cannot be decoded.

    Such a photo is left out by every task that comes across it, so that the order of tasks changes nothing.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._unusable: dict[int, str] = {}

    @property
    def unusable(self) -> dict[int, str]:
        """Row of each photo that was left out -> the reason; by row, whichever was read first."""
        return dict(sorted(self._unusable.items()))

    def read_pyramid(self, photo: int) -> list[tuple[UInt8, Bool | None]] | None:
        """The photo's pyramid levels with masks; None if it is left out. PhotoError if its file is not the expected
        one or cannot be read."""
        try:
            return self._context.read_pyramid(photo)
        except DamagedPhotoError as error:
            self._unusable[photo] = str(error)
            return None


def scene_dataset(
    settings: Settings, folder: Path, images: Path | None = None, *, check_photos: bool = True
) -> PosedPhotos:
    """Read the photos as the scene's settings say, by default every file's header included. Errors as `read_dataset`;
    one for a data set that is gone says how to give its place."""
    try:
        return read_dataset(
            folder, images=images, downscale=settings.data.downscale, test_every=settings.data.test_every,
            check_photos=check_photos,
        )  # fmt: skip
    except NoPosesError as error:
        raise NoPosesError(
            f"{error}. The scene looks there for its photos and poses: put them back, or give the folder where they "
            "are now with --data"
        ) from error


def in_scene_order(photos: PosedPhotos, stored: StoredCameras, files: StoredFiles | None) -> PosedPhotos:
    """The photos that a scene was built with: its order, its split, its files, its very cameras, whatever the pose
    files have come to say. DatasetError if one is not listed."""
    row_of = {name: row for row, name in enumerate(photos.names)}
    if gone := [name for name in stored.names if name not in row_of]:
        raise DatasetError(
            f"{photos.root}: expected the {len(stored.names)} photos that the scene was built with, {len(gone)} are "
            f"not listed any more: {', '.join(gone[:3])}; put them back, or build again"
        )
    rows = np.array([row_of[name] for name in stored.names], np.int64)
    # without intrinsics that no photo has, as a selection from the pose files has them
    cameras = stored.cameras.subset(np.arange(len(rows)))
    digests = None if files is None else files.digest
    return replace(photos.select(rows, stored.is_test), cameras=cameras, digests=digests)


def scene_photos(store: SceneStore, settings: Settings, folder: Path, images: Path | None = None) -> PosedPhotos:
    """The photos that a scene was built with, in its order, from the pose files alone; kept for the next task.

    No photo is opened: one that is gone or was changed is an error when it is decoded. DatasetError if one is not
    listed any more.
    """
    stored, files = store.read_cameras(), store.read_files()
    built = (stored.names, stored.is_test.tobytes(), None if files is None else files.digest.tobytes())
    key = (store.name, store.header.created, str(folder), str(images), settings.data, _signature(folder), built)
    with _memory_lock:
        if _memory.get("key") != key:
            photos = scene_dataset(settings, folder, images, check_photos=False)
            _memory.update(key=key, photos=in_scene_order(photos, stored, files))
        found: PosedPhotos = _memory["photos"]
    return found


_memory: dict[str, Any] = {}
_memory_lock = threading.Lock()


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the pose files, which change when they are written again."""
    places = model_folders(folder if folder.is_dir() else folder.parent)
    files = {file for place in places if place.is_dir() for file in place.iterdir() if file.suffix in _POSE_FILES}
    found = [(str(file), file.stat()) for file in sorted(files)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
