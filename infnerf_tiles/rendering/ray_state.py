"""A packet of rays marched, shaded and composited in rounds, with a state that can be put down and taken up again.

A sample's place follows from its ray alone, its colour from its place alone, and a ray ends at the first sample behind
which its transmittance is too small. So the result is the same to the last bit however the work is cut into rounds,
packets and stretches of distance.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from infnerf_tiles.field.shading import FieldFn
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples
from infnerf_tiles.kernels.cpu.reach import END

ROUND_SAMPLES = 1 << 16
"""Samples that a round aims at; few per ray, since what lies behind an opaque surface is shaded for nothing."""
_FEWEST, _MOST = 8, 256  # samples per ray and round


@dataclass(kw_only=True)
class RayState:
    """What is known of Q rays so far."""

    colour: Tensor
    """float32 [Q, 3], premultiplied."""
    transmittance: Tensor
    """float32 [Q]."""
    depth: Tensor
    """float32 [Q]: sum of weight times distance, world units."""
    facts: Tensor
    """float32 [Q, 3]: sums of weight times drawn level, of the weights, and of nothing."""
    next_step: Tensor
    """int64 [Q]: lattice step to go on from, -1 when the ray has left the root cube."""
    num_samples: int = 0
    """Samples shaded for these rays."""

    @classmethod
    def fresh(cls, num: int, device: torch.device | None = None) -> "RayState":
        """The state of rays that have not begun."""
        return cls(
            colour=torch.zeros((num, 3), device=device),
            transmittance=torch.ones(num, device=device),
            depth=torch.zeros(num, device=device),
            facts=torch.zeros((num, 3), device=device),
            next_step=torch.zeros(num, dtype=torch.int64, device=device),
        )

    def alive(self, stop: float) -> Tensor:
        """bool [Q]: rays that go on."""
        # compared in float64, as compositing does: rounding `stop` could keep a ray that compositing has ended
        return (self.next_step >= 0) & (self.transmittance.double() >= stop)

    def subset(self, rows: Tensor) -> "RayState":
        """A copy of the state of some rays."""
        return RayState(
            colour=self.colour[rows],
            transmittance=self.transmittance[rows],
            depth=self.depth[rows],
            facts=self.facts[rows],
            next_step=self.next_step[rows],
        )

    def put(self, rows: Tensor, part: "RayState") -> None:
        """Take over the state of some rays."""
        for name in ("colour", "transmittance", "depth", "facts", "next_step"):
            getattr(self, name)[rows] = getattr(part, name)
        self.num_samples += part.num_samples


def march_and_composite(
    arena: Arena,
    field: FieldFn,
    rays: Rays,
    basis: Tensor,
    state: RayState,
    settings: MarchSettings,
    *,
    stop: float,
    end: Tensor | int | None = None,
    adapt: bool = True,
    round_samples: int = ROUND_SAMPLES,
) -> None:
    """Carry the state of Q rays forward, in place, to lattice step `end` (not included; int64 [Q] where each has its
    own, END among them; None: to their end).

    Args:
        arena: topology and occupancy that decide where samples lie.
        field: density and colour of samples.
        basis: float32 [Q, 16], direction basis per ray.
        stop: a ray ends at its first sample with transmittance below this.
        adapt: take longer steps where the octree ends before the wanted level, as training does: several times fewer
            samples over the air, and no finer picture without.
        round_samples: about how many samples are shaded at once; the result does not depend on it.
    """
    kernels = for_device(arena.device)
    ends = torch.full_like(state.next_step, END)
    if end is not None:
        ends[:] = end
    cut = bool((ends < END).any())
    while True:
        going = state.alive(stop) & (state.next_step < ends)
        num = int(going.sum())
        if not num:
            return
        start = torch.where(going, state.next_step, -1)
        limit = min(max(round_samples // num, _FEWEST), _MOST)
        if cut:
            limit = min(limit, int(torch.where(going, ends - state.next_step, 1).max()))
        samples: Samples = kernels.march(rays, arena, settings, start=start, limit=limit, adapt=adapt)
        next_step = samples.next_step
        if cut:
            samples = _before(samples, rays, settings, ends)
            # what lies behind `end` was looked for in an arena that need not hold it
            next_step = torch.where((ends < END) & ((next_step < 0) | (next_step > ends)), ends, next_step)
        state.next_step = torch.where(going, next_step, state.next_step)
        if not samples.count:
            continue
        sigma, colour = field(samples, basis)
        transmittance, unused = state.transmittance.clone(), torch.zeros_like(state.depth)
        weights = torch.empty_like(sigma)
        packed = (samples.ray_start, sigma)
        kernels.composite_into(
            *packed, colour, samples.t, samples.dt, stop,
            colour_out=state.colour, transmittance_out=state.transmittance, depth_out=state.depth, weights_out=weights,
        )  # fmt: skip
        kernels.composite_into(
            *packed, _facts(samples, arena), samples.t, samples.dt, stop,
            colour_out=state.facts, transmittance_out=transmittance, depth_out=unused, weights_out=weights,
        )  # fmt: skip
        state.num_samples += samples.count


def _facts(samples: Samples, arena: Arena) -> Tensor:
    """float32 [M, 3]: drawn level (between two levels where they are blended), 1, 0."""
    facts = samples.t.new_zeros((samples.count, 3))
    facts[:, 0] = arena.level[samples.slot.long()] - 1 + samples.beta * samples.blend
    facts[:, 1] = 1.0
    return facts


def _before(samples: Samples, rays: Rays, settings: MarchSettings, ends: Tensor) -> Samples:
    """The samples of lattice steps below `ends`, int64 [Q]."""
    ray = samples.ray.long()
    c = settings.step * rays.footprint[ray]
    steps = torch.log(samples.t.double() / (settings.near * (1.0 + 0.5 * c))) / torch.log1p(c) - rays.offset[ray]
    # steps are whole numbers but for the rounding of t
    kept = steps < ends[ray].double() - 0.5
    before = torch.cat([samples.ray_start.new_zeros(1), torch.cumsum(kept, 0)])
    columns = {
        field.name: getattr(samples, field.name)[kept]
        for field in fields(Samples)
        if field.name not in ("ray_start", "next_step")
    }
    return replace(samples, ray_start=before[samples.ray_start], **columns)
