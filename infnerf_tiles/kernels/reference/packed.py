"""Packed buffers of fixed capacity on the host: what the CUDA kernels fill without waiting for it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples, Rays, Samples
from infnerf_tiles.kernels.reference.march import march

MarchFn = Callable[..., Samples]


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
    """March the first `num_rays` rays into buffers of fixed capacity; no host ever waits for it on CUDA.

    Args:
        rays: the packet, Q rays; `out` has as many.
        num_rays: int32 [1] on the device, rays in use.
        out: filled. Rays are taken in order until the first whose samples do not fit.
        start, limit, keep, adapt: as in `march`.
    """
    pack_march(
        march, rays, arena, settings, num_rays=num_rays, out=out, start=start, limit=limit, keep=keep, adapt=adapt
    )  # fmt: skip


def pack_march(
    twin: MarchFn,
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    num_rays: Tensor,
    out: PackedSamples,
    start: Tensor | None,
    limit: int | None,
    keep: int | None,
    adapt: bool,
) -> None:
    """`march_packed` by a twin's `march`."""
    n = int(num_rays)
    used = replace(
        rays,
        origins=rays.origins[:n],
        directions=rays.directions[:n],
        footprint=rays.footprint[:n],
        offset=rays.offset[:n],
    )
    begin = None if start is None else start[:n]
    samples = twin(used, arena, settings, start=begin, limit=limit, keep=keep, adapt=adapt)
    ends = samples.ray_start[1:]
    kept = ends <= out.capacity
    m = int(samples.ray_start[int(kept.sum())])
    out.ray_start.fill_(m)
    out.ray_start[:n] = samples.ray_start[:-1].clamp(max=m)
    out.ray_count.zero_()
    out.ray_count[:n] = torch.where(kept, samples.ray_start.diff(), 0).int()
    out.ray_kept.zero_()
    out.ray_kept[:n] = kept.to(torch.uint8)
    out.next_step.fill_(-1)
    out.next_step[:n] = torch.where(kept, samples.next_step, 0 if begin is None else begin)
    out.count.fill_(m)
    out.demand.fill_(samples.count)
    for name in ("ray", "t", "dt", "wanted", "slot", "beta", "position", "blend", "slot_above", "position_above"):
        getattr(out, name)[:m] = getattr(samples, name)[:m]
    above = torch.nonzero(out.slot_above[:m] >= 0).squeeze(1)
    left_out = above[out.capacity_above :]
    above = above[: out.capacity_above]
    out.above_count.fill_(above.shape[0])
    out.above_sample[: above.shape[0]] = above.int()
    out.above_slot[: above.shape[0]] = out.slot_above[above]
    out.above_position[: above.shape[0]] = out.position_above[above]
    out.blend[left_out] = 1.0
    out.slot_above[left_out] = -1


def as_offsets(ray_start: Tensor, ray_count: Tensor | None) -> Tensor:
    """int64 [Q+1], first samples of the rays and the end of the last, of either form."""
    if ray_count is None:
        return ray_start
    if not ray_start.shape[0]:
        return ray_start.new_zeros(1)
    return torch.cat([ray_start, ray_start[-1:] + ray_count[-1:]])
