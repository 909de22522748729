"""Front-to-back compositing of packed samples in plain torch: one sample of every ray at a time."""

import torch
from torch import Tensor

from infnerf_tiles.kernels.reference.packed import as_offsets


def composite(
    ray_start: Tensor,
    sigma: Tensor,
    colour: Tensor,
    t: Tensor,
    dt: Tensor,
    *,
    stop: float,
    ray_count: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite packed samples; an ordinary differentiable torch function.

    Args:
        ray_start: int64 [Q+1]. sigma: float [M], 1 / world unit. colour: float [M, 3]. t, dt: float [M].
        stop: a ray ends at its first sample with transmittance below this.
        ray_count: int32 [Q], for buffers as `march_packed` fills them: `ray_start` then is int64 [Q], and rows behind
            the last ray's weigh nothing.

    Returns:
        colour [Q, 3] (premultiplied), transmittance [Q], depth [Q] (sum of w t) and weights [M], formats as `sigma`.
    """
    offsets = as_offsets(ray_start, ray_count)
    num, m = offsets.shape[0] - 1, int(offsets[-1])
    rgb, transmittance, depth, weights = _carry(
        offsets, sigma[:m], colour[:m], t[:m], dt[:m], stop,
        sigma.new_zeros((num, 3)), sigma.new_ones(num), sigma.new_zeros(num),
    )  # fmt: skip
    return rgb, transmittance, depth, torch.cat([weights, weights.new_zeros(sigma.shape[0] - m)])


def composite_into(
    ray_start: Tensor,
    sigma: Tensor,
    colour: Tensor,
    t: Tensor,
    dt: Tensor,
    stop: float,
    *,
    colour_out: Tensor,
    transmittance_out: Tensor,
    depth_out: Tensor,
    weights_out: Tensor,
    ray_count: Tensor | None = None,
) -> None:
    """Carry (C, T, depth) of each ray forward through its samples, in place; no gradient. `ray_count` as above.

    Going on from a carried state is bit-equal to compositing all samples in one call.
    """
    offsets = as_offsets(ray_start, ray_count)
    m = int(offsets[-1])
    outs = (colour_out, transmittance_out, depth_out, weights_out[:m])
    with torch.no_grad():
        results = _carry(
            offsets, sigma[:m], colour[:m], t[:m], dt[:m], stop, colour_out, transmittance_out, depth_out
        )  # fmt: skip
        for out, result in zip(outs, results, strict=True):
            out.copy_(result)


def _carry(
    ray_start: Tensor,
    sigma: Tensor,
    colour: Tensor,
    t: Tensor,
    dt: Tensor,
    stop: float,
    ray_colour: Tensor,
    transmittance: Tensor,
    depth: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    begin, length = ray_start[:-1], ray_start.diff()
    longest = int(length.max()) if length.numel() else 0
    if not longest:
        return ray_colour, transmittance, depth, torch.zeros_like(sigma)
    alpha = -torch.expm1(-sigma * dt)
    ranked = []
    # sample by sample, not by scans: scans add in another order on every device, and then carrying on would show
    for rank in range(longest):
        sample = (begin + rank).clamp(max=sigma.shape[0] - 1)
        live = (rank < length) & (transmittance.double() >= stop)
        opacity = torch.where(live, alpha[sample], 0.0)
        weight = transmittance * opacity
        ranked.append(weight)
        ray_colour = ray_colour + weight[:, None] * torch.where(live[:, None], colour[sample], 0.0)
        depth = depth + weight * t[sample]
        transmittance = transmittance * (1.0 - opacity)
    ray = torch.repeat_interleave(length)
    rank_in_ray = torch.arange(sigma.shape[0], device=sigma.device) - begin[ray]
    return ray_colour, transmittance, depth, torch.stack(ranked)[rank_in_ray, ray]
