"""The step lattice of a ray in Triton: where it enters and leaves, what a block of steps is, the next sample.

Steps, positions and wanted levels are float64 as in the other twins. How far an empty cell lets a ray skip is float32:
a skip ends one step early rather than late, so its rounding moves no sample. Coordinates in [0, 1) are also held as
integers of 30 bits, whose high bits are the cells of any level.
"""

import triton
import triton.language as tl


@triton.jit
def log1p(c):
    """log(1 + c) of c >= 0 to float64 precision (Kahan)."""
    u = 1.0 + c
    inexact = tl.where(u == 1.0, 1.0, u - 1.0)
    return tl.where(u == 1.0, c, tl.log(u) * c / inexact)


@triton.jit
def _slab(o, d, enter, leave):
    """An interval of distances cut to where o + t d is in [0, 1); empty where a ray along the slab is outside."""
    along = d == 0.0
    safe = tl.where(along, 1.0, d)
    a = (0.0 - o) / safe
    b = (1.0 - o) / safe
    outside = along & ((o < 0.0) | (o >= 1.0))
    enter = tl.where(along, enter, tl.maximum(enter, tl.minimum(a, b)))
    leave = tl.where(along, leave, tl.minimum(leave, tl.maximum(a, b)))
    return enter, tl.where(outside, -1.0, leave)


@triton.jit
def step_range(ox, oy, oz, dx, dy, dz, mid_near, offset, log_q):
    """First and one-past-last step int32 whose middle lies in the unit cube."""
    enter = tl.zeros_like(ox)
    leave = tl.full(ox.shape, 1e300, dtype=tl.float64)
    enter, leave = _slab(ox, dx, enter, leave)
    enter, leave = _slab(oy, dy, enter, leave)
    enter, leave = _slab(oz, dz, enter, leave)
    crosses = (leave > enter) & (leave > mid_near)
    late = crosses & (enter > mid_near)
    at_enter = tl.log(tl.where(late, enter, mid_near) / mid_near) / log_q - offset
    first = tl.where(late, tl.maximum(tl.ceil(at_enter), 0.0), 0.0)
    at_leave = tl.log(tl.where(crosses, leave, mid_near) / mid_near) / log_q - offset
    last = tl.where(crosses, tl.maximum(tl.ceil(at_leave), first), 0.0)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def lattice_of(constants, foot):
    """(c, log(1+c), middle of step 0, wanted level there, log2 of the longest block) of rays with footprint `foot`."""
    c = tl.load(constants + 1) * foot
    log_q = log1p(c)
    mid_near = tl.load(constants) * (1.0 + 0.5 * c)
    lambda_near = tl.log2(tl.load(constants + 2) / (mid_near * foot)) + tl.load(constants + 3)
    most = tl.floor(tl.log2(tl.maximum(0.5 / (log_q * 1.4426950408889634), 1.0))).to(tl.int32)
    return c, log_q, mid_near, lambda_near, most


@triton.jit
def ray_at(origins, directions, q, mask):
    """Origin and direction of rays q; inside the unit cube behind the mask."""
    ox = tl.load(origins + q * 3, mask=mask, other=0.5)
    oy = tl.load(origins + q * 3 + 1, mask=mask, other=0.5)
    oz = tl.load(origins + q * 3 + 2, mask=mask, other=0.5)
    dx = tl.load(directions + q * 3, mask=mask, other=1.0)
    dy = tl.load(directions + q * 3 + 1, mask=mask, other=1.0)
    dz = tl.load(directions + q * 3 + 2, mask=mask, other=1.0)
    return ox, oy, oz, dx, dy, dz


@triton.jit
def place_of(i, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near):
    """(distance, x, y, z, wanted level) of the middle of step i."""
    s = i.to(tl.float64) + offset
    t = mid_near * tl.exp(s * log_q)
    # a bare number would be rounded to float32, and so to 1
    below_one = tl.full(i.shape, 1.0 - 1e-12, dtype=tl.float64)
    x = tl.minimum(tl.maximum(ox + t * dx, 0.0), below_one)
    y = tl.minimum(tl.maximum(oy + t * dy, 0.0), below_one)
    z = tl.minimum(tl.maximum(oz + t * dz, 0.0), below_one)
    return t, x, y, z, lambda_near - s * (log_q * 1.4426950408889634)


@triton.jit
def block_size(i, wanted, level, log2_q, most):
    """Steps in the block of step i, drawn at `level` below `wanted`; as wanted at the block's first step."""
    k = tl.minimum(tl.ceil(wanted).to(tl.int32) - level, most)
    # within half an octave the wanted level passes one integer at most
    place = i & ((2 << tl.maximum(k, 0)) - 1)
    at_first = tl.ceil(wanted + place.to(tl.float64) * log2_q).to(tl.int32)
    k = tl.where((k < most) & (at_first - level > k), k + 1, k)
    return 1 << tl.maximum(k, 0)


@triton.jit
def block_length(t, c, log_q, size):
    """Length of the block whose middle step has its own middle at t."""
    front = t / (1.0 + 0.5 * c)
    length = t * c / (1.0 + 0.5 * c)
    if tl.max(size) > 1:
        half = size >> 1
        long = tl.exp((size - half).to(tl.float64) * log_q) - tl.exp(-(half.to(tl.float64)) * log_q)
        length = tl.where(size == 1, length, front * long)
    return length


@triton.jit
def _away(o, d, inverse, cell, shift):
    """Distance float32 at which a ray leaves the slab of cells of 2^shift fixed-point units."""
    face = tl.where(d > 0.0, (cell + 1) << shift, cell << shift).to(tl.float64) * (1.0 / (1 << 30))
    return tl.where(inverse == 0.0, float("inf"), (face - o).to(tl.float32) * inverse)


@triton.jit
def inverse_of(d):
    """1 / d as float32; 0 stands for a ray that never leaves."""
    flat = tl.abs(d) < 1e-30
    return tl.where(flat, 0.0, 1.0 / tl.where(flat, 1.0, d)).to(tl.float32)


@triton.jit
def _bit(cx, cy, cz, slot, mask, occupancy, LOG_CELLS: tl.constexpr):
    """Whether an occupancy cell of node `slot` is set, by the low bits of its coordinates; False behind the mask."""
    low: tl.constexpr = (1 << LOG_CELLS) - 1
    cell = ((cz & low) << (2 * LOG_CELLS)) + ((cy & low) << LOG_CELLS) + (cx & low)
    bits = tl.load(occupancy + (slot.to(tl.int64) << (3 * LOG_CELLS - 3)) + (cell >> 3), mask=mask, other=0)
    return mask & (((bits.to(tl.int32) >> (cell & 7)) & 1) == 1)


@triton.jit
def occupied(x, y, z, slot, lev, mask, occupancy, LOG_CELLS: tl.constexpr):
    """Whether the occupancy cell of node `slot` of level `lev` around a place in the unit cube is set."""
    shift = 30 - LOG_CELLS - lev
    cx = (x * (1 << 30)).to(tl.int32) >> shift
    cy = (y * (1 << 30)).to(tl.int32) >> shift
    cz = (z * (1 << 30)).to(tl.int32) >> shift
    return _bit(cx, cy, cz, slot, mask, occupancy, LOG_CELLS)


@triton.jit
def advance(
    active, i, last, slot, lev, nx, ny, nz,
    ox, oy, oz, dx, dy, dz, inverse_x, inverse_y, inverse_z, mid_near, offset, log_q, lambda_near, most, slack,
    root, children, occupancy, any_occupied,
    LOG_CELLS: tl.constexpr, ADAPT: tl.constexpr,
):  # fmt: skip
    """Test step i. (slot, lev, nx, ny, nz) is the node of the step before, where the walk down may go on.

    Returns:
        (hit, step to go on from, slot, lev, nx, ny, nz, wanted, t, x, y, z, stride)
    """
    log2_q = log_q * 1.4426950408889634
    t, x, y, z, wanted = place_of(i, ox, oy, oz, dx, dy, dz, mid_near, offset, log_q, lambda_near)
    fx = (x * (1 << 30)).to(tl.int32)
    fy = (y * (1 << 30)).to(tl.int32)
    fz = (z * (1 << 30)).to(tl.int32)
    same = ((fx >> (30 - lev)) == nx) & ((fy >> (30 - lev)) == ny) & ((fz >> (30 - lev)) == nz)
    same = same & ((lev == 0) | (wanted > (lev - 1).to(tl.float64)))
    slot = tl.where(same, slot, root)
    lev = tl.where(same, lev, 0)
    empty = tl.load(any_occupied + slot, mask=active, other=0) == 0
    going = active & (empty == 0) & (lev.to(tl.float64) < wanted)
    while tl.max(going.to(tl.int32), 0) > 0:
        bit = 29 - lev
        child = ((fx >> bit) & 1) + 2 * ((fy >> bit) & 1) + 4 * ((fz >> bit) & 1)
        below = tl.load(children + slot.to(tl.int64) * 8 + child, mask=going, other=-1)
        going = going & (below >= 0)
        slot = tl.where(going, below, slot)
        lev = tl.where(going, lev + 1, lev)
        empty = empty | (going & (tl.load(any_occupied + slot, mask=going, other=1) == 0))
        going = going & (empty == 0) & (lev.to(tl.float64) < wanted)
    nx, ny, nz = fx >> (30 - lev), fy >> (30 - lev), fz >> (30 - lev)
    shift = tl.where(empty, 30 - lev, 30 - LOG_CELLS - lev)
    cx, cy, cz = fx >> shift, fy >> shift, fz >> shift
    full = _bit(cx, cy, cz, slot, active & (empty == 0), occupancy, LOG_CELLS)
    stride = tl.full(i.shape, 1, dtype=tl.int32)
    if ADAPT:
        size = block_size(i, wanted, lev, log2_q, most)
        stride = tl.where(full & (wanted > lev.to(tl.float64)), size, 1)
    place = i & (stride - 1)
    half = stride >> 1
    hit = full & (place == half)
    leave = tl.minimum(
        _away(ox, dx, inverse_x, cx, shift),
        tl.minimum(_away(oy, dy, inverse_y, cy, shift), _away(oz, dz, inverse_z, cz, shift)),
    )
    leave = tl.maximum(leave, t.to(tl.float32))
    ahead = tl.log2(leave / mid_near.to(tl.float32)) / log2_q.to(tl.float32) - offset.to(tl.float32) - slack
    jump = tl.maximum(i + 1, tl.minimum(ahead, last.to(tl.float32)).to(tl.int32))
    # behind this step coarser nodes draw, whose cells are others
    until = i + ((wanted - (lev - 1).to(tl.float64)) / log2_q).to(tl.int32)
    jump = tl.where(lev > 0, tl.minimum(jump, tl.maximum(i + 1, until)), jump)
    # to the block's middle, or to the next block, which may be shorter
    block = i - place + tl.where(place < half, half, stride)
    jump = tl.where(stride > 1, tl.minimum(jump, block), jump)
    return hit, tl.where(hit, i + 1, jump), slot, lev, nx, ny, nz, wanted, t, x, y, z, stride
