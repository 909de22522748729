"""Which samples a ray still reaches: what lies behind opaque matter is dropped before the expensive pass."""

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from infnerf_tiles.arrays import Float32, Int32, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.kernels.cpu.threads import parallel_region


@njit(cache=True, parallel=True)
def _reached(ray_start: Int64, sigma: Float32, dt: Float32, limit: float, counts: Int64) -> None:
    """How many samples of each ray lie in front of the limit, the one that passes it with them."""
    for q in prange(ray_start.shape[0] - 1):
        depth = 0.0
        m = ray_start[q]
        # written so that a depth that is not a number hides nothing: the loss must see it
        while m < ray_start[q + 1] and not depth > limit:
            depth += sigma[m] * dt[m]
            m += 1
        counts[q] = m - ray_start[q]


@njit(cache=True, parallel=True)
def _first_of_each(ray_start: Int64, kept_start: Int64, width: int, values: Int32, kept: Int32) -> None:
    """Copy the kept rows, which are the first ones of each ray, `width` values each."""
    for q in prange(kept_start.shape[0] - 1):
        of, to = ray_start[q] * width, kept_start[q] * width
        for k in range((kept_start[q + 1] - kept_start[q]) * width):
            kept[to + k] = values[of + k]


def keep_reached(samples: Samples, sigma: Tensor, stop: float) -> tuple[Samples, Tensor]:
    """The samples whose transmittance in front of them is at least `stop`, and their numbers int64 [M'].

    Args:
        sigma: float32 [M], density of each sample, 1 / world unit.
    """
    ray_start = samples.ray_start.numpy()
    counts = np.empty(len(ray_start) - 1, np.int64)
    with parallel_region():
        _reached(ray_start, sigma.contiguous().numpy(), samples.dt.numpy(), -math.log(stop), counts)
    kept_start = np.zeros(len(ray_start), np.int64)
    np.cumsum(counts, out=kept_start[1:])
    num = int(kept_start[-1])

    def kept(values: Tensor) -> Tensor:
        out = torch.empty((num, *values.shape[1:]), dtype=values.dtype)
        # all are of four bytes, so that one compiled kernel copies them all
        raw, copied = (x.contiguous().view(torch.int32).flatten().numpy() for x in (values, out))
        _first_of_each(ray_start, kept_start, math.prod(values.shape[1:]), raw, copied)
        return out

    with parallel_region():
        chosen = Samples(
            ray_start=torch.from_numpy(kept_start),
            ray=kept(samples.ray),
            t=kept(samples.t),
            dt=kept(samples.dt),
            wanted=kept(samples.wanted),
            slot=kept(samples.slot),
            beta=kept(samples.beta),
            position=kept(samples.position),
            blend=kept(samples.blend),
            slot_above=kept(samples.slot_above),
            position_above=kept(samples.position_above),
            next_step=samples.next_step,
        )
    index = np.arange(num) + np.repeat(ray_start[:-1] - kept_start[:-1], counts)
    return chosen, torch.from_numpy(index)
