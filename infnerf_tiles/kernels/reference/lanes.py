"""Rays taking turns in lanes, in plain torch."""

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples
from infnerf_tiles.kernels.hand_over import hand_over
from infnerf_tiles.kernels.lanes import GIVEN, LEFT, SAMPLES, Lanes, RayTable
from infnerf_tiles.kernels.reference.composite import composite_into

_STATE = ("basis", "colour", "transmittance", "depth", "facts")


def refill(table: RayTable, rows: Tensor, lanes: Lanes, *, stop: float, end: int | None = None) -> None:
    """Put rays that have ended back into their table, and the next ones into their lanes.

    A ray ends when it leaves the root cube, falls below `stop` (transmittance), or comes to lattice step `end`. Which
    lane a ray gets says nothing about its result.

    Args:
        table: state of all rays, written where a ray ends.
        rows: int32 [n], rows of the table that take their turn, in this order; they must not have ended.
        lanes: changed; `status` afterwards says how many rays were given out and how many lanes are in work.
    """
    going = (lanes.ray >= 0) & (lanes.start >= 0) & (lanes.transmittance.double() >= stop)
    if end is not None:
        going &= lanes.start < end
    ended = torch.nonzero((lanes.ray >= 0) & ~going).squeeze(1)
    back = lanes.ray[ended].long()
    for name in _STATE[1:]:
        getattr(table, name)[back] = getattr(lanes, name)[ended]
    table.next_step[back] = lanes.start[ended]
    free = torch.nonzero(~going).squeeze(1)
    lanes.ray[free], lanes.start[free] = -1, -1
    given = int(lanes.status[GIVEN])
    new = rows[given : given + free.shape[0]]
    free, source = free[: new.shape[0]], new.long()
    lanes.ray[free] = new
    lanes.start[free] = table.next_step[source]
    lanes.rays.directions[free] = table.directions[source]
    for name in _STATE:
        getattr(lanes, name)[free] = getattr(table, name)[source]
    lanes.status[GIVEN] = given + new.shape[0]
    lanes.status[LEFT] = going.sum() + new.shape[0]


def mix_above(packed: PackedSamples, sigma: Tensor, colour: Tensor, sigma_above: Tensor, colour_above: Tensor) -> None:
    """Hand density [C] and colour [C, 3] over to the second evaluations [A], in place (`hand_over`).

    Where there is none the treelet above is empty: blend weighs the opacity alone.
    """
    num, m = int(packed.above_count), int(packed.count)
    sample = packed.above_sample[:num].long()
    other = torch.zeros_like(sigma[:m])
    other[sample] = sigma_above[:num]
    density, share = hand_over(sigma[:m], other, packed.blend[:m], packed.dt[:m])
    sigma[:m] = density
    own = share[sample, None]
    colour[sample] = own * colour[sample] + (1.0 - own) * colour_above[:num]


def accumulate(
    lanes: Lanes,
    packed: PackedSamples,
    arena: Arena,
    settings: MarchSettings,
    sigma: Tensor,
    colour: Tensor,
    *,
    stop: float,
    end: int | None = None,
) -> None:
    """Carry the lanes' state through a round's samples, and note where they go on.

    Args:
        packed: what `march_packed` found for the lanes. sigma: float32 [C]. colour: float32 [C, 3].
        stop: a ray ends at its first sample with transmittance below this.
        end: samples of lattice steps from here on do not count.
    """
    m = int(packed.count)
    ray = packed.ray[:m].long()
    t, dt = packed.t[:m], packed.dt[:m]
    if end is not None:
        c = settings.step * lanes.rays.footprint[ray]
        step = torch.log(t.double() / (settings.near * (1.0 + 0.5 * c))) / torch.log1p(c) - lanes.rays.offset[ray]
        # steps are whole numbers but for the rounding of t
        counts = step < end - 0.5
        dt = torch.where(counts, dt, 0.0)
        lanes.status[SAMPLES] += counts.sum()
    else:
        lanes.status[SAMPLES] += m
    facts = torch.zeros((m, 3), device=t.device)
    facts[:, 0] = arena.level[packed.slot[:m].long()] - 1 + packed.beta[:m] * packed.blend[:m]
    facts[:, 1] = 1.0
    summed = torch.cat([lanes.facts, torch.zeros_like(lanes.facts[:, :1])], dim=1)
    transmittance, weights = lanes.transmittance.clone(), torch.empty_like(t)
    composite_into(
        packed.ray_start, sigma[:m], facts, t, dt, stop, ray_count=packed.ray_count,
        colour_out=summed, transmittance_out=transmittance, depth_out=torch.zeros_like(lanes.depth),
        weights_out=weights,
    )  # fmt: skip
    lanes.facts.copy_(summed[:, :2])
    composite_into(
        packed.ray_start, sigma[:m], colour[:m], t, dt, stop, ray_count=packed.ray_count,
        colour_out=lanes.colour, transmittance_out=lanes.transmittance, depth_out=lanes.depth, weights_out=weights,
    )  # fmt: skip
    following = packed.next_step
    if end is not None:
        # what lies behind `end` was looked for in an arena that need not hold it
        following = torch.where((following < 0) | (following > end), end, following)
    lanes.start.copy_(torch.where(lanes.ray >= 0, following, -1))
