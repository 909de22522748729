"""The rays of a step and what they should show, drawn on the device into buffers of one size."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Float32
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.kernels.arena import Rays
from infnerf_tiles.training.depth import RAY_SHARE
from infnerf_tiles.training.device_pixels import DeviceDepth, DevicePixels
from infnerf_tiles.training.device_rays import DeviceCameras
from infnerf_tiles.training.draws import counters, uniforms
from infnerf_tiles.training.pixels import PixelSet
from infnerf_tiles.training.workload import Workload

GROUP = 1 + round(1 / RAY_SHARE)
"""Rays per group where there are depth targets: the last of each leads to a sparse point, the others to pixels. So any
number of first rays has its share of both."""

ROWS = 6
"""Random numbers per ray."""


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """Rays of one step, Q rows."""

    rays: Rays
    basis: Tensor
    """float32 [Q, 16], direction basis."""
    photo: Tensor
    """int64 [Q]."""
    rgb: Tensor
    """float32 [Q, 3]: what the pixel shows; 0 for rays to points."""
    distance: Tensor | None
    """float32 [Q]: distance of the point, 0 for rays to pixels; None without depth targets."""
    noise: Tensor
    """float64 [3, Q], uniform in [0, 1): a random background."""


class DeviceSource:
    """Where batches come from: pixels, depth targets and cameras on the device."""

    def __init__(self, work: Workload, num_rays: int):
        """num_rays: Q; a multiple of GROUP where there are depth targets."""
        device = work.state.device
        self.num_rays = num_rays
        self._root = work.frame.root
        if not isinstance(work.pixels, PixelSet):
            raise TypeError("pixels: expected all of a treelet's, got streamed ones, which are drawn on the host only")
        self._pixels = DevicePixels(work.pixels, device)
        self._depth = None if work.depth is None else DeviceDepth(work.depth, device)
        self._cameras = DeviceCameras.of(work.cameras, work.frame.root, device)
        self._counter = counters(ROWS, num_rays, device)
        self._basis = torch.from_numpy(_basis_of_monomials()).to(device)
        last = torch.arange(num_rays, device=device) % GROUP == GROUP - 1
        self.to_point = last.float() if self._depth is not None else torch.zeros(num_rays, device=device)
        """float32 [Q]: 1 for rays to points."""

    def draw(self, key: Tensor, coarser: Tensor) -> DeviceBatch:
        """The batch of a key int64 [1]; pixels finer than pyramid level `coarser` (int64 [1]) are left out."""
        u = uniforms(key, self._counter)
        drawn = self._pixels.draw(self._rows(u[0], points=False), coarser)
        cameras = self._cameras
        photo, pyramid, rgb = drawn.photo, torch.maximum(drawn.pyramid, coarser), drawn.rgb
        directions = cameras.directions(photo, drawn.xy)
        distance: Tensor | None = None
        if self._depth is not None:
            seen, towards, away = self._depth.draw(self._rows(u[0], points=True), cameras.centre)
            levels = torch.clamp(self._pixels.num_levels - coarser, min=1)
            width = coarser + (self._rows(u[2], points=True) * levels).long()
            photo, pyramid = self._join(photo, seen), self._join(pyramid, width)
            directions, rgb = self._join(directions, towards), self._join(rgb, torch.zeros_like(towards).float())
            distance = self._join(torch.zeros_like(drawn.xy[:, 0]), away).float()
        rays = Rays(
            origins=cameras.unit_centre[photo],
            directions=directions / self._root.edge,
            footprint=torch.exp2(pyramid.to(torch.float64)) / cameras.focal[photo],
            offset=u[1].contiguous(),
        )
        basis = direction_monomials(directions) @ self._basis
        return DeviceBatch(rays=rays, basis=basis, photo=photo, rgb=rgb, distance=distance, noise=u[3:])

    def _rows(self, values: Tensor, *, points: bool) -> Tensor:
        """Those of [Q] values that belong to rays to points, or to rays to pixels."""
        if self._depth is None:
            return values
        groups = values.view(-1, GROUP)
        return (groups[:, -1:] if points else groups[:, :-1]).reshape(-1)

    @staticmethod
    def _join(pixels: Tensor, points: Tensor) -> Tensor:
        """[Q, ...] from the rows of both kinds of rays."""
        rest = pixels.shape[1:]
        both = (pixels.view(-1, GROUP - 1, *rest), points.view(-1, 1, *rest))
        return torch.cat(both, dim=1).view(-1, *rest)


def direction_monomials(directions: Tensor) -> Tensor:
    """float32 [Q, 40]: products of up to three coordinates of float [Q, 3]; they span what `direction_basis` does."""
    d = directions.to(torch.float32)
    two = (d[:, :, None] * d[:, None, :]).flatten(1)
    three = (two[:, :, None] * d[:, None, :]).flatten(1)
    return torch.cat([torch.ones_like(d[:, :1]), d, two, three], dim=1)


def _basis_of_monomials() -> Float32:
    """float32 [40, 16]: `direction_basis` as a matrix, so that it takes five kernels in place of fifty."""
    towards = np.random.default_rng(0).normal(size=(2000, 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    unit = torch.from_numpy(towards)
    solution = np.linalg.lstsq(direction_monomials(unit).double().numpy(), direction_basis(unit).numpy(), rcond=1e-5)
    matrix: Float32 = solution[0].astype(np.float32)
    return matrix
