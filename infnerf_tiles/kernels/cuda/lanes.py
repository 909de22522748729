"""Rays taking turns in lanes, in Triton: nothing waits for the host, which looks at the lanes' status when it likes."""

import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples
from infnerf_tiles.kernels.cuda.composite import opacity, stop_at
from infnerf_tiles.kernels.cuda.lattice import log1p
from infnerf_tiles.kernels.cuda.launch import launch, programs_for
from infnerf_tiles.kernels.cuda.march import march_constants
from infnerf_tiles.kernels.lanes import LEFT, Lanes, RayTable

_REFILL = 128
_MIX = 256
_BLOCK = 32
_AHEAD = 4
"""Samples whose loads are under way at once."""
_NEVER = 2**62


@triton.jit
def _move(source, target, from_row, to_row, mask, WIDTH: tl.constexpr):
    for k in tl.static_range(WIDTH):
        value = tl.load(source + from_row * WIDTH + k, mask=mask, other=0.0)
        tl.store(target + to_row * WIDTH + k, value, mask=mask)


@triton.jit(do_not_specialize=["num", "num_rows", "end"])
def _refill_kernel(
    rows, lane_ray, lane_start, lane_directions, lane_basis, lane_colour, lane_transmittance, lane_depth, lane_facts,
    directions, basis, colour, transmittance, depth, facts, next_step, status, stop, end, num, num_rows,
    BLOCK: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < num
    ray = tl.load(lane_ray + p, mask=inside, other=-1).to(tl.int64)
    start = tl.load(lane_start + p, mask=inside, other=-1)
    trans = tl.load(lane_transmittance + p, mask=inside, other=0.0)
    has = ray >= 0
    going = has & (start >= 0) & (start < end) & (trans >= stop)
    ended = has & (going == 0)
    _move(lane_colour, colour, p, ray, ended, 3)
    _move(lane_depth, depth, p, ray, ended, 1)
    _move(lane_facts, facts, p, ray, ended, 2)
    tl.store(transmittance + ray, trans, mask=ended)
    tl.store(next_step + ray, start, mask=ended)
    # a lane that gets a new state below must have been read by now
    tl.debug_barrier()
    free = (inside & (going == 0)).to(tl.int64)
    some = tl.sum(free, 0)
    # an atomic is one thread's for all: others add to it meanwhile, and the threads must agree
    before = tl.atomic_add(status, 0, sem="relaxed")
    taken = going
    if (some > 0) & (before < num_rows):
        place = tl.atomic_add(status, some, sem="relaxed") + tl.cumsum(free, 0) - free
        fresh = (free > 0) & (place < num_rows)
        new = tl.load(rows + place, mask=fresh, other=0).to(tl.int64)
        _move(directions, lane_directions, new, p, fresh, 3)
        _move(basis, lane_basis, new, p, fresh, 16)
        _move(colour, lane_colour, new, p, fresh, 3)
        _move(transmittance, lane_transmittance, new, p, fresh, 1)
        _move(depth, lane_depth, new, p, fresh, 1)
        _move(facts, lane_facts, new, p, fresh, 2)
        first = tl.load(next_step + new, mask=fresh, other=-1)
        tl.store(lane_ray + p, tl.where(fresh, new, -1).to(tl.int32), mask=free > 0)
        tl.store(lane_start + p, tl.where(fresh, first, -1), mask=free > 0)
        taken = going | fresh
    else:
        tl.store(lane_ray + p, tl.full([BLOCK], -1, dtype=tl.int32), mask=free > 0)
        tl.store(lane_start + p, tl.full([BLOCK], -1, dtype=tl.int64), mask=free > 0)
    left = tl.sum(taken.to(tl.int64), 0)
    if left > 0:
        tl.atomic_add(status + 1, left, sem="relaxed")


def refill(table: RayTable, rows: Tensor, lanes: Lanes, *, stop: float, end: int | None = None) -> None:
    """Put rays that have ended back into their table, and the next ones into their lanes.

    Arguments as in the reference twin; which lane a ray gets differs from run to run, and says nothing about its
    result.
    """
    lanes.status[LEFT : LEFT + 1].zero_()
    launch(
        _refill_kernel, programs_for(lanes.num, _REFILL), rows, lanes.ray, lanes.start, lanes.rays.directions,
        lanes.basis, lanes.colour, lanes.transmittance, lanes.depth, lanes.facts, table.directions, table.basis,
        table.colour, table.transmittance, table.depth, table.facts, table.next_step, lanes.status, stop_at(stop),
        _NEVER if end is None else end, lanes.num, rows.shape[0], BLOCK=_REFILL,
    )  # fmt: skip


@triton.jit
def _handed_over(x, x_above, blend):
    """Optical depth that gives blend * opacity(x) + (1 - blend) * opacity(x_above), and the share of the first."""
    x, x_above = tl.minimum(x, 60.0), tl.minimum(x_above, 60.0)
    least = tl.minimum(x, x_above)
    through = blend * tl.exp(least - x) + (1.0 - blend) * tl.exp(least - x_above)
    alpha, alpha_above = blend * opacity(x), (1.0 - blend) * opacity(x_above)
    both = alpha + alpha_above
    share = tl.where(both > 0, alpha / tl.maximum(both, 1e-38), blend)
    return least - tl.log(through), share


@triton.jit(do_not_specialize=["capacity"])
def _fade_kernel(sigma, blend, dt, slot_above, count, capacity, BLOCK: tl.constexpr):
    """Samples for which the treelet above has nothing."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = (m < capacity) & (m < tl.load(count))
    share = tl.load(blend + m, mask=live, other=1.0)
    part = live & (share < 1.0) & (tl.load(slot_above + m, mask=live, other=0) < 0)
    length = tl.load(dt + m, mask=part, other=1.0)
    x, _ = _handed_over(tl.load(sigma + m, mask=part, other=0.0) * length, 0.0, share)
    tl.store(sigma + m, x / tl.maximum(length, 1e-38), mask=part)


@triton.jit(do_not_specialize=["capacity"])
def _mix_kernel(
    sigma, colour, blend, dt, above_sample, count, sigma_above, colour_above, capacity, BLOCK: tl.constexpr
):  # fmt: skip
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = (a < capacity) & (a < tl.load(count))
    m = tl.load(above_sample + a, mask=live, other=0)
    weight = tl.load(blend + m, mask=live, other=1.0)
    length = tl.load(dt + m, mask=live, other=1.0)
    own = tl.load(sigma + m, mask=live, other=0.0) * length
    x, share = _handed_over(own, tl.load(sigma_above + a, mask=live, other=0.0) * length, weight)
    tl.store(sigma + m, x / tl.maximum(length, 1e-38), mask=live)
    for k in tl.static_range(3):
        own = tl.load(colour + m * 3 + k, mask=live, other=0.0)
        other = tl.load(colour_above + a * 3 + k, mask=live, other=0.0)
        tl.store(colour + m * 3 + k, share * own + (1.0 - share) * other, mask=live)


def mix_above(packed: PackedSamples, sigma: Tensor, colour: Tensor, sigma_above: Tensor, colour_above: Tensor) -> None:
    """Hand density and colour over to the second evaluations, in place; arguments as in the reference twin."""
    launch(
        _fade_kernel, programs_for(packed.capacity, _MIX), sigma, packed.blend, packed.dt, packed.slot_above,
        packed.count, packed.capacity, BLOCK=_MIX,
    )  # fmt: skip
    launch(
        _mix_kernel, programs_for(packed.capacity_above, _MIX), sigma, colour, packed.blend, packed.dt,
        packed.above_sample, packed.above_count, sigma_above, colour_above, packed.capacity_above, BLOCK=_MIX,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num", "end"])
def _accumulate_kernel(
    ray_start, ray_count, following, sigma, colour, t, dt, slot, beta, blend, level, footprint, offsets, constants,
    lane_ray, lane_start, lane_colour, lane_transmittance, lane_depth, lane_facts, status, stop, end, num,
    ENDS: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = q < num
    live = inside & (tl.load(lane_ray + q, mask=inside, other=-1) >= 0)
    length = tl.load(ray_count + q, mask=live, other=0)
    longest = tl.max(length, 0)
    after = tl.load(following + q, mask=live, other=-1)
    if ENDS:
        # what lies behind `end` was looked for in an arena that need not hold it
        after = tl.where((after < 0) | (after > end), end, after)
    tl.store(lane_start + q, tl.where(live, after, -1), mask=inside)
    if longest > 0:
        begin = tl.load(ray_start + q, mask=live, other=0)
        trans = tl.load(lane_transmittance + q, mask=live, other=0.0)
        r = tl.load(lane_colour + q * 3, mask=live, other=0.0)
        g = tl.load(lane_colour + q * 3 + 1, mask=live, other=0.0)
        b = tl.load(lane_colour + q * 3 + 2, mask=live, other=0.0)
        depth = tl.load(lane_depth + q, mask=live, other=0.0)
        levels = tl.load(lane_facts + q * 2, mask=live, other=0.0)
        weights = tl.load(lane_facts + q * 2 + 1, mask=live, other=0.0)
        drawn = tl.zeros([BLOCK], dtype=tl.int32)
        if ENDS:
            c = tl.load(constants + 1) * tl.load(footprint + q, mask=live, other=1.0)
            mid_near = tl.load(constants) * (1.0 + 0.5 * c)
            log_q = log1p(c)
            offset = tl.load(offsets + q, mask=live, other=0.5)
            last = end.to(tl.float64) - 0.5
        for first in range(0, longest, AHEAD):
            for k in tl.static_range(AHEAD):
                here = first + k < length
                m = begin + first + k
                at = tl.load(t + m, mask=here, other=1.0)
                if ENDS:
                    # steps are whole numbers but for the rounding of t
                    step = tl.log(at.to(tl.float64) / mid_near) / log_q - offset
                    here = here & (step < last)
                x = tl.load(sigma + m, mask=here, other=0.0) * tl.load(dt + m, mask=here, other=0.0)
                cr = tl.load(colour + m * 3, mask=here, other=0.0)
                cg = tl.load(colour + m * 3 + 1, mask=here, other=0.0)
                cb = tl.load(colour + m * 3 + 2, mask=here, other=0.0)
                weight = tl.load(beta + m, mask=here, other=0.0) * tl.load(blend + m, mask=here, other=0.0)
                at_level = tl.load(level + tl.load(slot + m, mask=here, other=0), mask=here, other=0)
                goes_on = here & (trans >= stop)
                alpha = tl.where(goes_on, opacity(x), 0.0)
                w = trans * alpha
                # a colour behind the ray's end may be anything, even NaN
                r += tl.where(goes_on, w * cr, 0.0)
                g += tl.where(goes_on, w * cg, 0.0)
                b += tl.where(goes_on, w * cb, 0.0)
                depth += tl.where(goes_on, w * at, 0.0)
                levels += tl.where(goes_on, w * ((at_level - 1).to(tl.float32) + weight), 0.0)
                weights += w
                trans = trans * (1.0 - alpha)
                drawn += here.to(tl.int32)
        tl.store(lane_transmittance + q, trans, mask=live)
        tl.store(lane_colour + q * 3, r, mask=live)
        tl.store(lane_colour + q * 3 + 1, g, mask=live)
        tl.store(lane_colour + q * 3 + 2, b, mask=live)
        tl.store(lane_depth + q, depth, mask=live)
        tl.store(lane_facts + q * 2, levels, mask=live)
        tl.store(lane_facts + q * 2 + 1, weights, mask=live)
        tl.atomic_add(status + 2, tl.sum(drawn, 0).to(tl.int64), sem="relaxed")


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
    """Carry the lanes' state through a round's samples, and note where they go on. Arguments as in the reference twin.

    Sample by sample along a ray, so that rounds of any size give the same bits.
    """
    launch(
        _accumulate_kernel, programs_for(lanes.num, _BLOCK), packed.ray_start, packed.ray_count, packed.next_step,
        sigma, colour, packed.t, packed.dt, packed.slot, packed.beta, packed.blend, arena.level, lanes.rays.footprint,
        lanes.rays.offset, march_constants(settings, sigma.device), lanes.ray, lanes.start, lanes.colour,
        lanes.transmittance, lanes.depth, lanes.facts, lanes.status, stop_at(stop), _NEVER if end is None else end,
        lanes.num, ENDS=end is not None, AHEAD=_AHEAD, BLOCK=_BLOCK, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
