"""A part of a picture in work on a GPU: rays, their state and the finished pixels never leave it before the end."""

import copy
import threading
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Float32, Float64
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.kernels.lanes import RayTable
from infnerf_tiles.rendering.device_rounds import FEWEST, LANES, Rounds, View
from infnerf_tiles.rendering.pixel_block import OFFSET, SEEN, Part, Shown, Sight
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.selection import MIN_FORWARD, RayBundle, bundle_between, bundle_of

_LENSES = 8
"""Cameras whose rays are kept."""
_LENS_PIXELS = 1 << 24
"""Pixels of them together, 24 bytes each."""
_CHANNELS = 6
_TILE = (16, 8)
_WHOLE = 1024


class Painter:
    """What drawing on one device keeps from picture to picture: decoder, background, buffers and the cameras' rays."""

    def __init__(self, scene: Scene, device: torch.device, *, lanes: int = LANES, fewest: int = FEWEST) -> None:
        """lanes, fewest: rays in work at a time and their samples per round; they do not change the picture."""
        self.device = device
        self.root = scene.header.root
        self.rounds = Rounds(
            copy.deepcopy(scene.decoder).to(device),
            features=scene.shape.features,
            has_above=scene.index.num_treelets > 1,
            device=device,
            lanes=lanes,
            fewest=fewest,
        )
        self._background = copy.deepcopy(scene.background).to(device)
        self._lenses: OrderedDict[Camera, Tensor] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._landing = torch.empty(0)
        self._lock = threading.Lock()

    def lens(self, camera: Camera) -> Tensor:
        """float64 [h, w, 3] on the device: directions of a camera's pixels in its own frame.

        CameraError where the distortion gives a pixel no ray."""
        with self._lock:
            if camera not in self._lenses:
                y, x = np.mgrid[: camera.height, : camera.width]
                local = unproject(camera, np.stack([x.ravel(), y.ravel()], axis=1) + 0.5)
                table = torch.from_numpy(local.reshape(camera.height, camera.width, 3)).to(self.device)
                self._lenses[camera] = table
            self._lenses.move_to_end(camera)
            while len(self._lenses) > 1 and (len(self._lenses) > _LENSES or self._lens_pixels > _LENS_PIXELS):
                self._lenses.popitem(last=False)
            return self._lenses[camera]

    def order(self, width: int, height: int) -> Tensor:
        """int32 [w h] on the device: the pixels of a block, row by row numbered, tile by tile: rays that are in work
        together then read the same features."""
        with self._lock:
            if (width, height) not in self._orders:
                y, x = (torch.arange(n, device=self.device) for n in (height, width))
                tile = y[:, None] // _TILE[1] * -(-width // _TILE[0]) + x // _TILE[0]
                place = y[:, None] % _TILE[1] * _TILE[0] + x % _TILE[0]
                key = tile * (_TILE[0] * _TILE[1]) + place
                self._orders[width, height] = torch.argsort(key.view(-1)).to(torch.int32)
            self._orders.move_to_end((width, height))
            while len(self._orders) > _LENSES:
                self._orders.popitem(last=False)
            return self._orders[width, height]

    @property
    def _lens_pixels(self) -> int:
        return sum(camera.width * camera.height for camera in self._lenses)

    def put(self, values: Float64) -> Tensor:
        """float64 values on the device."""
        return torch.from_numpy(np.array(values, np.float64)).to(self.device)

    def background(self, basis: Tensor) -> Tensor:
        """Colour float32 [Q, 3] behind everything."""
        return background_by_terms(self._background, basis)

    def fetched(self, flat: Tensor) -> Float32:
        """A flat float32 tensor in memory of the host that the next call writes over."""
        if self.device.type == "cpu":
            return flat.numpy()
        if self._landing.shape[0] < flat.shape[0]:
            self._landing = torch.empty(flat.shape[0], pin_memory=True)
        landing = self._landing[: flat.shape[0]]
        landing.copy_(flat, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return landing.numpy()


class DeviceBlock:
    """The rays of some pixels and what is known of them, row by row; as `HostBlock`."""

    def __init__(self, sight: Sight, window: Part, painter: Painter) -> None:
        """window: pixels of the picture. CameraError where the camera's distortion gives one no ray."""
        self.sight, self.window = sight, window
        self.num_samples = 0
        self._painter = painter
        pose = painter.put(sight.pose)
        local = painter.lens(sight.camera)[window.y0 : window.y1, window.x0 : window.x1].reshape(-1, 3)
        directions = local[:, :1] * pose[:, 0] + local[:, 1:2] * pose[:, 1] + local[:, 2:] * pose[:, 2]
        x, y, z = directions.unbind(1)
        directions /= torch.sqrt(x * x + y * y + z * z)[:, None]
        basis = direction_basis(directions)
        self._directions = directions
        self._table = RayTable.fresh(directions / sight.root.edge, basis)
        self._view = View(
            origin=painter.put(sight.root.to_unit(sight.pose[:, 3])),
            footprint=sight.footprint,
            offset=OFFSET,
            lattice=sight.lattice,
        )
        self._begun = False

    def rows(self, part: Part | None) -> Tensor:
        """Rays of a part of the block (None: all of it) that go on, int32 [n]. Waits for the device for
        a part, and once rays have begun."""
        width = self.window.width
        rows = self._painter.order(width, self.window.height)
        if part is not None:
            x, y = rows % width, rows // width
            rows = rows[(x >= part.x0) & (x < part.x1) & (y >= part.y0) & (y < part.y1)]
        if not self._begun:
            return rows
        # compared in float64, as `stop` is given: rounding it could keep a ray that compositing has ended
        table, index = self._table, rows.long()
        alive = (table.next_step[index] >= 0) & (table.transmittance[index].double() >= self.sight.stop)
        return rows[alive]

    def bundle(self, rows: Tensor) -> RayBundle:
        """What bounds some rays; waits for the device."""
        pose = self.sight.pose
        directions = self._directions
        if rows.shape[0] < directions.shape[0]:  # else they are the same, in another order
            directions = directions.index_select(0, rows)
        right, down, forward = self._painter.put(pose[:, :3]).T
        ahead = (directions * forward).sum(dim=1)
        across, along = (directions * right).sum(dim=1) / ahead, (directions * down).sum(dim=1) / ahead
        found = [ahead.amin(), across.amin(), across.amax(), along.amin(), along.amax()]
        numbers: Float64 = torch.cat([torch.stack(found), directions.amin(dim=0), directions.amax(dim=0)]).cpu().numpy()
        if not numbers[0] >= MIN_FORWARD:
            return bundle_of(pose[:, 3], directions.cpu().numpy(), self.sight.footprint, pose[:, :3])
        slopes = ((numbers[1], numbers[2]), (numbers[3], numbers[4]))
        return bundle_between(pose[:, 3], numbers[5:8], numbers[8:11], slopes, self.sight.footprint, pose[:, :3])

    def march(self, rows: Tensor, arena: Arena, end: int | None) -> None:
        """Carry some rays forward to lattice step `end` (None: to their end)."""
        self._begun = True
        sight = self.sight
        self.num_samples += self._painter.rounds.run(
            self._table, rows, arena, self._view, stop=sight.stop, end=end, abort=sight.abort
        )

    def shown(self, affine: Float32 | Float64 | None) -> Shown:
        """What the pixels show so far, in memory that the next block writes over; affine: float[3, 4], colour transform
        of a photo."""
        table = self._table
        num = table.depth.shape[0]
        rgb = table.colour + table.transmittance[:, None] * self._painter.background(table.basis)
        if affine is not None:
            matrix = torch.from_numpy(np.array(affine, np.float32)).to(self._painter.device)
            columns = [rgb[:, channel : channel + 1] * matrix[:, channel] for channel in range(3)]
            rgb = columns[0] + columns[1] + columns[2] + matrix[:, 3]
        weight = table.facts[:, 1]
        seen = weight >= SEEN
        flat = torch.empty(_CHANNELS * num, device=self._painter.device)
        flat[: 3 * num] = rgb.reshape(-1)
        flat[3 * num : 4 * num] = table.transmittance
        flat[4 * num : 5 * num] = torch.where(seen, table.depth / weight, torch.inf)
        flat[5 * num :] = torch.where(seen, table.facts[:, 0] / weight, torch.nan)
        pixels = self._painter.fetched(flat)
        return Shown(pixels[: 3 * num].reshape(num, 3), *pixels[3 * num :].reshape(3, num))


def background_by_terms(background: Background, basis: Tensor) -> Tensor:
    """Colour float32 [Q, 3] behind everything, term by term: a matrix product's last bits depend on the number of rows.

    basis: float32 [Q, 16].
    """
    with torch.no_grad():
        if background.kind not in ("sh", "constant"):
            return background(basis)  # type: ignore[no-any-return]
        num = basis.shape[0]
        # whole vectors, since the rest of an array is not computed as its vectors are on the CPU
        total = torch.zeros((-(-num // _WHOLE) * _WHOLE, 3), device=basis.device)
        for k, coefficients in enumerate(background.coefficients):
            total[:num] += basis[:, k : k + 1] * coefficients
        return torch.sigmoid(total)[:num]
