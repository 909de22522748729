"""What each ray leaves in which treelet of a band: the sums of its samples' weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

from infnerf_tiles.arrays import Float32, Float64, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.geometry.node_id import decode_keys
from infnerf_tiles.kernels.arena import Samples

_AXIS_BITS = 21
"""Bits of a cell's number along one axis; cells of all levels fit."""
_AT_ONCE = 1 << 13
"""Rays that a thread takes at a time."""


@dataclass(frozen=True, kw_only=True)
class RayTreelets:
    """(ray, treelet) pairs: a ray has samples in the treelet's cube or within its margin. Sorted by ray and treelet.

    weight: of the ray's samples there, margin included. own: of those inside the cube alone.
    """

    ray: Int64
    treelet: Int64
    """Row of the treelet in the keys given."""
    weight: Float32
    own: Float32
    crossed: Int64
    """int64 [Q]: cubes of the treelets' level in which each ray has samples one after the other, at least 1."""


def ray_treelets(
    samples: Samples,
    weights: Float32,
    origins: Float64,
    directions: Float64,
    *,
    top: int,
    root_keys: Int64,
    margin: float,
) -> RayTreelets:
    """Sum each ray's weights by treelet; a sample within `margin` of a cube's face counts on both sides of it.

    On both sides means: in the cube's own sum `own`, and in `weight`, the largest of nine sums: of the samples as they
    are, and of all of them moved by `margin` towards each of the eight corners.

    Args:
        samples: of Q rays, those of a ray in order. weights: float32 [M].
        origins, directions: float64 [Q, 3], unit coordinates; directions per world unit of `samples.t`.
        top: level of the treelets' roots. root_keys: int64 [k], at most one per cell, all of that level.
        margin: edges of a root's cube.
    """
    _, cells = decode_keys(root_keys)
    codes = (cells[:, 2] << 2 * _AXIS_BITS) | (cells[:, 1] << _AXIS_BITS) | cells[:, 0]
    order = np.argsort(codes)
    ray_start, t, weights = samples.ray_start.cpu().numpy(), samples.t.cpu().numpy(), np.ascontiguousarray(weights)
    origins, directions = np.ascontiguousarray(origins), np.ascontiguousarray(directions)

    def part(first: int) -> tuple[Int64, Int64, Float64, Float64, Int64]:
        last = first + _AT_ONCE
        ray, *rest = _sum(
            ray_start[first : last + 1], t, weights, origins[first:last], directions[first:last], 1 << top,
            codes[order], order, margin if top else 0.0,
        )  # fmt: skip
        return ray + first, *rest

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        parts = list(pool.map(part, range(0, max(len(origins), 1), _AT_ONCE)))
    ray, treelet, weight, own, crossed = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return RayTreelets(
        ray=ray, treelet=treelet, weight=weight.astype(np.float32), own=own.astype(np.float32), crossed=crossed
    )


@njit(cache=True, nogil=True)
def _row_of(x: int, y: int, z: int, cells: int, codes: Int64, order: Int64) -> int:
    """Row of the treelet in cell (x, y, z), or -1."""
    if x < 0 or y < 0 or z < 0 or x >= cells or y >= cells or z >= cells:
        return -1
    code = (z << 42) | (y << 21) | x
    at = np.searchsorted(codes, code)
    return order[at] if at < len(codes) and codes[at] == code else -1


# No slices and no sorting by numpy in here: they would take five seconds to compile, most of it for wording errors.


@njit(cache=True, nogil=True)
def _larger(array, count, room):  # type: ignore[no-untyped-def]
    """The first `count` entries in an array for `room`."""
    out = np.empty(room, array.dtype)
    for k in range(count):
        out[k] = array[k]
    return out


@njit(cache=True, nogil=True)
def _larger_rows(array, room):  # type: ignore[no-untyped-def]
    """All rows in an array for `room`."""
    out = np.empty((room, array.shape[1]), array.dtype)
    for k in range(array.shape[0]):
        for c in range(array.shape[1]):
            out[k, c] = array[k, c]
    return out


@njit(cache=True, nogil=True)
def _sum(  # type: ignore[no-untyped-def]
    ray_start, t, weights, origins, directions, cells, codes, order, margin
):  # fmt: skip
    num = origins.shape[0]
    crossed = np.ones(num, np.int64)
    room = 2 * num + 64
    out_ray, out_treelet = np.empty(room, np.int64), np.empty(room, np.int64)
    out_weight, out_own = np.empty(room, np.float64), np.empty(room, np.float64)
    count = 0
    most = 64
    rows = np.empty(most, np.int64)
    sums = np.zeros((most, 9), np.float64)
    shifts = 9 if margin > 0.0 else 1
    found = np.empty(9, np.int64)
    for q in range(num):
        held = 0
        last_x, last_y, last_z, row = -1, -1, -1, -1
        runs = 0
        for m in range(ray_start[q], ray_start[q + 1]):
            ux = (origins[q, 0] + t[m] * directions[q, 0]) * cells
            uy = (origins[q, 1] + t[m] * directions[q, 1]) * cells
            uz = (origins[q, 2] + t[m] * directions[q, 2]) * cells
            x, y, z = int(np.floor(ux)), int(np.floor(uy)), int(np.floor(uz))
            if runs == 0 or x != last_x or y != last_y or z != last_z:
                row = _row_of(x, y, z, cells, codes, order)
                last_x, last_y, last_z = x, y, z
                runs += 1
            for c in range(9):
                found[c] = row
            fx, fy, fz = ux - x, uy - y, uz - z
            if shifts > 1 and (min(fx, fy, fz) < margin or max(fx, fy, fz) >= 1.0 - margin):
                for c in range(8):
                    sx = int(np.floor(ux + (margin if c & 1 else -margin)))
                    sy = int(np.floor(uy + (margin if c & 2 else -margin)))
                    sz = int(np.floor(uz + (margin if c & 4 else -margin)))
                    if sx == x and sy == y and sz == z:
                        found[1 + c] = row
                    else:
                        found[1 + c] = _row_of(sx, sy, sz, cells, codes, order)
            at = -1
            for s in range(shifts):
                if found[s] < 0:
                    continue
                if at < 0 or rows[at] != found[s]:
                    at = held - 1
                    while at >= 0 and rows[at] != found[s]:
                        at -= 1
                    if at < 0:
                        if held == most:
                            rows, sums, most = _larger(rows, held, 2 * most), _larger_rows(sums, 2 * most), 2 * most
                        at = held
                        rows[at] = found[s]
                        for c in range(9):
                            sums[at, c] = 0.0
                        held += 1
                sums[at, s] += weights[m]
        crossed[q] = max(runs, 1)
        if count + held > room:
            room = 2 * (room + held)
            out_ray, out_treelet = _larger(out_ray, count, room), _larger(out_treelet, count, room)
            out_weight, out_own = _larger(out_weight, count, room), _larger(out_own, count, room)
        for k in range(held):
            # few, so that each finds its place by going down
            at = count + k
            while at > count and out_treelet[at - 1] > rows[k]:
                out_treelet[at], out_weight[at], out_own[at] = out_treelet[at - 1], out_weight[at - 1], out_own[at - 1]
                at -= 1
            out_ray[count + k], out_treelet[at], out_own[at] = q, rows[k], sums[k, 0]
            largest = sums[k, 0]
            for c in range(1, shifts):
                largest = max(largest, sums[k, c])
            out_weight[at] = largest
        count += held
    return out_ray[:count], out_treelet[:count], out_weight[:count], out_own[:count], crossed
