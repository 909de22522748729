"""Rays on their way through the octree in Triton: which node draws a step, and how far the cell around it reaches.

Coordinates in [0, 1) are held as integers of 30 bits, whose high bits are the cells of any level. How far a cell
reaches is float32: it ends one step early rather than late, so rounding moves no sample.
"""

import triton
import triton.language as tl


@triton.jit
def fixed(x, y, z):
    """Coordinates as integers, rounded down."""
    return (x * (1 << 30)).to(tl.int32), (y * (1 << 30)).to(tl.int32), (z * (1 << 30)).to(tl.int32)


@triton.jit
def inverse_of(d):
    """1 / d as float32; 0 stands for a ray that never leaves."""
    flat = tl.abs(d) < 1e-30
    return tl.where(flat, 0.0, 1.0 / tl.where(flat, 1.0, d)).to(tl.float32)


@triton.jit
def _away(o, d, inverse, cell, shift):
    """Distance float32 at which a ray leaves the slab of cells of 2^shift fixed-point units."""
    face = tl.where(d > 0.0, (cell + 1) << shift, cell << shift).to(tl.float64) * (1.0 / (1 << 30))
    return tl.where(inverse == 0.0, float("inf"), (face - o).to(tl.float32) * inverse)


@triton.jit
def cell_end(
    i, last, t, fx, fy, fz, shift, ox, oy, oz, dx, dy, dz, inverse_x, inverse_y, inverse_z, mid_near, offset, log2_q,
    slack,
):  # fmt: skip
    """A step behind i, `last` at most, before which all steps surely lie in the cube of 2^shift units around step i."""
    leave = tl.minimum(
        _away(ox, dx, inverse_x, fx >> shift, shift),
        tl.minimum(_away(oy, dy, inverse_y, fy >> shift, shift), _away(oz, dz, inverse_z, fz >> shift, shift)),
    )
    leave = tl.maximum(leave, t.to(tl.float32))
    ahead = tl.log2(leave / mid_near.to(tl.float32)) / log2_q.to(tl.float32) - offset.to(tl.float32) - slack
    return tl.maximum(i + 1, tl.minimum(ahead, last.to(tl.float32)).to(tl.int32))


@triton.jit
def is_set(bits, fx, fy, fz, slot, shift, mask, LOG_EDGE: tl.constexpr):
    """Whether a node's bit around a place is set, of 2^LOG_EDGE per edge, 2^shift units each; False behind the mask."""
    low: tl.constexpr = (1 << LOG_EDGE) - 1
    bytes_log: tl.constexpr = max(3 * LOG_EDGE - 3, 0)
    bit = (((fz >> shift) & low) << (2 * LOG_EDGE)) + (((fy >> shift) & low) << LOG_EDGE) + ((fx >> shift) & low)
    found = tl.load(bits + (slot.to(tl.int64) << bytes_log) + (bit >> 3), mask=mask, other=0)
    return mask & (((found.to(tl.int32) >> (bit & 7)) & 1) == 1)


@triton.jit
def occupied(x, y, z, slot, lev, mask, occupancy, LOG_CELLS: tl.constexpr):
    """Whether the occupancy cell of node `slot` of level `lev` around a place in the unit cube is set."""
    fx, fy, fz = fixed(x, y, z)
    return is_set(occupancy, fx, fy, fz, slot, 30 - LOG_CELLS - lev, mask, LOG_CELLS)


@triton.jit
def find_node(lost, fx, fy, fz, wanted, slot, lev, region, blank, root, children, any_occupied):
    """Walk down to the nodes that draw the steps of `lost` lanes; the others keep what they have.

    Returns:
        (slot, level, region, blank): 2^region is the size of the cube around the step in which that node draws, blank
        whether nothing is in it or below it.
    """
    slot = tl.where(lost, root, slot)
    lev = tl.where(lost, 0, lev)
    region = tl.where(lost, 30, region)
    blank = tl.where(lost, tl.load(any_occupied + slot, mask=lost, other=1) == 0, blank)
    going = lost & (blank == 0) & (lev.to(tl.float64) < wanted)
    while tl.max(going.to(tl.int32), 0) > 0:
        bit = 29 - lev
        child = ((fx >> bit) & 1) + 2 * ((fy >> bit) & 1) + 4 * ((fz >> bit) & 1)
        below = tl.load(children + slot.to(tl.int64) * 8 + child, mask=going, other=-1)
        # a missing child's cube is where its parent draws
        region = tl.where(going, bit, region)
        going = going & (below >= 0)
        slot = tl.where(going, below, slot)
        lev = tl.where(going, lev + 1, lev)
        blank = blank | (going & (tl.load(any_occupied + slot, mask=going, other=1) == 0))
        going = going & (blank == 0) & (lev.to(tl.float64) < wanted)
    return slot, lev, region, blank


@triton.jit
def drawn_until(i, last, wanted, lev, log2_q):
    """A step behind i up to which no coarser level than `lev`, which draws step i, may draw; `last` at most."""
    # rounding moves a wanted level by much less than this
    steps = ((wanted - (lev - 1).to(tl.float64) - 1e-9) / log2_q).to(tl.int32)
    return tl.where(lev > 0, tl.minimum(tl.maximum(i + steps, i + 1), last), last)
