"""Write samples that are known by their ray, step and node, in Triton, one lane per sample."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, PackedSamples, Rays
from infnerf_tiles.kernels.cuda.lattice import block_length, block_size, lattice_of, place_of, ray_at
from infnerf_tiles.kernels.cuda.launch import launch, programs_for
from infnerf_tiles.kernels.cuda.walk import occupied

_RAYS, _WIDE = 16, 8


@triton.jit
def _inside(u, nodes):
    """Coordinate u as float32, inside the same of `nodes` equal parts of [0, 1) as u is."""
    rounded = u.to(tl.float32)
    # a part's faces are float32 numbers, so rounding can only reach the upper one, where the next part begins
    upper = ((tl.floor(u * nodes) + 1.0) / nodes).to(tl.float32)
    before = (upper.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    return tl.where(rounded >= upper, before, rounded)


@triton.jit
def _store_position(out, m, x, y, z, slot, lev, treelet, top_level, top_xyz, mask):
    """Positions of samples in the cube of their nodes' treelet roots."""
    tree = tl.load(treelet + slot, mask=mask, other=0)
    top = tl.load(top_level + tree, mask=mask, other=0)
    scale = (1 << top).to(tl.float64)
    nodes = (1 << tl.maximum(lev - top, 0)).to(tl.float64)
    ax = tl.load(top_xyz + tree * 3, mask=mask, other=0).to(tl.float64)
    ay = tl.load(top_xyz + tree * 3 + 1, mask=mask, other=0).to(tl.float64)
    az = tl.load(top_xyz + tree * 3 + 2, mask=mask, other=0).to(tl.float64)
    tl.store(out + m * 3, _inside(x * scale - ax, nodes), mask=mask)
    tl.store(out + m * 3 + 1, _inside(y * scale - ay, nodes), mask=mask)
    tl.store(out + m * 3 + 2, _inside(z * scale - az, nodes), mask=mask)


@triton.jit
def store_sample(
    m, q, slot, lev, wanted, t, x, y, z, mask,
    level, treelet, lambda_max, top_level, top_xyz, above, occupancy,
    out_ray, out_t, out_wanted, out_slot, out_beta, out_position, out_blend, out_slot_above, out_position_above,
    LOG_CELLS: tl.constexpr,
):  # fmt: skip
    """All columns of samples m but their length. x, y, z: in the unit cube."""
    tree = tl.load(treelet + slot, mask=mask, other=0)
    limit_level = tl.load(lambda_max + slot, mask=mask, other=0.0).to(tl.float64)
    beta = tl.minimum(tl.maximum(tl.minimum(wanted, limit_level) - (lev - 1).to(tl.float64), 0.0), 1.0)
    beta = tl.where(lev > 0, beta, 1.0)
    other = tl.load(above + tree, mask=mask, other=-1)
    top = tl.load(top_level + tree, mask=mask, other=0)
    mixed = mask & (lev > 0) & (lev == top) & (beta < 1.0) & (other >= 0)
    tl.store(out_ray + m, q, mask=mask)
    tl.store(out_t + m, t.to(tl.float32), mask=mask)
    tl.store(out_wanted + m, wanted.to(tl.float32), mask=mask)
    tl.store(out_slot + m, slot, mask=mask)
    tl.store(out_beta + m, tl.where(mixed, 1.0, beta).to(tl.float32), mask=mask)
    tl.store(out_blend + m, tl.where(mixed, beta, 1.0).to(tl.float32), mask=mask)
    _store_position(out_position, m, x, y, z, slot, lev, treelet, top_level, top_xyz, mask)
    shown = mixed
    if tl.max(mixed.to(tl.int32)) > 0:
        lev_other = tl.load(level + other, mask=mixed, other=0)
        # where the treelet above draws nothing, its field is unknown rather than empty
        shown = mixed & occupied(x, y, z, other, lev_other, mixed, occupancy, LOG_CELLS)
        _store_position(out_position_above, m, x, y, z, other, lev_other, treelet, top_level, top_xyz, shown)
    tl.store(out_slot_above + m, tl.where(shown, other, -1), mask=mask)


@triton.jit(do_not_specialize=["num", "known"])
def _emit_kernel(
    origins, directions, footprint, offsets, level, treelet, lambda_max, top_level, top_xyz, above, occupancy,
    total, ray_start, ray_count, known_step, known_slot,
    out_ray, out_t, out_dt, out_wanted, out_slot, out_beta, out_position, out_blend, out_slot_above,
    out_position_above, constants, num, known,
    ADAPT: tl.constexpr, LOG_CELLS: tl.constexpr, RAYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    q = (tl.program_id(0) * RAYS + tl.arange(0, RAYS))[:, None]
    inside = q < num
    goal = tl.load(total + q, mask=inside, other=0)
    kept = tl.where(goal <= known, tl.load(ray_count + q, mask=inside, other=0), 0)
    longest = tl.max(kept)
    if longest > 0:
        used = kept > 0
        ox, oy, oz, dx, dy, dz = ray_at(origins, directions, q, used)
        offset = tl.load(offsets + q, mask=used, other=0.5)
        c, log_q, mid_near, lambda_near, most = lattice_of(constants, tl.load(footprint + q, mask=used, other=1.0))
        row = tl.load(ray_start + q, mask=used, other=0)
        at = q.to(tl.int64) * known
        # sample j stands for the ray's samples [j goal / kept, (j + 1) goal / kept), and lies where the middle one is
        ratio = goal.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64)
        for first in range(0, longest, WIDE):
            j = first + tl.arange(0, WIDE)[None, :]
            live = used & (j < kept)
            begin = (j.to(tl.float64) * ratio + 1e-7).to(tl.int32)
            run = tl.where(live, ((j + 1).to(tl.float64) * ratio + 1e-7).to(tl.int32) - begin, 0)
            length = tl.zeros([RAYS, WIDE], dtype=tl.float64)
            for k in range(tl.max(run)):
                here = live & (k < run)
                i = tl.load(known_step + at + begin + k, mask=here, other=0)
                t, x, y, z, wanted = place_of(i, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near)
                size = tl.full([RAYS, WIDE], 1, dtype=tl.int32)
                if ADAPT:
                    lev = tl.load(level + tl.load(known_slot + at + begin + k, mask=here, other=0), mask=here, other=0)
                    coarse = here & (wanted > lev.to(tl.float64))
                    size = tl.where(coarse, block_size(i, wanted, lev, log_q * 1.4426950408889634, most), 1)
                length += tl.where(here, block_length(t, c, log_q, size), 0.0)
            middle = begin + (run - 1) // 2
            i = tl.load(known_step + at + middle, mask=live, other=0)
            slot = tl.load(known_slot + at + middle, mask=live, other=0)
            lev = tl.load(level + slot, mask=live, other=0)
            t, x, y, z, wanted = place_of(i, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near)
            m = row + j
            store_sample(
                m, q + tl.zeros([RAYS, WIDE], dtype=tl.int32), slot, lev, wanted, t, x, y, z, live,
                level, treelet, lambda_max, top_level, top_xyz, above, occupancy,
                out_ray, out_t, out_wanted, out_slot, out_beta, out_position, out_blend, out_slot_above,
                out_position_above, LOG_CELLS,
            )  # fmt: skip
            tl.store(out_dt + m, length.to(tl.float32), mask=live)


class Columns:
    """The columns that samples are written to, as `PackedSamples` has them."""

    def __init__(self, rows: int, device: torch.device):
        self.ray, self.slot, self.slot_above = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(3))
        self.t, self.dt, self.wanted, self.beta, self.blend = (torch.empty(rows, device=device) for _ in range(5))
        self.position = torch.empty((rows, 3), device=device)
        self.position_above = torch.zeros((rows, 3), device=device)


class KnownSamples:
    """Step and node of the first samples of each ray."""

    def __init__(self, rays: int, most: int, device: torch.device):
        self.most = most
        self.step, self.slot = (torch.empty((rays, most), dtype=torch.int32, device=device) for _ in range(2))


def emit(
    rays: Rays,
    arena: Arena,
    constants: Tensor,
    out: Columns | PackedSamples,
    known: KnownSamples,
    *,
    adapt: bool,
    total: Tensor,
    ray_start: Tensor,
    ray_count: Tensor,
) -> None:
    """Write the samples of all rays whose samples are known, all of them.

    total: int32 [Q], samples of each ray. ray_start: int64 [Q], first row of each. ray_count: int32 [Q], rows of each;
    where there are fewer than samples, a row stands for a run of neighbours.
    """
    num = rays.origins.shape[0]
    launch(
        _emit_kernel, programs_for(num, _RAYS),
        rays.origins.contiguous(), rays.directions.contiguous(), rays.footprint.contiguous(), rays.offset.contiguous(),
        arena.level, arena.treelet, arena.lambda_max, arena.top_level, arena.top_xyz, arena.above, arena.occupancy,
        total, ray_start, ray_count, known.step, known.slot,
        out.ray, out.t, out.dt, out.wanted, out.slot, out.beta, out.position, out.blend, out.slot_above,
        out.position_above, constants, num, known.most,
        ADAPT=adapt, LOG_CELLS=arena.occupancy_cells.bit_length() - 1, RAYS=_RAYS, WIDE=_WIDE, enable_fp_fusion=False,
    )  # fmt: skip
