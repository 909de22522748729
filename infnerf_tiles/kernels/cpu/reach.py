"""How far rays can be marched with some of an octree's nodes, and which node each of them lacks then."""

import math

import numpy as np
import torch
from numba import njit, prange

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64, check_shape
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.kernels.cpu.march import _exit_distance, _step_range
from infnerf_tiles.kernels.cpu.threads import parallel_region

END = np.iinfo(np.int64).max
"""Step behind the last one of every ray."""


@njit(cache=True, parallel=True)
def _reach(
    origins: Float64,
    directions: Float64,
    footprint: Float64,
    offset: Float64,
    start: Int64,
    near: float,
    step: float,
    gsd_root: float,
    lod_bias: float,
    children: Int32,
    held: Bool,
    dead: Bool,
    beyond: bool,
    ends: Int64,
    lacking: Int32,
    met: Bool,
) -> None:
    below_one = 1.0 - 1e-12
    for q in prange(origins.shape[0]):
        ends[q] = END
        lacking[q] = -1
        if start[q] < 0:
            continue
        c = step * footprint[q]
        log_q = math.log1p(c)
        log2_q = log_q * 1.4426950408889634
        mid_near = near * (1.0 + 0.5 * c)
        lambda_near = math.log2(gsd_root / (mid_near * footprint[q])) + lod_bias
        ox, oy, oz = origins[q, 0], origins[q, 1], origins[q, 2]
        dx, dy, dz = directions[q, 0], directions[q, 1], directions[q, 2]
        first, last = _step_range(ox, oy, oz, dx, dy, dz, mid_near, offset[q], log_q)
        i = max(first, start[q])
        while i < last:
            # as the march finds a step's place and node, to the last bit
            s = i + offset[q]
            t = mid_near * math.exp(s * log_q)
            x = min(max(ox + t * dx, 0.0), below_one)
            y = min(max(oy + t * dy, 0.0), below_one)
            z = min(max(oz + t * dz, 0.0), below_one)
            wanted = lambda_near - s * log2_q
            row = 0
            lev = 0
            scale = 1.0
            whole = held[0]
            while lev < wanted:
                half = scale * 2.0
                child = (int(x * half) & 1) + 2 * (int(y * half) & 1) + 4 * (int(z * half) & 1)
                below = children[row, child]
                if below < 0 or dead[below]:
                    # the child's cube is where this node draws
                    scale = half
                    break
                row = below
                lev += 1
                scale = half
                whole = whole and held[row]
            if not whole and lacking[q] < 0:
                ends[q] = i
                lacking[q] = row
                if not beyond:
                    break
            met[row] = True
            size = 1.0 / scale
            leave = min(
                _exit_distance(ox, dx, math.floor(x * scale), size),
                min(
                    _exit_distance(oy, dy, math.floor(y * scale), size),
                    _exit_distance(oz, dz, math.floor(z * scale), size),
                ),
            )
            jump = i + 1
            if leave > t:
                jump = max(jump, int(min(math.log(leave / mid_near) / log_q - offset[q], float(last))))
            if lev > 0:
                jump = min(jump, max(i + 1, i + int((wanted - (lev - 1)) / log2_q)))
            i = jump


def reach(
    rays: Rays,
    settings: MarchSettings,
    *,
    start: torch.Tensor,
    children: Int32,
    held: Bool,
    dead: Bool,
    beyond: bool = False,
) -> tuple[Int64, Int32, Bool]:
    """Follow rays from step to step through an octree, as `march` would, as long as the nodes that draw are held.

    Args:
        rays: the packet, Q rays.
        settings: lattice and level-of-detail constants.
        start: int64 [Q], lattice step to start from; -1 leaves the ray out.
        children: int32 [n, 8], row of each node's child, -1 where there is none; row 0 is the root.
        held: bool [n], nodes that can be drawn with.
        dead: bool [n], nodes that count as missing.
        beyond: whether to go on to the end of the ray, for `met`.

    Returns:
        ends int64 [Q]: the first step whose node, or one above it, is not held; END if there is none. lacking int32
        [Q]: that step's node, -1 if there is none. met bool [n]: the finest nodes at the steps that were passed.
    """
    num, nodes = rays.origins.shape[0], held.shape[0]
    check_shape("children", children, (nodes, 8))
    packet = (rays.origins, rays.directions, rays.footprint, rays.offset, start)
    origins, directions, footprint, offset, begin = (np.ascontiguousarray(x.numpy()) for x in packet)
    ends, lacking, met = np.empty(num, np.int64), np.empty(num, np.int32), np.zeros(nodes, np.bool_)
    with parallel_region():
        _reach(
            origins, directions, footprint, offset, begin,
            settings.near, settings.step, settings.gsd_root, settings.lod_bias,
            children, held, dead, beyond, ends, lacking, met,
        )  # fmt: skip
    return ends, lacking, met
