"""A part of a picture in work: where its rays stand, on the processor."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, Int64
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import DECODER_BLOCK, shade
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays
from infnerf_tiles.kernels.cpu.reach import reach
from infnerf_tiles.rendering.ray_state import RayState, march_and_composite
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.selection import RayBundle, bundle_of

OFFSET = 0.5
"""Shift of the step lattice."""
SEEN = 1e-3
"""Opacity below which a pixel shows nothing."""
_PACKET = 1 << 14  # rays marched together


class Part(NamedTuple):
    """Pixels [x0, x1) x [y0, y1)."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def edge(self) -> int:
        return max(self.width, self.height)

    def halves(self) -> tuple["Part", "Part"]:
        if self.width >= self.height:
            middle = (self.x0 + self.x1) // 2
            return self._replace(x1=middle), self._replace(x0=middle)
        middle = (self.y0 + self.y1) // 2
        return self._replace(y1=middle), self._replace(y0=middle)


class Shown(NamedTuple):
    """The pixels of a block, row by row, as in `Picture`: float32 [n, 3], then [n] each."""

    rgb: Float32
    transmittance: Float32
    depth: Float32
    level: Float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What all rays of a picture share.

    pose: float64[3, 4], camera to world. stop: a ray ends at its first sample with transmittance below this.
    """

    camera: Camera
    pose: Float64
    lattice: MarchSettings
    root: RootCube
    stop: float
    abort: Callable[[], bool] | None = None

    @property
    def footprint(self) -> float:
        """Edge of a pixel's back-projection at distance 1."""
        return 1.0 / self.camera.focal

    def distance(self, step: float) -> float:
        """Middle of a lattice step, world units."""
        c = self.lattice.step * self.footprint
        return self.lattice.near * (1 + 0.5 * c) * math.exp((step + OFFSET) * math.log1p(c))

    def step_at(self, distance: float) -> int:
        """The first lattice step whose middle is not nearer than that."""
        c = self.lattice.step * self.footprint
        nearest = self.lattice.near * (1 + 0.5 * c)
        return max(0, math.ceil(math.log(max(distance, nearest) / nearest) / math.log1p(c) - OFFSET))

    def last_step(self) -> int:
        """One past the last lattice step inside the root cube."""
        offset = np.abs(self.root.to_unit(self.pose[:, 3]) - 0.5) + 0.5
        return self.step_at(float(np.linalg.norm(offset)) * self.root.edge) + 1


class HostBlock:
    """The rays of some pixels and what is known of them, row by row."""

    def __init__(self, sight: Sight, window: Part, scene: Scene, round_samples: int) -> None:
        """window: pixels of the picture. CameraError where the camera's distortion gives one no ray."""
        self.sight, self.window = sight, window
        self.num_samples = 0
        self._scene = scene
        self._round_samples = round_samples
        pose = sight.pose
        y, x = np.mgrid[window.y0 : window.y1, window.x0 : window.x1]
        xy = np.stack([x.ravel(), y.ravel()], axis=1) + 0.5
        # summed term by term: a matrix product's last bits depend on the number of rows
        local = unproject(sight.camera, xy)
        directions = local[:, :1] * pose[:, 0] + local[:, 1:2] * pose[:, 1] + local[:, 2:] * pose[:, 2]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._directions: Float64 = directions
        self._basis = direction_basis(torch.from_numpy(directions))
        self._state = RayState.fresh(len(directions))

    def rows(self, part: Part | None) -> Int64:
        """Rays of a part of the block (None: all of it) that go on."""
        alive = self._state.alive(self.sight.stop).numpy()
        if part is None:
            part = Part(0, 0, self.window.width, self.window.height)
        y, x = np.mgrid[part.y0 : part.y1, part.x0 : part.x1]
        rows: Int64 = (y * self.window.width + x).ravel()
        going: Int64 = rows[alive[rows]]
        return going

    def bundle(self, rows: Int64) -> RayBundle:
        """What bounds some rays."""
        pose = self.sight.pose
        return bundle_of(pose[:, 3], self._directions[rows], self.sight.footprint, pose[:, :3])

    def waiting(self, rows: Int64 | None) -> Int64:
        """Which of these rays (None: of all) go on."""
        alive = self._state.alive(self.sight.stop).numpy()
        going: Int64 = np.flatnonzero(alive) if rows is None else rows[alive[rows]]
        return going

    def reach(
        self, rows: Int64, children: Int32, held: Bool, dead: Bool, *, beyond: bool = False
    ) -> tuple[Int64, Int32, Bool]:
        """How far some rays can go on with the nodes that are held; as `kernels.cpu.reach`."""
        start = self._state.next_step[torch.from_numpy(rows)]
        return reach(
            self._rays(rows), self.sight.lattice,
            start=start, children=children, held=held, dead=dead, beyond=beyond,
        )  # fmt: skip

    def march(self, rows: Int64, arena: Arena, ends: Int64) -> None:
        """Carry rays int64[k] forward to lattice steps int64[k] (END: to their end)."""
        sight = self.sight
        field = partial(shade, arena, self._scene.decoder)
        ahead = self._state.next_step.numpy()[rows] < ends
        rows, ends = rows[ahead], ends[ahead]
        for start in range(0, len(rows), _PACKET):
            part = slice(start, start + _PACKET)
            index = torch.from_numpy(rows[part])
            state = self._state.subset(index)
            march_and_composite(
                arena, field, self._rays(rows[part]), self._basis[index], state, sight.lattice,
                stop=sight.stop, end=torch.from_numpy(ends[part]), round_samples=self._round_samples,
            )  # fmt: skip
            self._state.put(index, state)
        self.num_samples = self._state.num_samples

    def _rays(self, rows: Int64) -> Rays:
        sight, num = self.sight, len(rows)
        return Rays(
            origins=torch.from_numpy(sight.root.to_unit(sight.pose[:, 3])).expand(num, 3),
            directions=torch.from_numpy(self._directions[rows]) / sight.root.edge,
            footprint=torch.full((num,), sight.footprint, dtype=torch.float64),
            offset=torch.full((num,), OFFSET, dtype=torch.float64),
        )

    def shown(self, affine: Float32 | Float64 | None) -> Shown:
        """What the pixels show so far; affine: float[3, 4], colour transform of a photo."""
        state = self._state
        rgb: Float32 = (state.colour + state.transmittance[:, None] * self._background()).numpy()
        if affine is not None:
            rgb = _affine_applied(np.asarray(affine, np.float32), rgb)
        weight = state.facts[:, 1]
        seen = weight >= SEEN
        depth = torch.where(seen, state.depth / weight, torch.inf)
        level = torch.where(seen, state.facts[:, 0] / weight, torch.nan)
        return Shown(rgb, state.transmittance.numpy(), depth.numpy(), level.numpy())

    def _background(self) -> Tensor:
        """Colour float32 [Q, 3] behind everything, in blocks of one size as the decoder's."""
        basis = self._basis
        colour = torch.empty((basis.shape[0], 3))
        with torch.no_grad():
            for first in range(0, basis.shape[0], DECODER_BLOCK):
                part = basis[first : first + DECODER_BLOCK]
                padded = torch.zeros((DECODER_BLOCK, basis.shape[1]))
                padded[: part.shape[0]] = part
                colour[first : first + DECODER_BLOCK] = self._scene.background(padded)[: part.shape[0]]
        return colour


def _affine_applied(affine: Float32, rgb: Float32) -> Float32:
    """float32[n, 3] colours transformed by float32[3, 4], channel by channel: no sum whose order depends on n."""
    columns = [rgb[:, channel : channel + 1] * affine[:, channel] for channel in range(3)]
    transformed: Float32 = columns[0] + columns[1] + columns[2] + affine[:, 3]
    return transformed
