"""The trainer of one treelet: draw pixels, march, shade, composite, step; refresh occupancy; grow."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float64, Int32
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays, Samples
from infnerf_tiles.settings import TrainingSettings
from infnerf_tiles.training.depth import RAY_SHARE, DepthBatch, DepthTargets, point_loss
from infnerf_tiles.training.growth import Evidence
from infnerf_tiles.training.pixel_store import StreamedPixels
from infnerf_tiles.training.pixels import PixelBatch, PixelSet
from infnerf_tiles.training.refresh import refresh_occupancy
from infnerf_tiles.training.schedule import (
    GROWTH_FRACTIONS,
    REACHED_PASSES,
    WARM_RATE,
    coarsening,
    learning_rate,
    refresh_due,
)
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, Moments, TrainingState
from infnerf_tiles.volume.losses import colour_loss, distortion_loss, transparency_loss
from infnerf_tiles.volume.occupancy import dilate_cells
from infnerf_tiles.volume.visibility import keep_reached

_log = logging.getLogger(__name__)

_SHARED_RATE = 0.3
"""Learning rate of decoder, background and appearance relative to the features'."""
_IDENTITY_PULL = 0.01
"""Weight that keeps the photos' transforms near the identity: it fixes the factor that they share with the scene."""
_REACHED_SHIFT = 8
"""Time in units of 256 rays, so that it fits 32 bits."""
_STOP = 1e-4
"""Transmittance at which a training ray ends."""


class Trainer:
    """Trains the own nodes of a `TrainingState` on a `PixelSet`.

    Random numbers come from (seed, step) alone, so a training that goes on from a checkpoint draws what it would have
    drawn. `progress` runs from 0 to 1 over `total_rays`.
    """

    def __init__(
        self,
        *,
        frame: Frame,
        state: TrainingState,
        shared: Shared,
        pixels: PixelSet | StreamedPixels,
        cameras: PosedCameras,
        settings: TrainingSettings,
        total_rays: int,
        seed: tuple[int, ...],
        grows: bool,
        min_points: int,
        warm: bool,
        depth: DepthTargets | None = None,
    ):
        self.frame, self.state, self.shared, self.pixels, self.cameras = frame, state, shared, pixels, cameras
        self.settings, self.total_rays, self.seed, self.grows = settings, max(1, total_rays), seed, grows
        self.min_points = min_points
        self.depth = depth if depth is not None and depth.count and settings.lambda_depth > 0 else None
        self.warm = warm
        """Whether the nodes start from features of the seed stage; a cold training draws coarse pixels first."""
        self.moments = Moments(state, frame.max_own_level - state.top.level + 1)
        self.evidence = Evidence(state.capacity, state.shape.occupancy_cells)
        self.step = 0
        self.rays_done = 0
        self.samples_done = 0
        self.samples_per_ray = float(settings.samples_per_ray)
        self.growths = 0
        self.coarse_until = 0
        """Rays that had been drawn when footprints became the photos' own."""
        self.recent_error = math.nan
        """Decayed mean squared colour error."""
        self.optimizer = (
            torch.optim.Adam(shared.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-15) if shared.trainable else None
        )
        shared.appearance.requires_grad_(False)
        for parameter in shared.parameters():
            parameter.requires_grad_(shared.trainable)
        self._kernels = for_device(state.arena.device)
        self._bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and _has_bf16())

    @property
    def progress(self) -> float:
        """Share of the training that is done: of its steps if their number is set, else of its rays."""
        if self.settings.steps is not None:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.rays_done / self.total_rays)

    def run(self, on_step: Callable[["Trainer"], None] | None = None) -> None:
        """Train to the end; `on_step` is called after each step (checkpoints, progress)."""
        while self.progress < 1.0:
            self.train_step()
            if on_step is not None:
                on_step(self)

    def train_step(self) -> float:
        """One optimisation step; returns the batch's mean squared colour error.

        Raises NonFiniteError, before anything is updated, if the loss is not finite.
        """
        rng = np.random.default_rng((*self.seed, self.step))
        num_rays = max(64, int(self.settings.samples_per_step / max(self.samples_per_ray, 1.0)))
        coarser = 0 if self.warm else coarsening(self.progress)
        if coarser:
            self.coarse_until = self.rays_done + num_rays
        batch = self.pixels.draw(rng, num_rays, coarser)
        rays, basis = self.make_rays(batch, rng.random(num_rays), coarser)
        points: DepthBatch | None = None
        if self.depth is not None:
            points = self.depth.draw(rng, int(num_rays * RAY_SHARE))
            rays, basis = self._with_points(rays, basis, points, rng, coarser)
        # samples behind opaque matter are dropped next, so that more may be marched than are kept on average
        samples = self._kernels.march(
            rays, self.state.arena, self.frame.march, keep=2 * self.settings.samples_per_ray, adapt=True
        )
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        samples, known = self._visible(samples, basis)
        loss, error, weights = self._loss(batch, points, rays, samples, known, basis, generator)
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"treelet {self.state.top}: the loss of step {self.step} is {loss.item()}; the last good state is "
                "kept. Look for NaN in the photos' poses, or lower training.lr"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self._update()
        self._note(samples, weights, batch.photo if points is None else np.concatenate([batch.photo, points.photo]))
        self.step += 1
        self.rays_done += num_rays
        self.samples_done += samples.count
        mean = samples.count / rays.origins.shape[0]
        self.samples_per_ray = 0.8 * self.samples_per_ray + 0.2 * max(1.0, mean)
        self.recent_error = error if math.isnan(self.recent_error) else 0.98 * self.recent_error + 0.02 * error
        if refresh_due(self.step, self.settings.occupancy_every):
            refresh_occupancy(
                self.state, self.shared.decoder, self.frame, rng,
                threshold=self.settings.occupancy_threshold, decay=0.6, reached=self.reached_cells(),
            )  # fmt: skip
            _log.debug(
                "treelet %s step %d: %.1f samples per ray, %.3f of the cells occupied, %.2f dB",
                self.state.top, self.step, self.samples_per_ray, self.state.occupied().mean(),
                psnr_of(self.recent_error),
            )  # fmt: skip
        self._grow()
        return error

    def make_rays(self, batch: PixelBatch, offset: Float64, coarser: int = 0) -> tuple[Rays, Tensor]:
        """Rays in unit coordinates and their direction basis [Q, 16] for a batch of pixels.

        coarser: pyramid level that finer pixels are widened to.
        """
        origins, directions = self.cameras.rays(batch.photo, batch.xy)
        focal = self.cameras.focals[batch.photo]
        rays = Rays(
            origins=torch.from_numpy(self.frame.root.to_unit(origins)),
            directions=torch.from_numpy(directions / self.frame.root.edge),
            footprint=torch.from_numpy(np.exp2(np.maximum(batch.pyramid, coarser).astype(np.float64)) / focal),
            offset=torch.from_numpy(offset),
        )
        return rays, direction_basis(torch.from_numpy(directions))

    def _with_points(
        self, rays: Rays, basis: Tensor, points: DepthBatch, rng: np.random.Generator, coarser: int
    ) -> tuple[Rays, Tensor]:
        """The packet and its direction basis with the rays to points behind the rays to pixels."""
        width = np.exp2(rng.integers(coarser, max(coarser, self.pixels.num_levels - 1) + 1, len(points.photo)))
        root = self.frame.root
        more = (
            root.to_unit(points.origins),
            points.directions / root.edge,
            width / self.cameras.focals[points.photo],
            rng.random(len(points.photo)),
        )
        own = (rays.origins, rays.directions, rays.footprint, rays.offset)
        origins, directions, footprint, offset = (
            torch.cat([a, torch.from_numpy(b)]) for a, b in zip(own, more, strict=True)
        )
        both = Rays(origins=origins, directions=directions, footprint=footprint, offset=offset)
        return both, torch.cat([basis, direction_basis(torch.from_numpy(points.directions))])

    def _visible(self, samples: Samples, basis: Tensor) -> tuple[Samples, "_Known"]:
        """Drop samples behind opaque matter by a pass over densities alone; shade the frozen ones on the way."""
        capacity = self.state.capacity
        if not len(self.state.keys) > capacity:
            features, sigma = self._density(samples.position, samples.slot, samples.beta)
            kept, index = keep_reached(samples, sigma, _STOP)
            return kept, _Known(features=features[index], own=None, sigma=None, colour=None)
        own = torch.nonzero(samples.slot < capacity).squeeze(1)
        others = torch.nonzero(samples.slot >= capacity).squeeze(1)
        above = torch.nonzero(samples.slot_above >= 0).squeeze(1)
        place = torch.cat([others, above])
        sigma_frozen, colour_frozen = self._frozen(
            torch.cat([samples.position[others], samples.position_above[above]]),
            torch.cat([samples.slot[others], samples.slot_above[above]]),
            torch.cat([samples.beta[others], torch.ones(above.shape[0])]),
            basis[samples.ray.long()[place]],
        )
        share = torch.cat([samples.blend[others], 1.0 - samples.blend[above]])
        frozen_sigma = torch.zeros(samples.count).index_add(0, place, sigma_frozen * share)
        frozen_colour = torch.zeros((samples.count, 3)).index_add(0, place, colour_frozen * share[:, None])
        features, own_sigma = self._density(samples.position[own], samples.slot[own], samples.beta[own])
        all_features = torch.zeros((samples.count, features.shape[1])).index_copy(0, own, features)
        sigma = frozen_sigma.index_add(0, own, own_sigma * samples.blend[own])
        kept, index = keep_reached(samples, sigma, _STOP)
        mine = torch.nonzero(kept.slot < capacity).squeeze(1)
        return kept, _Known(
            features=all_features[index[mine]], own=mine, sigma=frozen_sigma[index], colour=frozen_colour[index]
        )

    def _density(self, position: Tensor, slot: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Features and density of own samples, no gradient."""
        features = torch.empty((position.shape[0], self.state.shape.features))
        self._kernels.encode_into(position, slot, beta, self.state.arena, features)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            sigma, _ = self.shared.decoder.density(features)
        return features, sigma

    def _frozen(self, position: Tensor, slot: Tensor, beta: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour of frozen samples, no gradient."""
        features = torch.empty((position.shape[0], self.state.shape.features))
        self._kernels.encode_into(position, slot, beta, self.state.arena, features)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            sigma, colour = self.shared.decoder(features, basis)
        return sigma, colour

    def _shade(self, samples: Samples, known: "_Known", basis: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour of all samples; gradients reach the own nodes (and the decoder while it trains)."""
        ray = samples.ray.long()
        own: Tensor | slice = slice(None) if known.own is None else known.own
        features = self._kernels.encode(
            samples.position[own], samples.slot[own], samples.beta[own],
            self.state.arena, self.moments.gradients, known.features,
        )  # fmt: skip
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            sigma, colour = self.shared.decoder(features, basis[ray[own]])
        if known.own is None or known.sigma is None or known.colour is None:
            return sigma, colour
        blend = samples.blend[known.own]
        return (
            known.sigma.index_add(0, known.own, sigma * blend),
            known.colour.index_add(0, known.own, colour * blend[:, None]),
        )

    def _loss(
        self,
        batch: PixelBatch,
        points: DepthBatch | None,
        rays: Rays,
        samples: Samples,
        known: "_Known",
        basis: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, float, Tensor]:
        s, num = self.settings, len(batch.photo)
        sigma, colour = self._shade(samples, known, basis)
        rgb, transmittance, _, weights = self._kernels.composite(
            samples.ray_start, sigma, colour, samples.t, samples.dt, stop=_STOP
        )
        rgb = rgb[:num] + transmittance[:num, None] * self.shared.background(basis[:num], generator)
        photo = torch.from_numpy(batch.photo.astype(np.int64))
        shown = self.shared.appearance(photo, rgb)
        target = torch.from_numpy(batch.rgb)
        loss = s.lambda_rgb * colour_loss(s.loss, shown, target)
        error = float(((shown.detach() - target) ** 2).mean())
        if points is not None and len(points.photo):
            distance = torch.from_numpy(points.distance)
            loss = loss + s.lambda_depth * point_loss(weights, samples, num, distance, rays.footprint[num:])
        if self.shared.trainable:
            loss = loss + _IDENTITY_PULL * self.shared.appearance.distance_from_identity()
        if s.lambda_distortion > 0:
            loss = loss + s.lambda_distortion * distortion_loss(
                weights, samples.t.log(), samples.dt / samples.t, samples.ray_start, samples.ray.long()
            )
        if s.lambda_transparency > 0:
            loss = loss + s.lambda_transparency * self._transparency(generator)
        return loss, error, weights.detach()

    def _transparency(self, generator: torch.Generator, count: int = 2048) -> Tensor:
        """Transparency loss at random points of random own nodes, with the node's GSD as path length."""
        slot = torch.randint(0, self.state.num_own, (count,), generator=generator, dtype=torch.int32)
        arena = self.state.arena
        level = arena.level[slot.long()]
        local = torch.rand((count, 3), generator=generator)
        position = self.state.local_position(slot, local)
        features = self._kernels.encode(position, slot, torch.ones(count), arena, self.moments.gradients)
        sigma, _ = self.shared.decoder.density(features)
        return transparency_loss(sigma, self.frame.march.gsd_root / torch.exp2(level.float()))

    def _update(self) -> None:
        start = max(self.settings.lr * (WARM_RATE if self.warm else 1.0), self.settings.lr_final)
        rate = learning_rate(self.progress, start, self.settings.lr_final)
        for value, gradient, first, second, marks in self.moments.groups(self.state):
            self._kernels.adam(value, gradient, first, second, marks, step=self.step + 1, rate=rate)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * _SHARED_RATE
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _note(self, samples: Samples, weights: Tensor, photos: Int32) -> None:
        arena, photo = self.state.arena, photos.astype(np.int64)
        self.evidence.note(
            samples.slot.numpy(), samples.wanted.numpy(), weights.numpy(), samples.position.numpy(),
            photo, samples.ray.numpy(),
            (arena.level.numpy(), arena.top_level.numpy(), arena.treelet.numpy()), self.rays_done >> _REACHED_SHIFT,
        )  # fmt: skip

    def reached_cells(self) -> Bool | None:
        """Own cells that rays reached lately, bool [num_own, O, O, O]; None while coarse rays pass them by."""
        window = int(REACHED_PASSES * self.pixels.num_pixels)
        since = self.rays_done - window
        if since <= (0 if self.warm else self.coarse_until):
            return None
        o, own = self.evidence.edge, self.state.num_own
        lately: Bool = self.evidence.reached[:own].reshape(own, o, o, o) >= since >> _REACHED_SHIFT
        return dilate_cells(lately)

    def _grow(self) -> None:
        if not self.grows or self.growths >= len(GROWTH_FRACTIONS) or self.progress < GROWTH_FRACTIONS[self.growths]:
            return
        self.growths += 1
        slots, octants = self.evidence.octants(self.min_points)
        self.evidence.forget()
        before = self.state.num_own
        added = self.state.add_children(slots, octants, self.frame.max_own_level)
        self.evidence.reached[before : before + added] = self.rays_done >> _REACHED_SHIFT
        if added:
            _log.info("treelet %s: %d nodes grown, %d in all", self.state.top, added, self.state.num_own)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the pass over densities already computed for the samples that it kept."""

    features: Tensor
    """float32 [own, F]."""
    own: Tensor | None
    """int64 [own], numbers of the samples in own nodes; None where all are."""
    sigma: Tensor | None
    """float32 [M], density that frozen nodes add, already weighted."""
    colour: Tensor | None


def _has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "AVX512" in capability and bool(has())


def psnr_of(error: float) -> float:
    """Decibels of a mean squared error."""
    return -10.0 * math.log10(max(error, 1e-12))

