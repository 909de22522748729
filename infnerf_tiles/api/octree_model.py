"""A scene held in memory as one `nn.Module`: octree, feature grids, decoder, background, appearance."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infnerf_tiles.api.config import InfNeRFConfig
from infnerf_tiles.api.grid import OctreeGrid, kernels_for
from infnerf_tiles.api.packets import chosen
from infnerf_tiles.arrays import Int64
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape, direction_basis, faded_basis
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.node_id import decode_keys
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples, dense_rows
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.kernels.hand_over import hand_over
from infnerf_tiles.store.stored_cameras import StoredCameras
from infnerf_tiles.volume.occupancy import any_occupied
from infnerf_tiles.volume.visibility import keep_reached

_LINKS = ("level", "parent", "children", "top_level", "top_xyz", "above")
UNLIMITED = 1e9
"""`lambda_max` of a node that has not been trained yet: nothing limits the level that it is drawn at."""
_STOP = 1e-4
"""Transmittance at which a ray of `forward` ends."""
_TOPOLOGY = ("keys", "treelet", "top_keys", "dense_grids", "occupancy", "density_ema", "lambda_max")


class OctreeModel(nn.Module):
    """An octree of residual feature grids and one decoder, for training and drawing from torch.

    Parameters: `grid` (tables and dense base grids), `decoder`, `background`, `appearance`. Buffers: the octree (`keys`
    and what belongs to each node), so that `state_dict` holds all there is; loading one resizes the octree. Any
    `nn.Module` with the same calls replaces a part: `decoder` as `field.decoder.Decoder`, `grid` as
    `api.grid.OctreeGrid`, `background` as `field.background.Background`.

    World frame and units are the data's; positions inside are relative to `config.root`. float32, or float64 after
    `.double()` (with the slow, plain torch kernels).
    """

    keys: Tensor
    """int64 [S]: node per slot (`geometry.node_id`), ascending."""
    treelet: Tensor
    """int32 [S]: treelet of the node, a row of `top_keys`; all 0 unless the model came from a scene of many."""
    top_keys: Tensor
    """int64 [R]: root node of each treelet."""
    dense_grids: Tensor
    """int32 [R]: nested dense grids of each treelet."""
    occupancy: Tensor
    """uint8 [S, B]: bits of the cells that hold matter."""
    density_ema: Tensor
    """float32 [S, O^3]: decayed maximum of the cells' optical depth per step, from which the bits follow."""
    lambda_max: Tensor
    """float32 [S]: largest wanted level at which the node was trained; drawing clamps to it."""

    def __init__(
        self,
        config: InfNeRFConfig | None = None,
        *,
        decoder: nn.Module | None = None,
        grid: nn.Module | None = None,
        background: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config = config or InfNeRFConfig()
        self.shape = shape = config.shape
        self.root = config.root
        gsd_ref = config.gsd_ref or config.gsd_root / 2.0 ** min(2, config.max_depth)
        self.grid: nn.Module = grid or OctreeGrid(shape)
        self.decoder: nn.Module = decoder or Decoder(
            decoder_shape(
                features=shape.features,
                hidden=config.hidden_dim,
                geometry_features=config.geo_feat_dim,
                density_bias=config.density_bias,
                gsd_ref=gsd_ref,
                gsd_finest=config.gsd_finest,
            ),
            torch.Generator().manual_seed(config.seed),
        )
        self.gsd_ref = gsd_ref
        self.background: nn.Module = background or Background(config.background)
        self.appearance = Appearance(config.num_photos)
        self.gradient_checkpointing = False
        self.photos: StoredCameras | None = None
        """Cameras of the photos that the model was made from, where they are known; not part of `state_dict`."""
        self.georeference: Mapping[str, Any] | None = None
        """CRS and origin of the world frame, as a scene store keeps them."""
        cells = shape.occupancy_cells**3
        self.register_buffer("keys", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("treelet", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("top_keys", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("dense_grids", torch.full((1,), shape.num_corrections, dtype=torch.int32))
        self.register_buffer("occupancy", torch.full((1, shape.occupancy_bytes), 255, dtype=torch.uint8))
        self.register_buffer("density_ema", torch.full((1, cells), 2.0 * config.pruning_threshold))
        self.register_buffer("lambda_max", torch.full((1,), UNLIMITED))
        self._arena: Arena | None = None

    # --- the octree ---------------------------------------------------------------------------------------------

    @property
    def num_nodes(self) -> int:
        """Nodes of the octree."""
        return int(self.keys.shape[0])

    @property
    def deepest_level(self) -> int:
        """Level of the finest node."""
        return int(self.arena().level.max())

    @property
    def device(self) -> torch.device:
        """Where the octree is."""
        return self.keys.device

    @property
    def dtype(self) -> torch.dtype:
        """float32, or float64 after `.double()`."""
        return self.lambda_max.dtype

    def arena(self) -> Arena:
        """The octree as the kernels want it; tables and dense grids without gradient."""
        if self._arena is None:
            self._arena = self._linked()
        if self.training:
            unlimited = torch.full_like(self.lambda_max, UNLIMITED)
            return replace(self._arena, lambda_max=unlimited)
        return self._arena

    def _linked(self) -> Arena:
        keys = self.keys.cpu().numpy()
        links = link(keys, self.treelet.cpu().numpy(), self.top_keys.cpu().numpy())
        device = self.device
        if isinstance(self.grid, OctreeGrid):
            tables, dense = self.grid.tables.detach(), self.grid.dense.detach()
        else:  # only their shapes and formats are asked for
            empty = torch.zeros(1, dtype=self.dtype, device=device)
            tables = empty.expand(len(keys), self.shape.table_size, self.shape.features)
            dense = empty.expand(0, self.shape.features)
        rows = [dense_rows(self.shape.base_cells, int(grids)) for grids in self.dense_grids]
        occupied = any_occupied(self.occupancy.cpu().numpy(), links.level, links.children)
        return Arena(
            cells=self.shape.cells,
            base_cells=self.shape.base_cells,
            occupancy_cells=self.shape.occupancy_cells,
            root=links.root,
            tables=tables,
            dense=dense,
            dense_offset=torch.tensor([0, *np.cumsum(rows[:-1]).tolist()], device=device),
            dense_grids=self.dense_grids,
            treelet=self.treelet,
            lambda_max=self.lambda_max,
            occupancy=self.occupancy,
            blocks=occupied_blocks(self.occupancy, self.shape.occupancy_cells),
            any_occupied=torch.from_numpy(occupied).to(device),
            **{name: torch.from_numpy(getattr(links, name)).to(device) for name in _LINKS},
        )

    def set_octree(self, keys: Int64, occupancy: Tensor, density_ema: Tensor, source: Tensor) -> None:
        """Replace the nodes of a model of one treelet.

        Args:
            keys: int64 [S'], ascending, closed under parents. occupancy: uint8 [S', B]. density_ema: float32 [S', O^3].
            source: int64 [S'], the old slot whose features and trained level a node keeps; -1 for a new one.
        """
        source = source.to(self.device)
        fresh = torch.full((len(keys),), UNLIMITED, dtype=self.dtype, device=self.device)
        self.lambda_max = torch.where(source >= 0, self.lambda_max[source.clamp(min=0)], fresh)
        self.keys = torch.from_numpy(np.array(keys, np.int64)).to(self.device)
        self.treelet = torch.zeros(len(keys), dtype=torch.int32, device=self.device)
        self.occupancy = occupancy.to(self.device)
        self.density_ema = density_ema.to(self.device, self.dtype)
        remap = getattr(self.grid, "remap", None)
        if remap is not None:
            remap(source)
        self._arena = None

    def octree_changed(self) -> None:
        """Say that buffers were written to in place; links and flags are made anew."""
        self._arena = None

    # --- rays to colours ----------------------------------------------------------------------------------------

    def lattice(self, near: float | None = None, lod_bias: float = 0.0) -> MarchSettings:
        """Steps and level of detail of every ray; `near` defaults to 16 GSDs of the finest level (4 in `eval()`)."""
        c = self.config
        return MarchSettings(
            near=(16.0 if self.training else 4.0) * c.gsd_finest if near is None else near,
            step=c.step_size if self.training else c.render_step_size,
            gsd_root=c.gsd_root,
            lod_bias=c.lod_bias + lod_bias,
        )

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        near: float | Tensor | None = None,
        far: float | Tensor | None = None,
        focal_length: float | Tensor = 1.0,
        pixel_width: float | Tensor = 1.0,
        *,
        photo: Tensor | None = None,
        offset: Tensor | None = None,
        lod_bias: float = 0.0,
        directions: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """What Q rays see; differentiable with respect to every parameter (not to the rays).

        Args:
            rays_o: float [Q, 3], world. rays_d: float [Q, 3], any length but 0.
            near, far: distances between which samples count, world units; one for all or float [Q]. None: no bound.
            focal_length, pixel_width: their ratio is the footprint at distance 1, `pixel_width / focal_length`: with
                the focal length in pixels, the width is 1, and 2^p at pyramid level p. One for all or float [Q].
            photo: int64 [Q], rows of `appearance`; None for the scene's own colours.
            offset: float [Q] in [0, 1), shift of each ray's steps; None: 0.5.
            lod_bias: added to the wanted level, in levels. directions: share of the direction that the decoder sees.
            generator: draws the "random" background.

        Returns:
            "rgb" float [Q, 3] with background; "depth" float [Q], sum of weight times distance, world units; "alpha"
            and "transmittance" float [Q]; "weights" float [M]; "samples": the packed `Samples`; "densities" float [M].
        """
        rays, basis = self.make_rays(rays_o, rays_d, focal_length, pixel_width, offset)
        least = None if near is None else float(near.min() if isinstance(near, Tensor) else near)
        lattice = self.lattice(least if least is None or least > 0 else None, lod_bias)
        samples, known = self.sample(rays, lattice, near, far)
        sigma, colour = self.shade(samples, faded_basis(basis, directions), known)
        rgb, transmittance, depth, weights = kernels_for(self.lambda_max).composite(
            samples.ray_start, sigma, colour, samples.t, samples.dt, stop=_STOP
        )
        # colours that are compared with photos are not rounded to what layers compute in
        with torch.autocast(self.device.type, enabled=False):
            rgb = rgb + transmittance[:, None] * self.background(basis, generator)
            if photo is not None:
                rgb = self.appearance(photo.to(self.device), rgb)
        return {
            "rgb": rgb,
            "depth": depth,
            "alpha": 1.0 - transmittance,
            "transmittance": transmittance,
            "weights": weights,
            "samples": samples,
            "densities": sigma,
        }

    def make_rays(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        focal_length: float | Tensor = 1.0,
        pixel_width: float | Tensor = 1.0,
        offset: Tensor | None = None,
    ) -> tuple[Rays, Tensor]:
        """Rays in units of the root cube and their direction basis [Q, 16]; arguments as in `forward`."""
        device, num = self.device, rays_o.shape[0]
        origins = rays_o.detach().to(device, torch.float64)
        directions = torch.nn.functional.normalize(rays_d.detach().to(device, torch.float64), dim=1)
        root = torch.tensor(self.root.origin, dtype=torch.float64, device=device)

        def column(value: float | Tensor) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64, device=device).expand(num)

        rays = Rays(
            origins=((origins - root) / self.root.edge).contiguous(),
            directions=directions / self.root.edge,
            footprint=(column(pixel_width) / column(focal_length)).contiguous(),
            offset=column(0.5 if offset is None else offset).contiguous(),
        )
        return rays, direction_basis(directions).to(self.dtype)

    def sample(
        self, rays: Rays, lattice: MarchSettings, near: float | Tensor | None, far: float | Tensor | None
    ) -> tuple[Samples, Tensor | None]:
        """Samples of the rays, at most `config.num_samples` each, and their features where those are known already."""
        kernels = kernels_for(self.lambda_max)
        samples: Samples = kernels.march(rays, self.arena(), lattice, keep=self.config.num_samples, adapt=True)
        inside = torch.ones_like(samples.t, dtype=torch.bool)
        ray = samples.ray.long()
        for bound, side in ((near, 1.0), (far, -1.0)):
            if bound is not None:
                edge = torch.as_tensor(bound, dtype=samples.t.dtype, device=self.device).expand(rays.origins.shape[0])
                inside &= side * (samples.t - edge[ray]) >= 0
        if not bool(inside.all()):
            samples = chosen(samples, inside)
        if self.device.type != "cpu" or self.dtype == torch.float64 or not isinstance(self.grid, OctreeGrid):
            return samples, None
        # a pass over densities alone finds what lies behind opaque matter, which then costs nothing more
        with torch.no_grad():
            features = self.grid(samples.position, samples.slot, samples.beta, self.arena()).float()
            sigma, _ = self.decoder.density(features)  # type: ignore[operator]
        samples, index = keep_reached(samples, sigma.float(), _STOP)
        return samples, features[index]

    def shade(self, samples: Samples, basis: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Density [M] and colour [M, 3] of samples, with gradient; `basis` [Q, 16] per ray."""
        arena, ray = self.arena(), samples.ray.long()
        features = self._features(samples.position, samples.slot, samples.beta, arena, known)
        sigma, colour = self._decode(features, basis[ray])
        mixed = torch.nonzero(samples.slot_above >= 0).squeeze(1)
        sigma_above = torch.zeros_like(sigma)
        if mixed.numel():
            ones = torch.ones_like(samples.blend[mixed])
            above = self._features(samples.position_above[mixed], samples.slot_above[mixed], ones, arena, None)
            found, colour_above = self._decode(above, basis[ray[mixed]])
            sigma_above = sigma_above.index_add(0, mixed, found)
        blend, dt = samples.blend.to(sigma.dtype), samples.dt.to(sigma.dtype)
        sigma, share = hand_over(sigma, sigma_above, blend, dt)
        if mixed.numel():
            change = (1.0 - share[mixed, None]) * (colour_above - colour[mixed])
            colour = colour.index_add(0, mixed, change)
        return sigma, colour

    def shade_fixed(self, samples: Samples, basis: Tensor) -> tuple[Tensor, Tensor]:
        """As `shade`, without gradient; a sample's values do not depend on the others'."""
        encode_into = None if isinstance(self.grid, OctreeGrid) else self._encode_into
        return shade(self.arena(), self.decoder, samples, basis, encode_into)  # type: ignore[arg-type]

    def density_at(self, position: Tensor, slot: Tensor, beta: Tensor) -> Tensor:
        """Density float32 [M] on the CPU, without gradient; arguments as in `OctreeGrid.forward`, from any device."""
        with torch.no_grad():
            at = position.to(self.device, self.dtype)
            features = self._features(at, slot.to(self.device), beta.to(self.device, self.dtype), self.arena(), None)
            sigma: Tensor = self.decoder.density(features)[0]  # type: ignore[operator]
        return sigma.float().cpu()

    def random_densities(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Density [count], with gradient, and GSD [count] at random points of random nodes."""
        arena = self.arena()
        slot = torch.randint(0, self.num_nodes, (count,), generator=generator, dtype=torch.int32).to(self.device)
        inside = torch.rand((count, 3), generator=generator).to(self.device)
        level = arena.level[slot.long()]
        scale = torch.exp2((level - arena.top_level[arena.treelet[slot.long()].long()]).float())[:, None]
        _, xyz = decode_keys(self.keys.cpu().numpy())
        cell = torch.from_numpy(xyz).to(self.device)[slot.long()]
        corner = torch.remainder(cell.float(), scale)
        # the sum may round up to the node's far face, where its neighbour begins
        place = torch.minimum(corner + inside, torch.nextafter(corner + 1.0, torch.zeros_like(corner)))
        position = (place / scale).to(self.dtype)
        ones = torch.ones(count, dtype=self.dtype, device=self.device)
        features = self._features(position, slot, ones, arena, None)
        sigma: Tensor = self.decoder.density(features)[0]  # type: ignore[operator]
        return sigma, self.config.gsd_root / torch.exp2(level.to(self.dtype))

    def _features(self, position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, known: Tensor | None) -> Tensor:
        features: Tensor = self.grid(position, slot, beta, arena, known)
        return features

    def _encode_into(self, position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, out: Tensor) -> None:
        with torch.no_grad():
            out.copy_(self._features(position, slot, beta, arena, None))

    def _decode(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            sigma, colour = checkpoint(self.decoder, features, basis, use_reentrant=False)
        else:
            sigma, colour = self.decoder(features, basis)
        # products in half precision end here
        return sigma.to(self.dtype), colour.to(self.dtype)

    # --- to and from elsewhere ----------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """`eval()` and no gradients for a while."""
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was)

    def _apply(self, fn: Any, recurse: bool = True) -> "OctreeModel":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._arena = None
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # the octree and the photos that are loaded have their own numbers
        for name in _TOPOLOGY:
            found, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(found, Tensor) and found.shape != own.shape and found.dim() == own.dim():
                setattr(self, name, own.new_zeros(found.shape))
        affine = state_dict.get(prefix + "appearance.affine")
        if isinstance(affine, Tensor) and affine.dim() == 3 and affine.shape != self.appearance.affine.shape:
            self.appearance.affine.data = self.appearance.affine.data.new_zeros(affine.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._arena = None
