"""Pictures of an `InfNeRF` in memory: the rounds of `rendering`, fed from the model instead of a node cache."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.api.config import InfNeRFRendererConfig
from infnerf_tiles.api.octree_model import OctreeModel
from infnerf_tiles.arrays import Float32, Float64, check_shape
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import DECODER_BLOCK
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.rendering.ray_state import RayState, march_and_composite
from infnerf_tiles.rendering.renderer import Picture

_SEEN = 1e-3  # opacity below which a pixel shows nothing
_SAMPLES_PER_RAY = 16  # aimed at in a round of a chunk; few, since what lies behind a surface is shaded for nothing


class ModelRenderer:
    """Draws pictures as `rendering.renderer.Renderer` does, of a model.

    Memory is bounded by `max_rays_per_batch` (state of rays) and `render_chunk_size` (rays marched and shaded
    together). Neither changes a bit of the picture: a sample's place follows from its ray alone, its colour from its
    place alone.
    """

    def __init__(self, model: OctreeModel, config: InfNeRFRendererConfig):
        self.model, self.config = model, config

    @property
    def deepest_level(self) -> int:
        """The finest level that a picture can show."""
        return self.model.deepest_level

    @property
    def waits(self) -> int:
        """Nothing is waited for: the model is in memory."""
        return 0

    def identity(self) -> None:
        """A model may change between two frames, so a sequence starts from its first one."""

    def prefetch(self, camera: Camera, camera_to_world: Float64, *, lod_bias: float = 0.0) -> None:
        """Nothing to do: the model is in memory."""

    def render(
        self,
        camera: Camera,
        camera_to_world: Float64,
        *,
        lod_bias: float = 0.0,
        affine: Float32 | Float64 | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Picture:
        """Draw what a camera sees; arguments as in `rendering.renderer.Renderer.render`."""
        check_shape("camera_to_world", camera_to_world, (3, 4))
        if self.model.dtype != torch.float32:
            raise SettingsError(f"drawing: expected a float32 model, got {self.model.dtype}; call model.float()")
        pose = np.asarray(camera_to_world, np.float64)
        num = camera.width * camera.height
        rgb = np.empty((num, 3), np.float32)
        transmittance, depth, level = (np.empty(num, np.float32) for _ in range(3))
        num_samples = 0
        with self.model.evaluating():
            lattice = self.model.lattice(None, self.config.lod_bias + lod_bias)
            for first in range(0, num, self.config.max_rays_per_batch):
                part = slice(first, min(first + self.config.max_rays_per_batch, num))
                state, colour = self._batch(camera, pose, part, lattice)
                if affine is not None:
                    colour = _affine_applied(np.asarray(affine, np.float32), colour)
                rgb[part] = colour
                weight = state.facts[:, 1]
                seen = weight >= _SEEN
                transmittance[part] = state.transmittance.cpu().numpy()
                depth[part] = torch.where(seen, state.depth / weight, torch.inf).cpu().numpy()
                level[part] = torch.where(seen, state.facts[:, 0] / weight, torch.nan).cpu().numpy()
                num_samples += state.num_samples
                if progress is not None:
                    progress(part.stop / num)
        shape = (camera.height, camera.width)
        return Picture(
            rgb=rgb.reshape(*shape, 3),
            transmittance=transmittance.reshape(shape),
            depth=depth.reshape(shape),
            level=level.reshape(shape),
            num_samples=num_samples,
        )

    def _batch(
        self, camera: Camera, pose: Float64, part: slice, lattice: MarchSettings
    ) -> tuple[RayState, Float32]:
        """State and colour, with background, of some pixels in reading order."""
        model, chunk = self.model, self.config.render_chunk_size
        row, column = np.divmod(np.arange(part.start, part.stop), camera.width)
        local = unproject(camera, np.stack([column, row], axis=1) + 0.5)
        # summed term by term: a matrix product's last bits depend on the number of rows
        directions = local[:, :1] * pose[:, 0] + local[:, 1:2] * pose[:, 1] + local[:, 2:] * pose[:, 2]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        unit = torch.from_numpy(directions).to(model.device)
        basis = direction_basis(unit)
        num = len(directions)
        state = RayState.fresh(num, model.device)
        origin = torch.from_numpy(model.root.to_unit(pose[:, 3])).to(model.device)
        for first in range(0, num, chunk):
            index = torch.arange(first, min(first + chunk, num), device=model.device)
            count = len(index)
            own = state.subset(index)
            rays = Rays(
                origins=origin.expand(count, 3).contiguous(),
                directions=unit[index] / model.root.edge,
                footprint=torch.full((count,), 1.0 / camera.focal, dtype=torch.float64, device=model.device),
                offset=torch.full((count,), 0.5, dtype=torch.float64, device=model.device),
            )
            march_and_composite(
                model.arena(), model.shade_fixed, rays, basis[index], own, lattice,
                stop=self.config.stop_transmittance, round_samples=_SAMPLES_PER_RAY * chunk,
            )  # fmt: skip
            state.put(index, own)
        colour = state.colour + state.transmittance[:, None] * self._background(basis)
        return state, colour.cpu().numpy()

    def _background(self, basis: Tensor) -> Tensor:
        """Colour float32 [Q, 3] behind everything, in blocks of one size as the decoder's."""
        colour = torch.empty((basis.shape[0], 3), device=basis.device)
        for first in range(0, basis.shape[0], DECODER_BLOCK):
            part = basis[first : first + DECODER_BLOCK]
            padded = basis.new_zeros((DECODER_BLOCK, basis.shape[1]))
            padded[: part.shape[0]] = part
            colour[first : first + DECODER_BLOCK] = self.model.background(padded)[: part.shape[0]]
        return colour


def _affine_applied(affine: Float32, rgb: Float32) -> Float32:
    """float32 [n, 3] colours transformed by float32 [3, 4], channel by channel: no sum whose order depends on n."""
    columns = [rgb[:, channel : channel + 1] * affine[:, channel] for channel in range(3)]
    transformed: Float32 = columns[0] + columns[1] + columns[2] + affine[:, 3]
    return transformed
