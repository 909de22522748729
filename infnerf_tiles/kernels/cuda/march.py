"""March rays through the octree in Triton: a pass, one lane per ray, that finds the samples; one that writes them.

The samples are those of the other twins. `march_packed` writes into buffers of fixed capacity without waiting for the
host, so that it can be part of a captured graph.
"""

import functools
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples, Rays, Samples
from infnerf_tiles.kernels.blocks import log_blocks
from infnerf_tiles.kernels.cuda.emit import Columns, KnownSamples, emit, store_sample
from infnerf_tiles.kernels.cuda.lattice import block_length, block_size, lattice_of, place_of, ray_at, step_range
from infnerf_tiles.kernels.cuda.launch import launch, programs_for
from infnerf_tiles.kernels.cuda.walk import cell_end, drawn_until, find_node, fixed, inverse_of, is_set

__all__ = ["march", "march_packed"]

_BLOCK = 32
_SCAN = 1024
_ABOVE = 512
_UNLIMITED = 2**31 - 1
_KNOWN = 64
"""Samples of a ray that need no second walk to be written."""


@triton.jit(do_not_specialize=["num", "limit", "known", "root"])
def _march_kernel(
    origins, directions, footprint, offsets, start, num_rays,
    root, children, occupancy, blocks, any_occupied, level, treelet, lambda_max, top_level, top_xyz, above,
    total, ends, ray_start, ray_count,
    out_ray, out_t, out_dt, out_wanted, out_slot, out_beta, out_position, out_blend, out_slot_above,
    out_position_above,
    known_step, known_slot, constants, num, limit, known,
    EMIT: tl.constexpr, COUNTED: tl.constexpr, STARTED: tl.constexpr, ADAPT: tl.constexpr, LOG_CELLS: tl.constexpr,
    LOG_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = q < num
    live = inside
    if COUNTED:
        live = inside & (q < tl.load(num_rays))
    kept = tl.zeros([BLOCK], dtype=tl.int32)
    goal = tl.full([BLOCK], 0, dtype=tl.int32) + limit
    if EMIT:
        kept = tl.load(ray_count + q, mask=live, other=0)
        goal = tl.load(total + q, mask=live, other=0)
        # the others are written sample by sample
        live = live & (kept > 0) & (goal > known)
    ox, oy, oz, dx, dy, dz = ray_at(origins, directions, q, live)
    foot = tl.load(footprint + q, mask=live, other=1.0)
    offset = tl.load(offsets + q, mask=live, other=0.5)
    c, log_q, mid_near, lambda_near, most = lattice_of(constants, foot)
    slack = 4e-6 / log_q.to(tl.float32)
    inverse_x, inverse_y, inverse_z = inverse_of(dx), inverse_of(dy), inverse_of(dz)
    first, last = step_range(ox, oy, oz, dx, dy, dz, mid_near, offset, log_q)
    i = first
    if STARTED:
        begin = tl.load(start + q, mask=live, other=-1)
        live = live & (begin >= 0)
        i = tl.maximum(first, tl.minimum(begin, last.to(tl.int64)).to(tl.int32))
    log2_q = log_q * 1.4426950408889634
    n = tl.zeros([BLOCK], dtype=tl.int32)
    slot = tl.zeros([BLOCK], dtype=tl.int32) + root
    lev = tl.zeros([BLOCK], dtype=tl.int32)
    nx, ny, nz, region, until = lev, lev, lev, lev, lev
    blank = n > 0
    # thinning: run j of neighbouring samples, [j goal / kept, (j + 1) goal / kept), keeps its middle one
    ratio = goal.to(tl.float64) / tl.maximum(kept, 1).to(tl.float64)
    j = tl.zeros([BLOCK], dtype=tl.int32)
    end = (ratio + 1e-7).to(tl.int32)
    middle = (end - 1) // 2
    length = tl.zeros([BLOCK], dtype=tl.float64)
    row = tl.zeros([BLOCK], dtype=tl.int64)
    if EMIT:
        row = tl.load(ray_start + q, mask=live, other=0)
    active = live & (i < last) & (n < goal)
    while tl.max(active.to(tl.int32), 0) > 0:
        t, x, y, z, wanted = place_of(i, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near)
        fx, fy, fz = fixed(x, y, z)
        # loads wait for each other, so nodes are looked for only where another one may draw
        lost = active & ((i >= until) | ((((fx ^ nx) | (fy ^ ny) | (fz ^ nz)) >> region) != 0))
        if tl.max(lost.to(tl.int32), 0) > 0:
            slot, lev, region, blank = find_node(
                lost, fx, fy, fz, wanted, slot, lev, region, blank, root, children, any_occupied
            )
            nx, ny, nz = tl.where(lost, fx, nx), tl.where(lost, fy, ny), tl.where(lost, fz, nz)
            until = tl.where(lost, drawn_until(i, last, wanted, lev, log2_q), until)
        inside_node = active & (blank == 0)
        # both at once, neither waits for the other
        full = is_set(occupancy, fx, fy, fz, slot, 30 - LOG_CELLS - lev, inside_node, LOG_CELLS)
        busy = is_set(blocks, fx, fy, fz, slot, 30 - LOG_BLOCKS - lev, inside_node, LOG_BLOCKS)
        shift = tl.where(blank, region, 30 - lev - tl.where(busy, LOG_CELLS, LOG_BLOCKS))
        stop = cell_end(
            i, until, t, fx, fy, fz, shift, ox, oy, oz, dx, dy, dz, inverse_x, inverse_y, inverse_z, mid_near, offset,
            log2_q, slack,
        )  # fmt: skip
        # the samples of a full cell, steps i .. stop - 1
        taking = full
        while tl.max(taking.to(tl.int32), 0) > 0:
            size = tl.full([BLOCK], 1, dtype=tl.int32)
            if ADAPT:
                wanted_here = lambda_near - (i.to(tl.float64) + offset) * log2_q
                longer = block_size(i, wanted_here, lev, log2_q, most)
                size = tl.where(taking & (wanted_here > lev.to(tl.float64)), longer, 1)
            front = i & (-size)
            here = front + (size >> 1)
            behind = tl.minimum(front + size, stop)
            hit = taking & (i <= here) & (here < stop)
            if EMIT == 0:
                noted = hit & (n < known)
                tl.store(known_step + q.to(tl.int64) * known + n, here, mask=noted)
                tl.store(known_slot + q.to(tl.int64) * known + n, slot, mask=noted)
            if EMIT:
                t, x, y, z, wanted = place_of(here, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near)
                # a block of two may begin where a finer level is wanted, and have its middle where none is
                size = tl.where(wanted > lev.to(tl.float64), size, 1)
                length += tl.where(hit, block_length(t, c, log_q, size), 0.0)
                m = row + j
                store_sample(
                    m, q, slot, lev, wanted, t, x, y, z, hit & (n == middle),
                    level, treelet, lambda_max, top_level, top_xyz, above, occupancy,
                    out_ray, out_t, out_wanted, out_slot, out_beta, out_position, out_blend, out_slot_above,
                    out_position_above, LOG_CELLS,
                )  # fmt: skip
                done = hit & (n == end - 1)
                tl.store(out_dt + m, length.to(tl.float32), mask=done)
                length = tl.where(done, 0.0, length)
                j = tl.where(done, j + 1, j)
                later = ((j + 1).to(tl.float64) * ratio + 1e-7).to(tl.int32)
                middle = tl.where(done, (end + later - 1) // 2, middle)
                end = tl.where(done, later, end)
            n += hit.to(tl.int32)
            filled = hit & (n == goal)
            i = tl.where(taking, tl.where(filled, here + 1, behind), i)
            taking = taking & (i < stop) & (filled == 0)
        i = tl.where(active & (full == 0), stop, i)
        active = active & (i < last) & (n < goal)
    if EMIT == 0:
        tl.store(total + q, n, mask=inside)
        # a ray that has all it may have goes on behind its last sample, every other has reached the end
        tl.store(ends + q, tl.where(live & (n == goal), i, -1).to(tl.int64), mask=inside)


@triton.jit
def _kept_samples(total, q, num, used, keep):
    """Samples of rays q that count: at most `keep`, and none of rays that are not in use."""
    return tl.minimum(tl.load(total + q, mask=(q < num) & (q < used), other=0), keep).to(tl.int64)


@triton.jit(do_not_specialize=["num", "keep"])
def _sums_kernel(total, num_rays, sums, num, keep, BLOCK: tl.constexpr):
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(_kept_samples(total, q, num, tl.load(num_rays), keep), 0))


@triton.jit(do_not_specialize=["num", "blocks", "keep", "capacity"])
def _offsets_kernel(
    total, sums, start, num_rays, ray_start, ray_count, ray_kept, next_step, count, demand, above_count, num, blocks,
    keep, capacity, STARTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Running sums of the rays' samples, until the first ray that does not fit; `sums` has those of whole blocks."""
    block = tl.program_id(0)
    used = tl.load(num_rays)
    before = used.to(tl.int64) * 0
    whole, full, fits = before, before, before
    for first in range(0, blocks, BLOCK):
        b = first + tl.arange(0, BLOCK)
        each = tl.load(sums + b, mask=b < blocks, other=0)
        before += tl.sum(tl.where(b < block, each, 0), 0)
        after = tl.cumsum(each, 0) + whole
        whole += tl.sum(each, 0)
        # blocks that fit as a whole come first
        full += tl.sum(((after <= capacity) & (b < blocks)).to(tl.int64), 0)
        fits = tl.maximum(fits, tl.max(tl.where(after <= capacity, after, 0), 0))
    if full < blocks:
        # the rays of the block that does not
        last = tl.cumsum(_kept_samples(total, full * BLOCK + tl.arange(0, BLOCK), num, used, keep), 0) + fits
        fits = tl.maximum(fits, tl.max(tl.where(last <= capacity, last, 0), 0))
    q = block * BLOCK + tl.arange(0, BLOCK)
    inside = q < num
    own = _kept_samples(total, q, num, used, keep)
    last = tl.cumsum(own, 0) + before
    kept = (last <= capacity) & (q < used)
    tl.store(ray_start + q, tl.minimum(last - own, fits), mask=inside)
    tl.store(ray_count + q, tl.where(kept, own, 0).to(tl.int32), mask=inside)
    tl.store(ray_kept + q, kept.to(tl.uint8), mask=inside)
    again = tl.zeros([BLOCK], dtype=tl.int64)
    if STARTED:
        again = tl.load(start + q, mask=inside, other=-1)
    again = tl.where(q < used, again, -1)
    tl.store(next_step + q, tl.where(kept, tl.load(next_step + q, mask=inside, other=-1), again), mask=inside)
    if block == 0:
        tl.store(count, fits.to(tl.int32))
        tl.store(demand, whole.to(tl.int32))
        tl.store(above_count, fits.to(tl.int32) * 0)


@triton.jit(do_not_specialize=["capacity", "capacity_above"])
def _above_kernel(
    slot_above, position_above, blend, count, above_count, above_sample, above_slot, above_position, capacity,
    capacity_above, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gather the samples that need a second evaluation; those that find no room do without."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = (m < capacity) & (m < tl.load(count))
    other = tl.load(slot_above + m, mask=live, other=-1)
    mixed = (other >= 0).to(tl.int32)
    num = tl.sum(mixed, 0)
    if num > 0:
        place = tl.atomic_add(above_count, num, sem="relaxed") + tl.cumsum(mixed, 0) - mixed
        fits = (mixed > 0) & (place < capacity_above)
        tl.store(above_sample + place, m, mask=fits)
        tl.store(above_slot + place, other, mask=fits)
        for a in tl.static_range(3):
            at = tl.load(position_above + m * 3 + a, mask=fits, other=0.0)
            tl.store(above_position + place * 3 + a, at, mask=fits)
        left_out = (mixed > 0) & (place >= capacity_above)
        tl.store(blend + m, tl.full([BLOCK], 1.0, dtype=tl.float32), mask=left_out)
        tl.store(slot_above + m, tl.full([BLOCK], -1, dtype=tl.int32), mask=left_out)


@triton.jit
def _cap_kernel(above_count, capacity_above):
    tl.store(above_count, tl.minimum(tl.load(above_count), capacity_above))


@functools.cache
def march_constants(settings: MarchSettings, device: torch.device) -> Tensor:
    """Arguments of kernels are float32 at most; these must not be rounded. Kept: a captured graph cannot make them."""
    values = (settings.near, settings.step, settings.gsd_root, settings.lod_bias)
    return torch.tensor(values, dtype=torch.float64, device=device)


@dataclass(frozen=True, kw_only=True)
class _March:
    """One march: what is asked for, and what the walk finds out."""

    rays: Rays
    arena: Arena
    settings: MarchSettings
    num_rays: Tensor | None
    start: Tensor | None
    limit: int | None
    adapt: bool
    ends: Tensor
    """int64 [Q]: step at which each ray goes on."""
    total: Tensor
    """int32 [Q]: samples of each ray."""
    known: KnownSamples

    @classmethod
    def of(
        cls, rays: Rays, arena: Arena, settings: MarchSettings, *, num_rays: Tensor | None, start: Tensor | None,
        limit: int | None, adapt: bool, ends: Tensor,
    ) -> Self:  # fmt: skip
        num, device = rays.origins.shape[0], rays.origins.device
        return cls(
            rays=rays, arena=arena, settings=settings, num_rays=num_rays, start=start, limit=limit, adapt=adapt,
            ends=ends, total=torch.empty(num, dtype=torch.int32, device=device),
            known=KnownSamples(num, _KNOWN if limit is None else min(limit, _KNOWN), device),
        )  # fmt: skip

    @property
    def constants(self) -> Tensor:
        return march_constants(self.settings, self.rays.origins.device)

    def count(self, unused: Columns | PackedSamples) -> None:
        """Count the samples and note the first ones; nothing is written to `unused`."""
        self._walk(unused, self.ends, self.total, emit=False)

    def write(self, out: Columns | PackedSamples, ray_start: Tensor, ray_count: Tensor) -> None:
        """Write the samples that were counted, ray_count int32 [Q] rows a ray from ray_start int64 [Q] on."""
        emit(
            self.rays, self.arena, self.constants, out, self.known, adapt=self.adapt, total=self.total,
            ray_start=ray_start, ray_count=ray_count,
        )  # fmt: skip
        if self.limit is None or self.limit > self.known.most:
            # rays with more samples than were noted
            self._walk(out, ray_start, ray_count, emit=True)

    def _walk(self, out: Columns | PackedSamples, ray_start: Tensor, ray_count: Tensor, *, emit: bool) -> None:
        rays, arena, start, num = self.rays, self.arena, self.start, self.rays.origins.shape[0]
        log_cells = arena.occupancy_cells.bit_length() - 1
        launch(
            _march_kernel, programs_for(num, _BLOCK),
            rays.origins.contiguous(), rays.directions.contiguous(), rays.footprint.contiguous(),
            rays.offset.contiguous(), self.ends if start is None else start.contiguous(),
            self.total if self.num_rays is None else self.num_rays,
            arena.root, arena.children, arena.occupancy, arena.blocks, arena.any_occupied, arena.level, arena.treelet,
            arena.lambda_max, arena.top_level, arena.top_xyz, arena.above, self.total, self.ends, ray_start, ray_count,
            out.ray, out.t, out.dt, out.wanted, out.slot, out.beta, out.position, out.blend, out.slot_above,
            out.position_above, self.known.step, self.known.slot, self.constants, num,
            _UNLIMITED if self.limit is None else self.limit, self.known.most,
            EMIT=emit, COUNTED=self.num_rays is not None, STARTED=start is not None, ADAPT=self.adapt,
            LOG_CELLS=log_cells, LOG_BLOCKS=log_blocks(log_cells), BLOCK=_BLOCK, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip


def march(
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    start: Tensor | None = None,
    limit: int | None = None,
    keep: int | None = None,
    adapt: bool = False,
) -> Samples:
    """Emit the samples of each ray that lie in occupied cells, front to back.

    Waits once for the device, for the number of samples. Arguments and result as in the reference twin.
    """
    num, device = rays.origins.shape[0], rays.origins.device
    ends = torch.empty(num, dtype=torch.int64, device=device)
    own = _March.of(
        rays, arena, settings, num_rays=None, start=start, limit=limit, adapt=adapt, ends=ends
    )  # fmt: skip
    own.count(Columns(1, device))
    kept = own.total if keep is None else own.total.clamp(max=keep)
    ray_start = torch.zeros(num + 1, dtype=torch.int64, device=device)
    torch.cumsum(kept, 0, out=ray_start[1:])
    out = Columns(int(ray_start[-1]), device)
    if out.t.shape[0]:
        own.write(out, ray_start, kept)
    return Samples(
        ray_start=ray_start,
        ray=out.ray,
        t=out.t,
        dt=out.dt,
        wanted=out.wanted,
        slot=out.slot,
        beta=out.beta,
        position=out.position,
        blend=out.blend,
        slot_above=out.slot_above,
        position_above=out.position_above,
        next_step=ends,
    )


def march_packed(
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    num_rays: Tensor,
    out: PackedSamples,
    start: Tensor | None = None,
    limit: int | None = None,
    keep: int | None = None,
    adapt: bool = False,
) -> None:
    """March the first `num_rays` rays into buffers of fixed capacity; arguments as in the reference twin.

    Nothing waits for the host. `out.above_sample` comes in any order.
    """
    num, device = rays.origins.shape[0], rays.origins.device
    own = _March.of(
        rays, arena, settings, num_rays=num_rays, start=start, limit=limit, adapt=adapt, ends=out.next_step
    )  # fmt: skip
    own.count(out)
    most, blocks = _UNLIMITED if keep is None else keep, max(1, programs_for(num, _SCAN))
    sums = torch.empty(blocks, dtype=torch.int64, device=device)
    launch(_sums_kernel, blocks, own.total, num_rays, sums, num, most, BLOCK=_SCAN)
    launch(
        _offsets_kernel, blocks, own.total, sums, own.total if start is None else start.contiguous(), num_rays,
        out.ray_start, out.ray_count, out.ray_kept, out.next_step, out.count, out.demand, out.above_count,
        num, blocks, most, out.capacity, STARTED=start is not None, BLOCK=_SCAN,
    )  # fmt: skip
    own.write(out, out.ray_start, out.ray_count)
    launch(
        _above_kernel, programs_for(out.capacity, _ABOVE), out.slot_above, out.position_above, out.blend, out.count,
        out.above_count, out.above_sample, out.above_slot, out.above_position, out.capacity, out.capacity_above,
        BLOCK=_ABOVE,
    )  # fmt: skip
    launch(_cap_kernel, 1, out.above_count, out.capacity_above)
