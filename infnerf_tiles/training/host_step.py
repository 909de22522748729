"""One optimisation step on the processor: as many samples as there are, those behind opaque matter dropped early."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Float64, Int32
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.decoder import direction_basis, faded_basis
from infnerf_tiles.field.decoder_batch import decode_samples, density_of
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays, Samples, adam_scalars
from infnerf_tiles.kernels.cpu.threads import torch_alone
from infnerf_tiles.kernels.hand_over import hand_over
from infnerf_tiles.process import hold_freed_memory
from infnerf_tiles.training.depth import RAY_SHARE, DepthBatch, point_loss
from infnerf_tiles.training.objective import REACHED_SHIFT, SHARED_RATE, STOP, TRANSPARENCY_POINTS, objective
from infnerf_tiles.training.pixels import PixelBatch
from infnerf_tiles.training.refresh import reached_cells, refresh_occupancy
from infnerf_tiles.training.schedule import coarsening, refresh_due
from infnerf_tiles.training.shared_optimizer import SharedOptimizer
from infnerf_tiles.training.workload import Counters, Workload
from infnerf_tiles.volume.losses import colour_loss, distortion_loss, transparency_loss
from infnerf_tiles.volume.visibility import keep_reached


class HostStep:
    """Steps whose buffers are as large as the samples are many."""

    def __init__(self, work: Workload):
        hold_freed_memory()
        self.work, self.state, self.shared = work, work.state, work.shared
        self._settings, self._frame = work.settings, work.frame
        shared = work.shared
        self.optimizer = SharedOptimizer(shared, work.state.device) if shared.trainable else None
        self.kernels = for_device(work.state.device)
        self._format = torch.bfloat16 if has_bf16(work.settings.precision) else torch.float32

    def take(self) -> float:
        """One step; returns the batch's mean squared colour error.

        Raises NonFiniteError, before anything is updated, if the loss is not finite.
        """
        with torch_alone():
            return self._take()

    def _take(self) -> float:
        work, now = self.work, self.work.counters
        rng = np.random.default_rng((*work.seed, now.step))
        num_rays = max(64, int(self._settings.step_samples("cpu") / max(now.samples_per_ray, 1.0)))
        coarser = 0 if work.warm else coarsening(work.progress)
        if coarser:
            now.coarse_until = now.rays_done + num_rays
        batch = work.pixels.draw(rng, num_rays, coarser)
        rays, basis = self.make_rays(batch, rng.random(num_rays), coarser)
        points: DepthBatch | None = None
        if work.depth is not None:
            points = work.depth.draw(rng, int(num_rays * RAY_SHARE))
            rays, basis = self._with_points(rays, basis, points, rng, coarser)
        seen = faded_basis(basis, work.directions)
        # samples behind opaque matter are dropped next, so that more may be marched than are kept on average
        samples = self.kernels.march(
            rays, self.state.arena, self._frame.march, keep=2 * self._settings.samples_per_ray, adapt=True
        )
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        samples, known = self._visible(samples, seen)
        loss, error, weights = self._loss(batch, points, rays, samples, known, basis, seen, generator)
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"treelet {self.state.top}: the loss of step {now.step} is {loss.item()}; the last good state is "
                "kept. Look for NaN in the photos' poses, or lower training.lr"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self._update()
        self._note(samples, weights, batch.photo if points is None else np.concatenate([batch.photo, points.photo]))
        now.step += 1
        now.rays_done += num_rays
        now.samples_done += samples.count
        mean = samples.count / rays.origins.shape[0]
        now.samples_per_ray = 0.8 * now.samples_per_ray + 0.2 * max(1.0, mean)
        now.recent_error = error if math.isnan(now.recent_error) else 0.98 * now.recent_error + 0.02 * error
        if refresh_due(now.step, self._settings.occupancy_every):
            refresh_occupancy(
                self.state, self.shared.decoder, self._frame, rng,
                threshold=self._settings.occupancy_threshold, decay=0.6, reached=reached_cells(work),
            )  # fmt: skip
        return error

    def save(self) -> tuple[Counters, dict[str, AnyArray]]:
        """The counters, and what steps keep besides the workload: the moments of the shared parameters."""
        return self.work.counters, {} if self.optimizer is None else self.optimizer.save()

    def load(self, arrays: Mapping[str, AnyArray]) -> None:
        """Take what `save` of any kind of step gave."""
        if self.optimizer is not None:
            self.optimizer.load(arrays)

    def make_rays(self, batch: PixelBatch, offset: Float64, coarser: int = 0) -> tuple[Rays, Tensor]:
        """Rays in unit coordinates and their direction basis [Q, 16] for a batch of pixels.

        coarser: pyramid level that finer pixels are widened to.
        """
        origins, directions = self.work.cameras.rays(batch.photo, batch.xy)
        focal = self.work.cameras.focals[batch.photo]
        rays = Rays(
            origins=torch.from_numpy(self._frame.root.to_unit(origins)),
            directions=torch.from_numpy(directions / self._frame.root.edge),
            footprint=torch.from_numpy(np.exp2(np.maximum(batch.pyramid, coarser).astype(np.float64)) / focal),
            offset=torch.from_numpy(offset),
        )
        return rays, direction_basis(torch.from_numpy(directions))

    def _with_points(
        self, rays: Rays, basis: Tensor, points: DepthBatch, rng: np.random.Generator, coarser: int
    ) -> tuple[Rays, Tensor]:
        """The packet and its direction basis with the rays to points behind the rays to pixels."""
        width = np.exp2(rng.integers(coarser, max(coarser, self.work.pixels.num_levels - 1) + 1, len(points.photo)))
        root = self._frame.root
        more = (
            root.to_unit(points.origins),
            points.directions / root.edge,
            width / self.work.cameras.focals[points.photo],
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
            kept, index = keep_reached(samples, sigma, STOP)
            return kept, _Known(features=features[index], own=None, frozen=None, above=None)
        own = torch.nonzero(samples.slot < capacity).squeeze(1)
        others = torch.nonzero(samples.slot >= capacity).squeeze(1)
        above = torch.nonzero(samples.slot_above >= 0).squeeze(1)
        found_sigma, found_colour = self._frozen(
            torch.cat([samples.position[others], samples.position_above[above]]),
            torch.cat([samples.slot[others], samples.slot_above[above]]),
            torch.cat([samples.beta[others], torch.ones(above.shape[0])]),
            samples.ray[torch.cat([others, above])],
            basis,
        )
        frozen = _Shaded.zeros(samples.count).put(others, found_sigma[: len(others)], found_colour[: len(others)])
        second = _Shaded.zeros(samples.count).put(above, found_sigma[len(others) :], found_colour[len(others) :])
        features, own_sigma = self._density(samples.position[own], samples.slot[own], samples.beta[own])
        all_features = torch.zeros((samples.count, features.shape[1])).index_copy(0, own, features)
        sigma, _ = hand_over(frozen.sigma.index_copy(0, own, own_sigma), second.sigma, samples.blend, samples.dt)
        kept, index = keep_reached(samples, sigma, STOP)
        mine = torch.nonzero(kept.slot < capacity).squeeze(1)
        return kept, _Known(
            features=all_features[index[mine]], own=mine, frozen=frozen.chosen(index), above=second.chosen(index)
        )

    def _density(self, position: Tensor, slot: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Features and density of own samples, no gradient."""
        features = torch.empty((position.shape[0], self.state.shape.features))
        self.kernels.encode_into(position, slot, beta, self.state.arena, features)
        return features, density_of(self.shared.decoder, features, self._format)

    def _frozen(
        self, position: Tensor, slot: Tensor, beta: Tensor, ray: Tensor, basis: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Density and colour of frozen samples, no gradient."""
        features = torch.empty((position.shape[0], self.state.shape.features))
        self.kernels.encode_into(position, slot, beta, self.state.arena, features)
        with torch.no_grad():
            return self._decode(features, ray, basis)

    def _decode(self, features: Tensor, ray: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.tensor([features.shape[0]], dtype=torch.int32)
        return decode_samples(self.shared.decoder, features, ray, basis, count, self._format)

    def _shade(self, samples: Samples, known: "_Known", basis: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour of all samples; gradients reach the own nodes (and the decoder while it trains)."""
        own: Tensor | slice = slice(None) if known.own is None else known.own
        features = self.kernels.encode(
            samples.position[own], samples.slot[own], samples.beta[own],
            self.state.arena, self.work.moments.gradients, known.features,
        )  # fmt: skip
        sigma, colour = self._decode(features, samples.ray[own], basis)
        if known.own is None or known.frozen is None or known.above is None:
            return sigma, colour
        sigma = known.frozen.sigma.index_copy(0, known.own, sigma)
        colour = known.frozen.colour.index_copy(0, known.own, colour)
        sigma, share = hand_over(sigma, known.above.sigma, samples.blend, samples.dt)
        # where the treelet above has nothing, all of the colour is the own one
        share = torch.where(samples.slot_above >= 0, share, 1.0)[:, None]
        return sigma, share * colour + (1.0 - share) * known.above.colour

    def _loss(
        self,
        batch: PixelBatch,
        points: DepthBatch | None,
        rays: Rays,
        samples: Samples,
        known: "_Known",
        basis: Tensor,
        seen: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, float, Tensor]:
        s, num = self._settings, len(batch.photo)
        sigma, colour = self._shade(samples, known, seen)
        rgb, transmittance, _, weights = self.kernels.composite(
            samples.ray_start, sigma, colour, samples.t, samples.dt, stop=STOP
        )
        rgb = rgb[:num] + transmittance[:num, None] * self.shared.background(basis[:num], generator)
        photo = torch.from_numpy(batch.photo.astype(np.int64))
        shown = self.shared.appearance(photo, rgb)
        target = torch.from_numpy(batch.rgb)
        error = float(((shown.detach() - target) ** 2).mean())
        near: Tensor | None = None
        if points is not None and len(points.photo):
            near = point_loss(weights, samples, num, torch.from_numpy(points.distance), rays.footprint[num:])
        distortion: Tensor | None = None
        if s.lambda_distortion > 0:
            distortion = distortion_loss(
                weights, samples.t.log(), samples.dt / samples.t, samples.ray_start, samples.ray.long()
            )
        loss = objective(
            s, self.shared, colour=colour_loss(s.loss, shown, target), points=near, distortion=distortion,
            transparency=self._transparency(generator) if s.lambda_transparency > 0 else None,
        )  # fmt: skip
        return loss, error, weights.detach()

    def _transparency(self, generator: torch.Generator, count: int = TRANSPARENCY_POINTS) -> Tensor:
        """Transparency loss at random points of random own nodes, with the node's GSD as path length."""
        slot = torch.randint(0, self.state.num_own, (count,), generator=generator, dtype=torch.int32)
        arena = self.state.arena
        level = arena.level[slot.long()]
        local = torch.rand((count, 3), generator=generator)
        position = self.state.local_position(slot, local)
        features = self.kernels.encode(position, slot, torch.ones(count), arena, self.work.moments.gradients)
        sigma, _ = self.shared.decoder.density(features)
        return transparency_loss(sigma, self._frame.march.gsd_root / torch.exp2(level.float()))

    def _update(self) -> None:
        rate, step = self.work.rate, self.work.counters.step + 1
        for tensors, _ in self.work.moments.groups(self.state):
            self.kernels.adam(*tensors, step=step, rate=rate)
        if self.optimizer is not None:
            scalars = torch.tensor(adam_scalars(step, rate * SHARED_RATE))
            self.optimizer.update([parameter.grad for parameter in self.optimizer.parameters], scalars)
            for parameter in self.optimizer.parameters:
                parameter.grad = None

    def _note(self, samples: Samples, weights: Tensor, photos: Int32) -> None:
        photo = torch.from_numpy(photos.astype(np.int64))
        now = torch.tensor([self.work.counters.rays_done >> REACHED_SHIFT], dtype=torch.int32)
        self.work.evidence.note(samples, weights, photo, self.state.arena, now)


@dataclass(frozen=True, kw_only=True)
class _Shaded:
    """Density float32 [M] and colour float32 [M, 3] of samples, without gradient."""

    sigma: Tensor
    colour: Tensor

    @classmethod
    def zeros(cls, num: int) -> Self:
        return cls(sigma=torch.zeros(num), colour=torch.zeros((num, 3)))

    def put(self, index: Tensor, sigma: Tensor, colour: Tensor) -> Self:
        self.sigma[index], self.colour[index] = sigma.float(), colour.float()
        return self

    def chosen(self, index: Tensor) -> Self:
        return replace(self, sigma=self.sigma[index], colour=self.colour[index])


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the pass over densities already computed for the samples that it kept."""

    features: Tensor
    """float32 [own, F]."""
    own: Tensor | None
    """int64 [own], numbers of the samples in own nodes; None where all are."""
    frozen: _Shaded | None
    """What frozen nodes of this treelet or its neighbours draw; zero in own nodes."""
    above: _Shaded | None
    """What the treelets above draw; zero where they have no share."""


def has_bf16(precision: str) -> bool:
    """Whether a decoder on the processor computes in bfloat16: if asked to, or if "auto" and the hardware can.

    Elsewhere bfloat16 is slower than float32.
    """
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return precision == "bfloat16" or (precision == "auto" and "AVX512" in capability and bool(has()))
