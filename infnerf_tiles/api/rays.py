"""What an `InfNeRFTrainer` learns from: batches of rays, and the photos that they are drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from infnerf_tiles.arrays import Bool, UInt8
from infnerf_tiles.data.dataset import Points, PosedPhotos, read_dataset
from infnerf_tiles.data.photos import PhotoCache, mask_pyramid, num_pyramid_levels, pyramid
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.training.pixels import PixelSet, all_patches
from infnerf_tiles.training.schedule import coarsening

_CACHE_BYTES = 512 << 20
_MAX_PYRAMID = 12


@dataclass(frozen=True, kw_only=True)
class RayBatch:
    """Rays and the colours they should see. All tensors have one row per ray."""

    rays_o: Tensor
    """float [Q, 3], world."""
    rays_d: Tensor
    """float [Q, 3], world, any length but 0."""
    rgb: Tensor
    """float [Q, 3] in [0, 1], sRGB."""
    focal_length: Tensor | float = 1.0
    """float [Q] or one for all, pixels of pyramid level 0."""
    pixel_width: Tensor | float = 1.0
    """float [Q] or one for all: 2^p at pyramid level p."""
    photo: Tensor | None = None
    """int64 [Q], the photo that each ray belongs to."""
    depth: Tensor | None = None
    """float [Q], distance to what the ray hits, world units; not finite or not above 0 where unknown."""
    near: float | None = None
    far: float | None = None

    @classmethod
    def of(cls, batch: "RayBatch | Mapping[str, Any]") -> "RayBatch":
        """The batch itself, or one from a mapping with the same names. SettingsError for other names."""
        if isinstance(batch, RayBatch):
            return batch
        known = {field.name for field in fields(cls)}
        if not {"rays_o", "rays_d", "rgb"} <= batch.keys() <= known:
            raise SettingsError(f"batch: expected rays_o, rays_d, rgb and perhaps {known}, got {sorted(batch)}")
        return cls(**batch)

    @property
    def num_rays(self) -> int:
        """Rays Q."""
        return int(self.rays_o.shape[0])

    def part(self, rank: int, parts: int) -> "RayBatch":
        """Every `parts`-th ray from ray `rank` on."""
        if parts == 1:
            return self
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.dim():
                changed[field.name] = value[rank::parts]
        return replace(self, **changed)


@runtime_checkable
class Sampler(Protocol):
    """Draws training rays. What it draws must follow from `rng` alone, so that a resumed training goes on exactly."""

    def sample(self, rng: np.random.Generator, count: int, progress: float) -> RayBatch:
        """`count` rays; `progress` runs from 0 to 1 over the training."""


class PhotoSource(Protocol):
    """Photos with poses: what `InfNeRFTrainer` takes besides samplers of rays. `PhotoArrays` and `photo_source` are."""

    @property
    def cameras(self) -> PosedCameras:
        """Intrinsics and poses of n photos."""

    @property
    def is_test(self) -> Bool:
        """bool [n]: photos that are held out."""

    @property
    def points(self) -> Points | None:
        """Sparse points, if there are any."""

    def read_pyramid(self, photo: int) -> list[tuple[UInt8, Bool | None]]:
        """(uint8 [h, w, 3], mask bool [h, w] or None) per pyramid level."""


def as_camera(intrinsics: Any, width: int, height: int) -> Camera:
    """A camera from a `Camera`, a 3x3 matrix, (fx, fy, cx, cy) or a focal length, pixels; skew is not supported."""
    if isinstance(intrinsics, Camera):
        return intrinsics
    k = np.asarray(intrinsics.detach().cpu() if isinstance(intrinsics, Tensor) else intrinsics, np.float64)
    if k.shape == ():
        return Camera("PINHOLE", width, height, (float(k), float(k), width / 2, height / 2))
    if k.shape == (4,):
        return Camera("PINHOLE", width, height, tuple(k.tolist()))
    if k.shape in ((3, 3), (4, 4)):
        return Camera("PINHOLE", width, height, (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])))
    raise SettingsError(f"intrinsics: expected a Camera, [3, 3], (fx, fy, cx, cy) or a focal length, got {k.shape}")


def as_poses(poses: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 [n, 3, 4] from camera-to-world [n, 4, 4], [n, 3, 4] or one pose; OpenCV axes."""
    if isinstance(poses, Sequence):
        poses = [p.detach().cpu().numpy() if isinstance(p, Tensor) else np.asarray(p) for p in poses]
    found = np.asarray(poses.detach().cpu() if isinstance(poses, Tensor) else poses, np.float64)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[1:] not in ((3, 4), (4, 4)):
        raise SettingsError(f"camera poses: expected [n, 4, 4] or [n, 3, 4], camera-to-world, got {found.shape}")
    return np.ascontiguousarray(found[:, :3])


class PhotoArrays:
    """Photos and poses from memory, as a data set."""

    def __init__(
        self,
        images: Sequence[ArrayLike] | Tensor,
        poses: Any,
        intrinsics: Any,
        *,
        masks: Sequence[ArrayLike] | None = None,
        is_test: ArrayLike | None = None,
        points: Points | None = None,
    ):
        """Keep n photos.

        Args:
            images: n arrays or tensors [h, w, 3], uint8 or float in [0, 1], sRGB; sizes may differ.
            poses: [n, 4, 4] or [n, 3, 4], camera-to-world, OpenCV axes (x right, y down, z forward).
            intrinsics: one for all or a list of n: `Camera`, [3, 3], (fx, fy, cx, cy) or a focal length, pixels.
            masks: bool [h, w] each; nonzero is used. is_test: bool [n]; default: none is held out.
            points: sparse points, from which the octree starts.

        DatasetError if the numbers or sizes disagree, CameraError for a pose that is none.
        """
        self.images = [_as_uint8(image) for image in images]
        count = len(self.images)
        pose = as_poses(poses)
        each = list(intrinsics) if isinstance(intrinsics, list) else [intrinsics] * count
        if not count or len(pose) != count or len(each) != count:
            raise DatasetError(f"photos: expected as many poses and intrinsics as the {count} images, got {len(pose)}")
        cameras = [as_camera(k, im.shape[1], im.shape[0]) for k, im in zip(each, self.images, strict=True)]
        for row, (camera, image) in enumerate(zip(cameras, self.images, strict=True)):
            if (camera.height, camera.width) != image.shape[:2]:
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise DatasetError(f"photo {row}: expected {camera.width}x{camera.height} as its camera, got {size}")
        unique = list(dict.fromkeys(cameras))
        self.cameras = PosedCameras(tuple(unique), np.array([unique.index(c) for c in cameras], np.int32), pose)
        self.masks = None if masks is None else [np.asarray(m, np.bool_) for m in masks]
        self.is_test: Bool = np.zeros(count, np.bool_) if is_test is None else np.asarray(is_test, np.bool_)
        self.points = points

    def read_pyramid(self, photo: int) -> list[tuple[UInt8, Bool | None]]:
        """(uint8 [h, w, 3], mask bool [h, w] or None) per pyramid level."""
        return _levels(self.images[photo], None if self.masks is None else self.masks[photo])


class _PhotoFiles:
    """The photos of a `PosedPhotos`, decoded when they are asked for."""

    def __init__(self, photos: PosedPhotos):
        self.photos, self.cameras, self.is_test = photos, photos.cameras, photos.is_test
        self.points = photos.points
        self._cache = PhotoCache(_CACHE_BYTES)

    def read_pyramid(self, photo: int) -> list[tuple[UInt8, Bool | None]]:
        """(uint8 [h, w, 3], mask bool [h, w] or None) per pyramid level."""
        decoded = self._cache.get(self.photos.photo_file(photo))
        return _levels(decoded.rgb, decoded.mask)


def _levels(rgb: UInt8, mask: Bool | None) -> list[tuple[UInt8, Bool | None]]:
    levels = num_pyramid_levels(rgb.shape[1], rgb.shape[0])
    images = pyramid(rgb, levels)
    masks: Sequence[Bool | None] = [None] * levels if mask is None else mask_pyramid(mask, levels)
    return list(zip(images, masks, strict=True))


def _as_uint8(image: Any) -> UInt8:
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim != 3 or array.shape[2] != 3:
        raise DatasetError(f"photo: expected [h, w, 3], got {array.shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    return (np.clip(array.astype(np.float64), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def photo_source(dataset: Any) -> PhotoSource | None:
    """The photos of a data set: `PosedPhotos`, a folder's path, or anything with a `PhotoSource`'s names; else None."""
    if isinstance(dataset, str | Path):
        dataset = read_dataset(Path(dataset))
    if isinstance(dataset, PosedPhotos):
        return _PhotoFiles(dataset)
    if hasattr(dataset, "cameras") and hasattr(dataset, "read_pyramid"):
        source: PhotoSource = dataset
        return source
    return None


class PhotoSampler:
    """Draws pixels of the training photos, all pyramid levels together; at first as if pixels were wider."""

    def __init__(self, source: PhotoSource, *, coarse_first: bool = True):
        self.source, self.coarse_first = source, coarse_first
        photos = [int(i) for i in np.flatnonzero(~np.asarray(source.is_test))]
        if not photos:
            raise DatasetError("photos: expected at least one that is not held out for testing, got none")
        self.pixels = PixelSet.gather(all_patches(source.cameras, photos), source.read_pyramid)

    @property
    def num_rays(self) -> int:
        """Pixels of the photos and their pyramids."""
        return self.pixels.num_pixels

    @cached_property
    def _max_coarsening(self) -> int:
        return self.pixels.num_levels - 1 + _MAX_PYRAMID

    def sample(self, rng: np.random.Generator, count: int, progress: float) -> RayBatch:
        """Rays of pixels, uniformly over all that are not masked."""
        coarser = min(coarsening(progress), self._max_coarsening) if self.coarse_first else 0
        batch = self.pixels.draw(rng, count, coarser)
        origins, directions = self.source.cameras.rays(batch.photo, batch.xy)
        return RayBatch(
            rays_o=torch.from_numpy(np.ascontiguousarray(origins)),
            rays_d=torch.from_numpy(directions),
            rgb=torch.from_numpy(batch.rgb),
            focal_length=torch.from_numpy(self.source.cameras.focals[batch.photo]),
            pixel_width=torch.from_numpy(np.exp2(np.maximum(batch.pyramid, coarser).astype(np.float64))),
            photo=torch.from_numpy(batch.photo.astype(np.int64)),
        )
