"""How far rays can be marched with some of an octree's nodes, and which node each of them lacks then."""

import math

import numpy as np
import torch
from numba import prange

from infnerf_tiles.arrays import Bool, Int32, Int64, check_shape
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.kernels.cpu.lattice import (
    FIXED_BITS,
    Packet,
    fixed,
    packet_of,
    place_at,
    ray_in,
    steps_inside,
    until,
    ways_of,
)
from infnerf_tiles.kernels.cpu.threads import parallel_region

END = np.iinfo(np.int64).max
"""Step behind the last one of every ray."""


@njit(cache=True, parallel=True)
def _reach(
    packet: Packet, children: Int32, held: Bool, dead: Bool, beyond: bool, ends: Int64, lacking: Int32, met: Bool
) -> None:
    for q in prange(packet.start.shape[0]):
        ends[q] = END
        lacking[q] = -1
        if packet.start[q] < 0:
            continue
        ray = ray_in(packet, q)
        ways = ways_of(ray)
        i = max(ray.first, packet.start[q])
        while i < ray.last:
            # as the march finds a step's place and node, to the last bit
            s = i + ray.offset
            t = ray.mid_near * math.exp(s * ray.log_q)
            x, y, z = place_at(ray, t)
            fx, fy, fz = fixed(x), fixed(y), fixed(z)
            wanted = ray.lambda_near - s * ray.log2_q
            row, level, region = 0, 0, FIXED_BITS
            whole = held[0]
            while level < wanted:
                bit = FIXED_BITS - 1 - level
                below = children[row, ((fx >> bit) & 1) + 2 * ((fy >> bit) & 1) + 4 * ((fz >> bit) & 1)]
                region = bit
                if below < 0 or dead[below]:
                    # the child's cube is where this node draws
                    break
                row = below
                level += 1
                whole = whole and held[row]
            if not whole and lacking[q] < 0:
                ends[q] = i
                lacking[q] = row
                if not beyond:
                    break
            met[row] = True
            i = min(i + 1 + steps_inside(ways, t, fx, fy, fz, region), until(ray, i, level))


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
    ends, lacking, met = np.empty(num, np.int64), np.empty(num, np.int32), np.zeros(nodes, np.bool_)
    with parallel_region():
        _reach(packet_of(rays, settings, start), children, held, dead, beyond, ends, lacking, met)
    return ends, lacking, met
