"""Loss terms of a batch of rays."""

from typing import Literal

import torch
from torch import Tensor


def colour_loss(kind: Literal["huber", "mse"], prediction: Tensor, target: Tensor, delta: float = 0.1) -> Tensor:
    """Mean over rays and channels. Huber is scaled by 1/delta so that large errors count like L1."""
    if kind == "mse":
        return torch.nn.functional.mse_loss(prediction, target)
    return torch.nn.functional.huber_loss(prediction, target, delta=delta) / delta


def _exclusive_segment_sum(values: Tensor, ray_start: Tensor, ray: Tensor) -> Tensor:
    """Sum of the values before each sample on its own ray: [M]. float64 inside, so that long packets stay exact."""
    total = torch.cumsum(values.double(), dim=0)
    before = torch.cat([total.new_zeros(1), total])
    return (before[:-1] - before[ray_start[ray]]).to(values.dtype)


def distortion_loss(weights: Tensor, position: Tensor, length: Tensor, ray_start: Tensor, ray: Tensor) -> Tensor:
    """Distortion of mip-NeRF 360 (Barron et al. 2022, Eq. 15) per ray, averaged over rays.

    Args:
        weights: float32 [M]. position: [M], middle of the sample in the metric of the loss (log t here).
        length: [M], its length in that metric. ray_start: int64 [Q+1]. ray: int64 [M].
    """
    num = max(1, ray_start.shape[0] - 1)
    # sum over pairs of w_i w_j |s_i - s_j| = 2 sum_i w_i (s_i W_<i - S_<i), samples being sorted along the ray
    weight_before = _exclusive_segment_sum(weights, ray_start, ray)
    moment_before = _exclusive_segment_sum(weights * position, ray_start, ray)
    between = 2.0 * (weights * (position * weight_before - moment_before)).sum()
    within = (weights**2 * length).sum() / 3.0
    return (between + within) / num


def transparency_loss(sigma: Tensor, gsd: Tensor) -> Tensor:
    """Mean |exp(-sigma GSD) - 1| over points: keeps density out of places that no photo asks for (InfNeRF)."""
    return (1.0 - torch.exp(-sigma * gsd)).mean()
