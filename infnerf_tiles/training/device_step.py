"""One optimisation step that never waits for the host: buffers of fixed size, counts on the device, a CUDA graph.

Legend
    C  samples that fit (capacity)    Q  rays that fit
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.decoder import faded_basis
from infnerf_tiles.field.decoder_batch import decode_samples
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import PackedSamples, adam_scalars
from infnerf_tiles.kernels.hand_over import hand_over
from infnerf_tiles.training.depth import mass_loss, near_points
from infnerf_tiles.training.device_batch import GROUP, ROWS, DeviceBatch, DeviceSource
from infnerf_tiles.training.device_status import (
    ERROR,
    FAILED,
    LOOK_EVERY,
    PER_RAY,
    RAYS,
    SAMPLES,
    STEP,
    Record,
    Status,
    StepInputs,
)
from infnerf_tiles.training.draws import counters, key_of, uniforms
from infnerf_tiles.training.host_step import has_bf16
from infnerf_tiles.training.objective import REACHED_SHIFT, SHARED_RATE, STOP, TRANSPARENCY_POINTS, objective
from infnerf_tiles.training.refresh import reached_cells, refresh_on_device
from infnerf_tiles.training.schedule import coarsening, refresh_due
from infnerf_tiles.training.shared_optimizer import SharedOptimizer
from infnerf_tiles.training.workload import Counters, Workload
from infnerf_tiles.volume.losses import colour_loss, distortion_loss, masked_mean, transparency_loss

_FILL = 0.97
"""Share of the capacity that the rays in use should fill: more, and every other step some do not fit."""
_FEWEST_RAYS = 64
_FEWEST_PER_RAY = 8
"""Samples per ray below which a step has fewer samples than would fit."""
_ABOVE_SHARE = 0.5
"""Second evaluations that fit, as a share of the samples: one octave in a treelet's height needs one."""
_WARM_UP = 3
"""Steps before the capture: kernels are compiled and libraries choose their workspaces."""


class DeviceStep:
    """Steps in buffers of fixed size; a state with copies (`TrainingState.copies`) is what it works on."""

    def __init__(self, work: Workload, *, captured: bool = True, fused: bool = True):
        """captured, fused: whether, on CUDA, steps become a graph and all layers of the decoder one kernel."""
        self.work, state, s = work, work.state, work.settings
        self.device = state.device
        self.capacity = s.step_samples(self.device.type)
        num_rays = max(_FEWEST_RAYS, self.capacity // _FEWEST_PER_RAY)
        if work.depth is not None:
            num_rays = -(-num_rays // GROUP) * GROUP
        self.source = DeviceSource(work, num_rays)
        self.packed = PackedSamples.allocate(
            rays=num_rays,
            capacity=self.capacity,
            capacity_above=int(_ABOVE_SHARE * self.capacity) if self._has_frozen else 0,
            device=self.device,
        )
        start = work.counters
        self._base = Record(
            rays=0, samples=0, per_ray=start.samples_per_ray, error=start.recent_error, failed=-1, step=0
        )
        self.status = Status(self.device, self._base)
        self.inputs = StepInputs(self.device)
        self.shared_optimizer = SharedOptimizer(work.shared, self.device) if work.shared.trainable else None
        bfloat16 = has_bf16(s.precision) if self.device.type == "cpu" else s.precision != "float32"
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        self._kernels = for_device(self.device)
        self._points = counters(4, TRANSPARENCY_POINTS, self.device, behind=ROWS * num_rays)
        self._fused = fused
        self._captured = captured and self._kernels.CAPTURABLE and self.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warmed = 0

    @property
    def _has_frozen(self) -> bool:
        return len(self.work.state.keys) > self.work.state.capacity

    def take(self) -> float:
        """One step; returns the latest decayed error known. Refreshes the occupancy when it is time.

        NonFiniteError within two looks (LOOK_EVERY) of a step whose loss was not finite; nothing has changed since.
        """
        work, now = self.work, self.work.counters
        coarser = 0 if work.warm else coarsening(work.progress)
        rate, update = work.rate, now.step + 1
        key = key_of(work.seed, now.step)
        rates = adam_scalars(update, rate), adam_scalars(update, rate * SHARED_RATE)
        self.inputs.put(key, coarser, *rates, work.directions)
        self._launch()
        now.step += 1
        self._estimate()
        if coarser:
            now.coarse_until = now.rays_done
        if now.step % LOOK_EVERY == 0:
            record = self.status.exchange()
            if record is not None:
                self._accept(record)
        if refresh_due(now.step, work.settings.occupancy_every):
            refresh_on_device(work, key, self.status.values[FAILED] < 0, reached_cells(work))
        return now.recent_error

    def check(self) -> Record:
        """The device's record as it is now, waited for. NonFiniteError if a step's loss was not finite."""
        record = self.status.now()
        self._raise_if_failed(record)
        return record

    def settle(self) -> None:
        """Make the counters exact, at the end of a training. Errors as `check`."""
        self._base = self.check()
        self._accept(self._base)

    def save(self) -> tuple[Counters, dict[str, AnyArray]]:
        """The exact counters, and what steps keep besides the workload: records under way, shared moments.

        Errors as `check`. Saving changes nothing about the steps to come.
        """
        record = self.check()
        arrays: dict[str, AnyArray] = {"record": np.array(record.values())}
        arrays["record_base"] = np.array(self._base.values())
        if (pending := self.status.await_pending()) is not None:
            arrays["record_pending"] = np.array(pending.values())
        if self.shared_optimizer is not None:
            arrays |= self.shared_optimizer.save()
        exact = replace(
            self.work.counters, rays_done=record.rays, samples_done=record.samples, samples_per_ray=record.per_ray,
            recent_error=record.error,
        )  # fmt: skip
        return exact, arrays

    def load(self, arrays: Mapping[str, AnyArray]) -> None:
        """Take what `save` of any kind of step gave."""
        now = self.work.counters
        if "record" in arrays:
            record, base = Record.of(arrays["record"]), Record.of(arrays["record_base"])
            pending = Record.of(arrays["record_pending"]) if "record_pending" in arrays else None
        else:
            record = base = Record(
                rays=now.rays_done, samples=now.samples_done, per_ray=now.samples_per_ray, error=now.recent_error,
                failed=-1, step=now.step,
            )  # fmt: skip
            pending = None
        self.status.set(record, pending)
        self._accept(base)
        if self.shared_optimizer is not None:
            self.shared_optimizer.load(arrays)

    def _accept(self, record: Record) -> None:
        self._raise_if_failed(record)
        self._base = record
        now = self.work.counters
        now.samples_done, now.samples_per_ray, now.recent_error = record.samples, record.per_ray, record.error
        self._estimate()

    def _estimate(self) -> None:
        base, now = self._base, self.work.counters
        per_step = min(max(int(_FILL * self.capacity / base.per_ray), _FEWEST_RAYS), self.source.num_rays)
        if self.work.depth is not None:
            per_step = per_step * (GROUP - 1) // GROUP
        now.rays_done = base.rays + (now.step - base.step) * per_step

    def _raise_if_failed(self, record: Record) -> None:
        if record.failed >= 0:
            self.work.counters.step = record.failed
            raise NonFiniteError(
                f"treelet {self.work.state.top}: the loss of step {record.failed} is not finite (nan or inf); the last "
                "good state is kept. Look for NaN in the photos' poses, or lower training.lr"
            )

    def _launch(self) -> None:
        """Run a step: as it is, or by replaying the one that was captured."""
        if not self._captured:
            self.step()
            return
        if self._graph is None:
            if self._warmed < _WARM_UP:
                self._warmed += 1
                side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                main = torch.cuda.current_stream()
                side.wait_stream(main)
                with torch.cuda.stream(side):
                    self.step()
                main.wait_stream(side)
                return
            self._graph = torch.cuda.CUDAGraph()
            # other threads (a viewer, a prefetch) may go on using the device meanwhile
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self.step()
        self._graph.replay()

    def step(self) -> None:
        """One step on the device, from `inputs`; nothing in here may ask the device for a value."""
        work, state, inputs, packed = self.work, self.work.state, self.inputs, self.packed
        status = self.status.values
        in_use = (_FILL * self.capacity / status[PER_RAY : PER_RAY + 1]).clamp(_FEWEST_RAYS, self.source.num_rays)
        in_use = in_use.to(torch.int32)
        batch = self.source.draw(inputs.key, inputs.coarser)
        self._kernels.march_packed(
            batch.rays, state.arena, work.frame.march, num_rays=in_use, out=packed,
            keep=2 * work.settings.samples_per_ray, adapt=True,
        )  # fmt: skip
        loss, error, weights, drawn = self.loss(batch)
        gradients = work.moments.gradients
        parameters = [] if self.shared_optimizer is None else self.shared_optimizer.parameters
        # not loss.backward(), which would leave its gradients in tensors of streams of their own
        found = torch.autograd.grad(loss, [gradients.anchor, *parameters], allow_unused=True)
        fine = (torch.isfinite(loss.detach()) & (status[FAILED] < 0)).view(1)
        enabled = fine.to(torch.uint8)
        shape = state.shape
        self._kernels.spread_gradient(gradients, base_cells=shape.base_cells, grids=shape.num_corrections)
        scalars = inputs.rates.to(torch.float32)
        for tensors, half in work.moments.groups(state):
            self._kernels.adam(*tensors, half=half, scalars=scalars, enabled=enabled)
        state.fold()
        if self.shared_optimizer is not None:
            self.shared_optimizer.update(found[1:], inputs.shared_rates.to(torch.float32), enabled)
        time = (status[RAYS : RAYS + 1].to(torch.int64) >> REACHED_SHIFT).to(torch.int32)
        work.evidence.note(packed, weights, batch.photo, state.arena, time, enabled)
        self._count(fine, in_use, drawn, error)

    def _count(self, fine: Tensor, in_use: Tensor, drawn: Tensor, error: Tensor) -> None:
        """Move the counters on, or note the first step that failed."""
        status, packed = self.status.values, self.packed
        mean = (packed.demand / in_use).to(torch.float64).clamp(min=1.0)
        recent = status[ERROR]
        recent = torch.where(torch.isnan(recent), error, 0.98 * recent + 0.02 * error)
        after = torch.stack(
            [
                status[RAYS] + drawn,
                status[SAMPLES] + packed.count[0],
                0.8 * status[PER_RAY] + 0.2 * mean[0],
                recent,
                status[FAILED],
                status[STEP] + 1,
            ]
        )
        stopped = status.clone()
        stopped[FAILED] = torch.where(status[FAILED] < 0, status[STEP], status[FAILED])
        status.copy_(torch.where(fine, after, stopped))

    def loss(self, batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, mean squared colour error, weights [C], rays to pixels that count) of the packed samples."""
        work, packed, s = self.work, self.packed, self.work.settings
        sigma, colour = self.shade(batch)
        rgb, transmittance, _, weights = self._kernels.composite(
            packed.ray_start, sigma, colour, packed.t, packed.dt, stop=STOP, ray_count=packed.ray_count
        )
        background = work.shared.background
        behind = batch.noise.T.float() if background.kind == "random" else background(batch.basis)
        shown = work.shared.appearance.apply_rows(batch.photo, rgb + transmittance[:, None] * behind)
        kept = packed.ray_kept.to(torch.float32)
        to_pixel = kept * (1.0 - self.source.to_point)
        squared = ((shown.detach() - batch.rgb) ** 2).mean(dim=1)
        error = masked_mean(squared, to_pixel).to(torch.float64)
        near: Tensor | None = None
        if batch.distance is not None:
            ray = packed.ray
            around = near_points(
                packed.t, packed.dt, batch.distance.index_select(0, ray),
                batch.rays.footprint.float().index_select(0, ray),
            )  # fmt: skip
            mass = torch.zeros_like(batch.distance).index_add(0, ray, weights * around)
            near = masked_mean(mass_loss(mass), kept * self.source.to_point)
        distortion: Tensor | None = None
        if s.lambda_distortion > 0:
            t = packed.t.clamp(min=1e-20)  # rows that no ray uses may hold zeros
            distortion = distortion_loss(
                weights, t.log(), packed.dt / t, packed.ray_start, packed.ray.long(), num_rays=kept.sum().clamp(min=1.0)
            )
        loss = objective(
            s, work.shared, colour=colour_loss(s.loss, shown, batch.rgb, mask=to_pixel), points=near,
            distortion=distortion, transparency=self._transparency() if s.lambda_transparency > 0 else None,
        )  # fmt: skip
        return loss, error, weights.detach(), to_pixel.sum()

    def shade(self, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Density [C] and colour [C, 3] of the packed samples, with the hand-over to the treelets above."""
        packed, state, decoder, basis = self.packed, self.work.state, self.work.shared.decoder, batch.basis
        if self.work.learns_exposure:
            basis = faded_basis(basis, self.inputs.directions.to(torch.float32))
        features = self._kernels.encode(
            packed.position, packed.slot, packed.beta, state.arena, self.work.moments.gradients, count=packed.count
        )
        sigma, colour = decode_samples(
            decoder, features, packed.ray, basis, packed.count, self.dtype, fused=self._fused
        )
        if not self._has_frozen:
            return sigma, colour
        num = packed.capacity_above
        with torch.no_grad():
            above = torch.empty((num, state.shape.features), device=self.device)
            self._kernels.encode_into(
                packed.above_position, packed.above_slot, torch.ones(num, device=self.device), state.arena, above,
                count=packed.above_count,
            )  # fmt: skip
            ray = packed.ray.index_select(0, packed.above_sample)
            sigma_above, colour_above = decode_samples(
                decoder, above, ray, basis, packed.above_count, self.dtype, fused=self._fused
            )
            # rows that are not in use go to a place behind the last sample
            used = torch.arange(num, device=self.device) < packed.above_count
            place = torch.where(used, packed.above_sample, self.capacity).long()
            other_sigma = torch.zeros(self.capacity + 1, device=self.device).index_copy_(0, place, sigma_above)
            other_colour = torch.zeros((self.capacity + 1, 3), device=self.device).index_copy_(0, place, colour_above)
        sigma, share = hand_over(sigma, other_sigma[:-1], packed.blend, packed.dt)
        # where the treelet above has nothing, all of the colour is the own one
        share = torch.where(packed.slot_above >= 0, share, 1.0)[:, None]
        return sigma, share * colour + (1.0 - share) * other_colour[:-1]

    def _transparency(self) -> Tensor:
        """Transparency loss at random points of random own nodes, with the node's GSD as path length."""
        state = self.work.state
        u = uniforms(self.inputs.key, self._points)
        slot = (u[0] * state.own_count).to(torch.int32)
        position = state.local_position(slot, u[1:].T.to(torch.float32))
        ones = torch.ones(TRANSPARENCY_POINTS, device=self.device)
        features = self._kernels.encode(position, slot, ones, state.arena, self.work.moments.gradients)
        sigma, _ = self.work.shared.decoder.density(features.float())
        level = state.arena.level[slot.long()]
        return transparency_loss(sigma, self.work.frame.march.gsd_root / torch.exp2(level.float()))
