"""Rays of pixels made on the device: lenses as tables of directions, poses as they are."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Float64
from infnerf_tiles.geometry.camera import Camera, PosedCameras, unproject
from infnerf_tiles.geometry.node_id import RootCube

TABLE_ERROR = 0.01
"""Most pixels that a ray from a table may miss its pixel by."""
_FINEST = 2.0
_COARSEST = 64.0


@dataclass(frozen=True, kw_only=True)
class LensTable:
    """Directions on a grid over an image, from the first pixel's centre to the last one's."""

    columns: int
    """Grid cells across the image."""
    rows: int
    directions: Float64
    """float64 [(rows+1) * (columns+1), 3], camera frame, not unit: what lies between comes out bilinearly."""


def lens_table(camera: Camera) -> LensTable:
    """The coarsest table that misses no pixel by more than TABLE_ERROR. CameraError if a pixel has no ray."""
    spacing = _COARSEST
    while True:
        columns = max(1, math.ceil((camera.width - 1) / spacing))
        rows = max(1, math.ceil((camera.height - 1) / spacing))
        table = LensTable(columns=columns, rows=rows, directions=_directions(camera, columns, rows))
        if spacing <= _FINEST or _largest_miss(camera, table) <= TABLE_ERROR:
            return table
        spacing /= 2.0


def _nodes(camera: Camera, columns: AnyArray, rows: AnyArray, across: int, down: int) -> Float64:
    """Pixel positions [n, 2] of all combinations of grid coordinates."""
    x = 0.5 + columns * (camera.width - 1) / across
    y = 0.5 + rows * (camera.height - 1) / down
    yy, xx = np.meshgrid(y, x, indexing="ij")
    return np.stack([xx.ravel(), yy.ravel()], axis=1)


def _directions(camera: Camera, columns: int, rows: int) -> Float64:
    at = _nodes(camera, np.arange(columns + 1.0), np.arange(rows + 1.0), columns, rows)
    directions = unproject(camera, at)
    # plane coordinates are linear in the pixel but for the distortion; a fisheye's may lie behind the camera
    return directions if camera.distortion.fisheye else directions / directions[:, 2:]


def _largest_miss(camera: Camera, table: LensTable) -> float:
    """Largest error in pixels at the grid cells' middles, where bilinear interpolation is worst."""
    at = _nodes(camera, np.arange(table.columns) + 0.5, np.arange(table.rows) + 0.5, table.columns, table.rows)
    grid = table.directions.reshape(table.rows + 1, table.columns + 1, 3)
    middle = (grid[:-1, :-1] + grid[:-1, 1:] + grid[1:, :-1] + grid[1:, 1:]).reshape(-1, 3)
    middle = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    exact = unproject(camera, at)
    # a pixel is at most 1 / focal radians wide, in the image's middle
    return float(np.linalg.norm(middle - exact, axis=1).max()) * max(camera.fx, camera.fy) * _stretch(camera, at)


def _stretch(camera: Camera, at: Float64) -> float:
    """How many times wider than in the middle of a pinhole's image pixels may be per radian."""
    if camera.distortion.fisheye:
        return 1.0
    plane = (at - np.array([camera.cx, camera.cy])) / np.array([camera.fx, camera.fy])
    return float(1.0 + (plane**2).sum(axis=1).max())


@dataclass(frozen=True, kw_only=True)
class DeviceCameras:
    """Poses and lenses of all photos on one device, in unit-cube coordinates."""

    table: Tensor
    """float64 [n, 3], all lens tables one after another."""
    table_first: Tensor
    """int64 [photos]: where the photo's lens begins in `table`."""
    columns: Tensor
    """int64 [photos]: cells across its table."""
    rows: Tensor
    per_cell: Tensor
    """float64 [photos, 2]: table cells per pixel in x and y."""
    rotation: Tensor
    """float64 [photos, 3, 3], camera to world."""
    centre: Tensor
    """float64 [photos, 3], world."""
    unit_centre: Tensor
    """float64 [photos, 3], unit coordinates."""
    focal: Tensor
    """float64 [photos], pixels."""

    @classmethod
    def of(cls, cameras: PosedCameras, root: RootCube, device: torch.device) -> "DeviceCameras":
        """Tables of all cameras. CameraError if a pixel has no ray."""
        lenses = [lens_table(camera) for camera in cameras.cameras]
        lengths = np.array([len(lens.directions) for lens in lenses], np.int64)
        first = np.cumsum(lengths) - lengths
        index = cameras.camera_index
        per_cell = np.array(
            [
                [lens.columns / max(camera.width - 1, 1), lens.rows / max(camera.height - 1, 1)]
                for lens, camera in zip(lenses, cameras.cameras, strict=True)
            ]
        ).reshape(-1, 2)

        def put(values: object, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.array(values)).to(dtype).to(device)

        whole, real = torch.int64, torch.float64
        return cls(
            table=put(np.concatenate([lens.directions for lens in lenses]), real),
            table_first=put(first[index], whole),
            columns=put(np.array([lens.columns for lens in lenses])[index], whole),
            rows=put(np.array([lens.rows for lens in lenses])[index], whole),
            per_cell=put(per_cell[index], real),
            rotation=put(cameras.camera_to_world[:, :, :3], real),
            centre=put(cameras.centres, real),
            unit_centre=put(root.to_unit(cameras.centres), real),
            focal=put(cameras.focals, real),
        )

    def directions(self, photo: Tensor, xy: Tensor) -> Tensor:
        """Unit world directions float64 [Q, 3] of pixel positions xy float64 [Q, 2] of photos int64 [Q]."""
        columns = self.columns[photo]
        most = torch.stack([columns, self.rows[photo]], dim=1) - 1
        scaled = (xy - 0.5) * self.per_cell[photo]
        cell = torch.minimum(scaled.floor().long().clamp(min=0), most)
        fx, fy = (scaled - cell).unsqueeze(2).unbind(1)
        corner = self.table_first[photo] + cell[:, 1] * (columns + 1) + cell[:, 0]
        below = corner + columns + 1
        table = self.table
        upper = torch.lerp(table[corner], table[corner + 1], fx)
        lower = torch.lerp(table[below], table[below + 1], fx)
        local = torch.lerp(upper, lower, fy)
        world = (self.rotation[photo] * local[:, None, :]).sum(dim=2)
        unit: Tensor = world / torch.linalg.vector_norm(world, dim=1, keepdim=True)
        return unit
