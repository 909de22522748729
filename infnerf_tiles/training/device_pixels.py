"""A treelet's pixels and depth targets on the device, drawn there without the host."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.pixels import PATCH, PixelSet

_FULL = PATCH * PATCH


@dataclass(frozen=True, kw_only=True)
class DrawnPixels:
    """Pixels drawn for one step; one row per ray."""

    photo: Tensor
    """int64 [Q]."""
    pyramid: Tensor
    """int64 [Q]."""
    xy: Tensor
    """float64 [Q, 2], pixel centres in level-0 pixels."""
    rgb: Tensor
    """float32 [Q, 3] in [0, 1], sRGB."""


class DevicePixels:
    """uint8 patches on the device, sorted by pyramid level."""

    def __init__(self, pixels: PixelSet, device: torch.device):
        patches = pixels.patches
        order = np.argsort(patches.pyramid, kind="stable")
        valid = pixels.valid[order].reshape(len(order), _FULL)
        count = valid.sum(axis=1)
        first = np.zeros(len(order) + 1, np.int64)
        np.cumsum(count, out=first[1:])
        partial = np.flatnonzero(count < _FULL)
        places = np.zeros((max(1, len(partial)), _FULL), np.uint8)
        for row, k in enumerate(partial.tolist()):
            found = np.flatnonzero(valid[k])
            places[row, : len(found)] = found
        row_of = np.full(len(order), -1, np.int64)
        row_of[partial] = np.arange(len(partial))
        pyramid = patches.pyramid[order].astype(np.int64)
        level_start = np.searchsorted(pyramid, np.arange(pixels.num_levels))

        def put(values: object) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        self.num_levels = pixels.num_levels
        self._rgb = put(pixels.rgb[order].reshape(-1, 3))
        """uint8 [n * 256, 3]."""
        self._photo = put(patches.photo[order].astype(np.int64))
        self._pyramid = put(pyramid)
        self._corner = put(np.stack([patches.column, patches.row], axis=1)[order].astype(np.int64) * PATCH)
        """int64 [n, 2]: first pixel of the patch at its pyramid level."""
        self._first = put(first)
        """int64 [n+1]: valid pixels in the patches before."""
        self._partial = put(row_of)
        """int64 [n]: row in `_places` of a patch with invalid pixels, else -1."""
        self._places = put(places)
        """uint8 [k, 256]: the valid pixels' places in such a patch."""
        self._level_first = put(first[level_start])
        """int64 [levels]: valid pixels in the patches finer than each level."""

    def draw(self, u: Tensor, coarser: Tensor) -> DrawnPixels:
        """The pixels at u float64 [Q] in [0, 1), uniform over the valid ones of pyramid level `coarser` (int64 [1]) and
        coarser."""
        low = self._level_first[coarser.clamp(max=self.num_levels - 1)]
        total = self._first[-1:]
        pixel = torch.minimum(low + (u * (total - low)).long(), total - 1)
        patch = torch.searchsorted(self._first, pixel, right=True) - 1
        rank = pixel - self._first[patch]
        partial = self._partial[patch]
        place = torch.where(partial >= 0, self._places[partial.clamp(min=0), rank].long(), rank)
        inside = torch.stack([place % PATCH, place // PATCH], dim=1)
        pyramid = self._pyramid[patch]
        scale = torch.exp2(pyramid.to(torch.float64))[:, None]
        return DrawnPixels(
            photo=self._photo[patch],
            pyramid=pyramid,
            xy=(self._corner[patch] + inside + 0.5) * scale,
            rgb=self._rgb[patch * _FULL + place].to(torch.float32) / 255.0,
        )


class DeviceDepth:
    """Observations of sparse points on the device."""

    def __init__(self, targets: DepthTargets, device: torch.device):
        self._photo = torch.from_numpy(targets.photo.astype(np.int64)).to(device)
        self._xyz = torch.from_numpy(np.ascontiguousarray(targets.xyz[targets.point])).to(device)
        """float64 [k, 3], world."""

    def draw(self, u: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(photo int64 [D], unit world direction float64 [D, 3], distance float64 [D]) at u float64 [D] in [0, 1).

        centre: float64 [photos, 3], world.
        """
        count = self._photo.shape[0]
        k = (u * count).long().clamp(max=count - 1)
        photo = self._photo[k]
        away = self._xyz[k] - centre[photo]
        distance = torch.linalg.vector_norm(away, dim=1)
        return photo, away / distance.clamp(min=1e-12)[:, None], distance
