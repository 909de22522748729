"""Loss terms of a batch of rays."""

from typing import Literal

import torch
from torch import Tensor


def colour_loss(
    kind: Literal["huber", "mse"], prediction: Tensor, target: Tensor, delta: float = 0.1, *, mask: Tensor | None = None
) -> Tensor:
    """Mean over rays and channels. Huber is scaled by 1/delta so that large errors count like L1.

    mask: float32 [Q], 1 for the rays that count in buffers of fixed size, 0 for the others.
    """
    how = "mean" if mask is None else "none"
    if kind == "mse":
        loss = torch.nn.functional.mse_loss(prediction, target, reduction=how)
    else:
        loss = torch.nn.functional.huber_loss(prediction, target, delta=delta, reduction=how) / delta
    return loss if mask is None else masked_mean(loss.mean(dim=1), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values float [Q] where the mask float [Q] is 1, not 0; 0 if that is nowhere."""
    # not a product: what is masked may be infinite
    return torch.where(mask > 0, values, 0.0).sum() / mask.sum().clamp(min=1.0)


def _exclusive_segment_sum(values: Tensor, ray_start: Tensor, ray: Tensor) -> Tensor:
    """Sum of the values before each sample on its own ray: [M]. float64 inside, so that long packets stay exact."""
    total = torch.cumsum(values.double(), dim=0)
    before = torch.cat([total.new_zeros(1), total])
    return (before[:-1] - before[ray_start[ray]]).to(values.dtype)


def distortion_loss(
    weights: Tensor,
    position: Tensor,
    length: Tensor,
    ray_start: Tensor,
    ray: Tensor,
    *,
    num_rays: Tensor | int | None = None,
) -> Tensor:
    """Distortion of mip-NeRF 360 (Barron et al. 2022, Eq. 15) per ray, averaged over rays.

    Args:
        weights: float32 [M]. position: [M], middle of the sample in the metric of the loss (log t here).
        length: [M], its length in that metric. ray_start: int64 [Q+1]. ray: int64 [M].
        num_rays: rays to average over, at least 1; None: Q. In buffers of fixed size, where samples behind the last ray
            weigh nothing, `ray_start` may be [Q].
    """
    num = max(1, ray_start.shape[0] - 1) if num_rays is None else num_rays
    # sum over pairs of w_i w_j |s_i - s_j| = 2 sum_i w_i (s_i W_<i - S_<i), samples being sorted along the ray
    weight_before = _exclusive_segment_sum(weights, ray_start, ray)
    moment_before = _exclusive_segment_sum(weights * position, ray_start, ray)
    between = 2.0 * (weights * (position * weight_before - moment_before)).sum()
    within = (weights**2 * length).sum() / 3.0
    return (between + within) / num


def transparency_loss(sigma: Tensor, gsd: Tensor) -> Tensor:
    """Mean |exp(-sigma GSD) - 1| over points: keeps density out of places that no photo asks for (InfNeRF)."""
    return (1.0 - torch.exp(-sigma * gsd)).mean()
