"""A ray's step lattice for numba kernels: steps in the root cube, blocks of steps, steps inside a cell.

Coordinates in [0, 1) are also held as integers of FIXED_BITS bits, whose high bits are the cells of any level.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import MarchSettings, Rays

FIXED_BITS = 40
"""Cells of the deepest level have 24 bits; those behind keep what is cut off small."""

_ONE = 2.0**FIXED_BITS
_FAR = 1e300
_GUARD = 1e-12
_FLAT = 1e-30


class Packet(NamedTuple):
    """Rays and what they are marched with, as numba kernels take them."""

    origins: Float64
    """float64 [Q, 3]: in the unit cube. This and the next three as in `Rays`."""
    directions: Float64
    """float64 [Q, 3]."""
    footprint: Float64
    """float64 [Q]."""
    offset: Float64
    """float64 [Q]."""
    start: Int64
    """int64 [Q]: lattice step to start from, -1 leaves the ray out."""
    near: float
    """World units. This and the next three as in `MarchSettings`."""
    step: float
    gsd_root: float
    lod_bias: float


def packet_of(rays: Rays, settings: MarchSettings, start: Tensor | None) -> Packet:
    """A packet of rays; start: int64 [Q], None: all start at their first step."""
    begin = np.zeros(rays.origins.shape[0], np.int64) if start is None else np.ascontiguousarray(start.numpy())
    columns = (rays.origins, rays.directions, rays.footprint, rays.offset)
    origins, directions, footprint, offset = (np.ascontiguousarray(column.numpy()) for column in columns)
    return Packet(
        origins=origins, directions=directions, footprint=footprint, offset=offset, start=begin,
        near=settings.near, step=settings.step, gsd_root=settings.gsd_root, lod_bias=settings.lod_bias,
    )  # fmt: skip


class Ray(NamedTuple):
    """One ray of a packet and its lattice, in the units of `Rays`."""

    ox: float
    oy: float
    oz: float
    dx: float
    dy: float
    dz: float
    c: float
    """Length of a step over the distance of its front end."""
    offset: float
    mid_near: float
    """Middle of the step that begins at `near`."""
    log_q: float
    """Logarithm of the next step's distance over this one's."""
    log2_q: float
    """How much the wanted level falls from step to step."""
    lambda_near: float
    """Wanted level at `mid_near`."""
    first: int
    last: int
    """First and one-past-last step whose middle lies in the root cube."""


class Ways(NamedTuple):
    """What `steps_inside` needs to know of a ray."""

    inverse_x: float
    inverse_y: float
    inverse_z: float
    guarded_x: float
    """Origin, moved along the ray's direction so that every cell seems to end a little early."""
    guarded_y: float
    guarded_z: float
    side_x: int
    """1 where the ray leaves cells by their upper face."""
    side_y: int
    side_z: int
    inverse_log_q: float


@njit(cache=True)
def ray_of(
    origin: tuple[float, float, float], direction: tuple[float, float, float], footprint: float, offset: float,
    near: float, step: float, gsd_root: float, lod_bias: float,
) -> Ray:  # fmt: skip
    """A ray's lattice."""
    ox, oy, oz = origin
    dx, dy, dz = direction
    c = step * footprint
    log_q = math.log1p(c)
    mid_near = near * (1.0 + 0.5 * c)
    lambda_near = math.log2(gsd_root / (mid_near * footprint)) + lod_bias
    first, last = _step_range(ox, oy, oz, dx, dy, dz, mid_near, offset, log_q)
    return Ray(ox, oy, oz, dx, dy, dz, c, offset, mid_near, log_q, log_q * 1.4426950408889634, lambda_near, first, last)


@njit(cache=True)
def ray_in(packet: Packet, q: int) -> Ray:
    """Ray q of a packet."""
    o, d = packet.origins, packet.directions
    return ray_of(
        (o[q, 0], o[q, 1], o[q, 2]), (d[q, 0], d[q, 1], d[q, 2]), packet.footprint[q], packet.offset[q],
        packet.near, packet.step, packet.gsd_root, packet.lod_bias,
    )  # fmt: skip


@njit(cache=True)
def _step_range(
    ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, mid_near: float, offset: float, log_q: float
) -> tuple[int, int]:
    """First and one-past-last step whose middle lies in the unit cube."""
    t0 = 0.0
    t1 = math.inf
    for axis in range(3):
        o = ox if axis == 0 else (oy if axis == 1 else oz)
        d = dx if axis == 0 else (dy if axis == 1 else dz)
        if d != 0.0:
            a = (0.0 - o) / d
            b = (1.0 - o) / d
            t0 = max(t0, min(a, b))
            t1 = min(t1, max(a, b))
        elif o < 0.0 or o >= 1.0:
            return 0, 0
    if t1 <= t0 or t1 <= mid_near:
        return 0, 0
    first = 0
    if t0 > mid_near:
        first = max(0, math.ceil(math.log(t0 / mid_near) / log_q - offset))
    last = math.ceil(math.log(t1 / mid_near) / log_q - offset)
    return first, max(first, last)


@njit(cache=True)
def place_at(ray: Any, t: float) -> tuple[float, float, float]:
    """Where a ray is at distance t, kept inside the unit cube against rounding."""
    below_one = 1.0 - 1e-12
    return (
        min(max(ray.ox + t * ray.dx, 0.0), below_one),
        min(max(ray.oy + t * ray.dy, 0.0), below_one),
        min(max(ray.oz + t * ray.dz, 0.0), below_one),
    )


@njit(cache=True)
def fixed(u: float) -> int:
    """A coordinate in [0, 1) as an integer, rounded down: its high bits are exactly its cells."""
    return int(u * _ONE)


@njit(cache=True)
def _guarded(o: float, d: float, guard: float) -> tuple[float, float, int]:
    """(inverse, guarded origin, side) of one axis."""
    if abs(d) < _FLAT:
        # never leaves: the face in front of -1 is infinitely far away
        return math.inf, -1.0, 1
    if d > 0.0:
        return 1.0 / d, o + guard, 1
    return 1.0 / d, o - guard, 0


@njit(cache=True)
def ways_of(ray: Ray) -> Ways:
    """How a ray leaves cells.

    A step's place is rounded by less than 1e-13 of the largest number in it, and so is a face's distance and the
    number of steps up to it; cells end earlier by more than all of that together.
    """
    guard = _GUARD * (1.0 + max(abs(ray.ox), max(abs(ray.oy), abs(ray.oz))))
    inverse_x, guarded_x, side_x = _guarded(ray.ox, ray.dx, guard)
    inverse_y, guarded_y, side_y = _guarded(ray.oy, ray.dy, guard)
    inverse_z, guarded_z, side_z = _guarded(ray.oz, ray.dz, guard)
    return Ways(
        inverse_x, inverse_y, inverse_z, guarded_x, guarded_y, guarded_z, side_x, side_y, side_z, 1.0 / ray.log_q
    )


@njit(cache=True)
def _leave(place: int, shift: int, side: int, guarded: float, inverse: float) -> float:
    """Distance at which a ray leaves the slab of 2^shift fixed-point units around a place."""
    return (float(((place >> shift) + side) << shift) * (1.0 / _ONE) - guarded) * inverse


@njit(cache=True)
def steps_inside(ways: Any, t: float, fx: int, fy: int, fz: int, shift: int) -> int:
    """Number of steps behind the one at distance t, place (fx, fy, fz), that surely lie in the same cube of 2^shift
    fixed-point units: never one too many, seldom one too few."""
    leave = min(
        min(_leave(fx, shift, ways.side_x, ways.guarded_x, ways.inverse_x), _FAR),
        min(
            _leave(fy, shift, ways.side_y, ways.guarded_y, ways.inverse_y),
            _leave(fz, shift, ways.side_z, ways.guarded_z, ways.inverse_z),
        ),
    )
    if leave <= t:
        return 0
    # log(leave / t) = 2 (u + u^3 / 3 + u^5 / 5 + ...): cut off, it is too small, by little unless the cube is large
    u = (leave - t) / (leave + t)
    return int(2.0 * u * (1.0 + u * u * (1.0 / 3.0 + 0.2 * u * u)) * ways.inverse_log_q)


@njit(cache=True)
def until(ray: Any, i: int, level: int) -> int:
    """A step behind i up to which no coarser level than `level`, which draws step i, may draw; the last at most."""
    if level == 0:
        return int(ray.last)
    wanted = ray.lambda_near - (i + ray.offset) * ray.log2_q
    # rounding moves a wanted level by much less than this
    return int(min(ray.last, max(i + 1, i + int((wanted - (level - 1) - 1e-9) / ray.log2_q))))


@njit(cache=True)
def most_halvings(ray: Ray) -> int:
    """Logarithm of the steps in the longest block: half an octave of distance."""
    return int(math.log2(max(1.0, 0.5 / ray.log2_q)))


@njit(cache=True)
def block_size(i: int, wanted: float, level: int, log2_q: float, most: int) -> int:
    """Steps in the block of step i, drawn at `level` below `wanted`; as wanted at the block's first step."""
    k = min(math.ceil(wanted) - level, most)
    # within half an octave the wanted level passes one integer at most
    if k < most and math.ceil(wanted + (i & ((2 << k) - 1)) * log2_q) - level > k:
        k += 1
    return 1 << k
