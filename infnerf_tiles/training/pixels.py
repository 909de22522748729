"""Pixels of a treelet: patches of photos at pyramid levels, kept as uint8; rays are made on the fly."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, Int64, UInt8
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.geometry.camera import PosedCameras

PATCH = 16
"""Pixels per patch edge."""
_MOVED_AT_ONCE = 1 << 12
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Which patches: photo, pyramid level and place. All arrays have one entry per patch."""

    photo: Int32
    pyramid: Int32
    column: Int32
    """Patch column: pixels column*16 .. column*16+15 of the photo at that pyramid level."""
    row: Int32

    @property
    def count(self) -> int:
        return len(self.photo)

    def select(self, index: Int32 | Int64 | Bool) -> "Patches":
        """The chosen patches (numbers or mask)."""
        return Patches(
            photo=self.photo[index], pyramid=self.pyramid[index], column=self.column[index], row=self.row[index]
        )


@dataclass(frozen=True, kw_only=True)
class PixelBatch:
    """Pixels drawn for one step."""

    photo: Int32
    pyramid: Int32
    xy: Float64
    """float64 [Q, 2], pixel centres in level-0 pixels."""
    rgb: Float32
    """float32 [Q, 3] in [0, 1], sRGB."""


def all_patches(cameras: PosedCameras, photos: Sequence[int]) -> Patches:
    """Every patch of every pyramid level of the given photos."""
    parts = []
    for photo in photos:
        camera = cameras.cameras[int(cameras.camera_index[photo])]
        for p in range(num_pyramid_levels(camera.width, camera.height)):
            columns = -(-(camera.width >> p) // PATCH)
            rows = -(-(camera.height >> p) // PATCH)
            r, c = np.divmod(np.arange(columns * rows), columns)
            parts.append(np.stack([np.full(len(r), photo), np.full(len(r), p), c, r]).astype(np.int32))
    if not parts:
        parts.append(np.empty((4, 0), np.int32))
    photo_, pyramid, column, row = np.concatenate(parts, axis=1)
    return Patches(photo=photo_, pyramid=pyramid, column=column, row=row)


def join_patches(parts: Sequence[Patches]) -> Patches:
    """All of them, one part after the other."""

    def joined(name: str) -> Int32:
        return np.concatenate([np.empty(0, np.int32), *(getattr(part, name) for part in parts)])

    return Patches(photo=joined("photo"), pyramid=joined("pyramid"), column=joined("column"), row=joined("row"))


def patch_points(patches: Patches, per_edge: int) -> Float64:
    """per_edge^2 pixel centres spread over each patch, float64 [n, per_edge^2, 2] in level-0 pixels."""
    offset = (np.arange(per_edge) + 0.5) * (PATCH / per_edge)
    oy, ox = np.meshgrid(offset, offset, indexing="ij")
    x = (patches.column[:, None] * PATCH + ox.ravel()) * (1 << patches.pyramid)[:, None]
    y = (patches.row[:, None] * PATCH + oy.ravel()) * (1 << patches.pyramid)[:, None]
    result: Float64 = np.stack([x, y], axis=2).astype(np.float64)
    return result


def _read(photos: Sequence[int], read: Callable[[int], _Read], readers: int) -> Iterator[_Read]:
    """What `read` gives for each photo, in their order; at most `readers` of them are in hand before they are taken."""
    if readers < 2 or len(photos) < 2:
        yield from map(read, photos)
        return
    with ThreadPoolExecutor(readers) as pool:
        ahead: deque[Future[_Read]] = deque()
        try:
            for photo in photos:
                if len(ahead) == readers:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(read, photo))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class PixelSet:
    """The pixels that one training draws from: uint8 patches in memory."""

    def __init__(self, patches: Patches, rgb: UInt8, valid: Bool):
        self.patches = patches
        self.rgb = rgb
        """uint8 [n, 16, 16, 3]."""
        self.valid = valid
        """bool [n, 16, 16]: inside the photo and not masked."""
        self.num_pixels = int(valid.sum())
        self.num_levels = int(patches.pyramid.max(initial=0)) + 1
        # patches sorted by pyramid level, so that "this level and coarser" is a tail
        self._by_level = np.argsort(patches.pyramid, kind="stable").astype(np.int32)
        counts = np.bincount(patches.pyramid, minlength=self.num_levels)
        self._level_start = np.concatenate([[0], np.cumsum(counts)])
        pixels = np.bincount(patches.pyramid, valid.sum(axis=(1, 2)), self.num_levels)
        self._pixels_from = np.cumsum(pixels[::-1])[::-1]

    @classmethod
    def gather(
        cls, patches: Patches, read_pyramid: Callable[[int], list[tuple[UInt8, Bool | None]] | None], readers: int = 1
    ) -> "PixelSet":
        """Read the patches photo by photo, up to `readers` of them at a time; those without a usable pixel go.

        Args:
            read_pyramid: photo -> list over pyramid levels of (uint8 [h, w, 3], mask bool [h, w] or None); None for a
                photo that cannot be used.
        """
        n = patches.count
        rgb = np.zeros((n, PATCH, PATCH, 3), np.uint8)
        valid = np.zeros((n, PATCH, PATCH), np.bool_)
        order = np.argsort(patches.photo, kind="stable")
        bounds = np.flatnonzero(np.diff(patches.photo[order], prepend=-1, append=-1))
        photos = patches.photo[order[bounds[:-1]]].tolist()
        for (first, last), levels in zip(itertools.pairwise(bounds), _read(photos, read_pyramid, readers), strict=True):
            if levels is None:
                continue
            members = order[first:last]
            for k in members:
                image, mask = levels[int(patches.pyramid[k])]
                y, x = int(patches.row[k]) * PATCH, int(patches.column[k]) * PATCH
                tile = image[y : y + PATCH, x : x + PATCH]
                h, w = tile.shape[:2]
                rgb[k, :h, :w] = tile
                valid[k, :h, :w] = True if mask is None else mask[y : y + PATCH, x : x + PATCH]
        keep = np.flatnonzero(valid.any(axis=(1, 2)))
        if len(keep) == n:
            return cls(patches, rgb, valid)
        # moved up in place: a selection would need the memory twice
        for start in range(0, len(keep), _MOVED_AT_ONCE):
            rows = keep[start : start + _MOVED_AT_ONCE]
            to = slice(start, start + len(rows))
            rgb[to], valid[to] = rgb[rows], valid[rows]
        return cls(patches.select(keep), rgb[: len(keep)], valid[: len(keep)])

    def seek(self, progress: float) -> None:
        """Nothing: all pixels are at hand whatever share of a training is done."""

    def draw(self, rng: np.random.Generator, count: int, finest: int = 0) -> PixelBatch:
        """Draw `count` pixels uniformly over the valid pixels of the patches at pyramid level `finest` and coarser."""
        first = int(self._level_start[min(finest, self.num_levels - 1)])
        pool = self._by_level[first:]
        parts: list[tuple[Int32, Int32]] = []
        have = 0
        pixels = self._pixels_from[min(finest, self.num_levels - 1)]
        share = float(pixels) / max(1, len(pool) * PATCH * PATCH)
        while have < count:
            ask = int((count - have) / share * 1.1) + 16
            patch = pool[rng.integers(0, len(pool), ask)]
            pixel = rng.integers(0, PATCH * PATCH, ask, dtype=np.int32)
            good = self.valid.reshape(-1, PATCH * PATCH)[patch, pixel]
            parts.append((patch[good], pixel[good]))
            have += int(good.sum())
        patch = np.concatenate([a for a, _ in parts])[:count]
        pixel = np.concatenate([b for _, b in parts])[:count]
        y, x = np.divmod(pixel, PATCH)
        p = self.patches
        scale = (1 << p.pyramid[patch]).astype(np.float64)
        xy = np.stack([(p.column[patch] * PATCH + x + 0.5) * scale, (p.row[patch] * PATCH + y + 0.5) * scale], axis=1)
        rgb = self.rgb.reshape(-1, PATCH * PATCH, 3)[patch, pixel].astype(np.float32) / np.float32(255.0)
        return PixelBatch(photo=p.photo[patch], pyramid=p.pyramid[patch], xy=xy, rgb=rgb)
