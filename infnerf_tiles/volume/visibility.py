"""Which samples a ray still reaches: what lies behind opaque matter is dropped before the expensive pass."""

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from infnerf_tiles.arrays import Float32, Int64, UInt8
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.kernels.cpu.threads import parallel_region


@njit(cache=True, parallel=True)
def _reached(ray_start: Int64, sigma: Float32, dt: Float32, limit: float, mask: UInt8, counts: Int64) -> None:
    for q in prange(ray_start.shape[0] - 1):
        depth = 0.0
        n = 0
        for m in range(ray_start[q], ray_start[q + 1]):
            if depth > limit:
                mask[m] = 0
                continue
            mask[m] = 1
            n += 1
            depth += sigma[m] * dt[m]
        counts[q] = n


def keep_reached(samples: Samples, sigma: Tensor, stop: float) -> tuple[Samples, Tensor]:
    """The samples whose transmittance in front of them is at least `stop`, and their numbers int64 [M'].

    Args:
        sigma: float32 [M], density of each sample, 1 / world unit.
    """
    mask = np.empty(samples.count, np.uint8)
    counts = np.empty(samples.ray_start.shape[0] - 1, np.int64)
    with parallel_region():
        _reached(
            samples.ray_start.numpy(), sigma.contiguous().numpy(), samples.dt.numpy(), -math.log(stop), mask, counts
        )
    index = torch.from_numpy(np.flatnonzero(mask))
    ray_start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ray_start[1:])
    kept = Samples(
        ray_start=torch.from_numpy(ray_start),
        ray=samples.ray[index],
        t=samples.t[index],
        dt=samples.dt[index],
        wanted=samples.wanted[index],
        slot=samples.slot[index],
        beta=samples.beta[index],
        position=samples.position[index],
        blend=samples.blend[index],
        slot_above=samples.slot_above[index],
        position_above=samples.position_above[index],
        next_step=samples.next_step,
    )
    return kept, index
