"""The step lattice of a ray in Triton: where it enters and leaves, where a step lies, what a block of steps is.

Steps, positions and wanted levels are float64 as in the other twins.
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
