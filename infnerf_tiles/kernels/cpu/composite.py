"""Front-to-back compositing of packed samples, alpha = 1 - exp(-sigma dt), with an exact carry of (C, T, depth)."""

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from infnerf_tiles.arrays import Float32, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.cpu.threads import parallel_region
from infnerf_tiles.kernels.reference.packed import as_offsets


@njit(cache=True, parallel=True)
def _forward(
    ray_start: Int64,
    sigma: Float32,
    colour: Float32,
    t: Float32,
    dt: Float32,
    stop: float,
    out_colour: Float32,
    out_transmittance: Float32,
    out_depth: Float32,
    weights: Float32,
) -> None:
    for q in prange(ray_start.shape[0] - 1):
        trans = out_transmittance[q]
        r, g, b = out_colour[q, 0], out_colour[q, 1], out_colour[q, 2]
        depth = out_depth[q]
        for m in range(ray_start[q], ray_start[q + 1]):
            if trans < stop:
                weights[m] = np.float32(0.0)
                continue
            alpha = np.float32(-math.expm1(-sigma[m] * dt[m]))
            w = trans * alpha
            weights[m] = w
            r += w * colour[m, 0]
            g += w * colour[m, 1]
            b += w * colour[m, 2]
            depth += w * t[m]
            trans = trans * (np.float32(1.0) - alpha)
        out_colour[q, 0] = r
        out_colour[q, 1] = g
        out_colour[q, 2] = b
        out_transmittance[q] = trans
        out_depth[q] = depth


@njit(cache=True, parallel=True)
def _backward(
    ray_start: Int64,
    sigma: Float32,
    colour: Float32,
    t: Float32,
    dt: Float32,
    weights: Float32,
    stop: float,
    grad_colour: Float32,
    grad_transmittance: Float32,
    grad_depth: Float32,
    grad_weights: Float32,
    out_sigma: Float32,
    out_colour: Float32,
) -> None:
    for q in prange(ray_start.shape[0] - 1):
        gr, gg, gb = grad_colour[q, 0], grad_colour[q, 1], grad_colour[q, 2]
        gd = grad_depth[q]
        # out_sigma first holds T behind each sample (-1 where the ray had ended), then the gradient
        trans = np.float32(1.0)
        for m in range(ray_start[q], ray_start[q + 1]):
            if trans < stop:
                out_sigma[m] = np.float32(-1.0)
                continue
            trans = trans * (np.float32(1.0) - np.float32(-math.expm1(-sigma[m] * dt[m])))
            out_sigma[m] = trans
        # what lies behind the sample: sum over later samples of w * dL/dw, and the background's share
        behind = np.float32(grad_transmittance[q] * trans)
        for k in range(ray_start[q + 1] - ray_start[q]):
            m = ray_start[q + 1] - 1 - k
            w = weights[m]
            out_colour[m, 0] = w * gr
            out_colour[m, 1] = w * gg
            out_colour[m, 2] = w * gb
            after = out_sigma[m]
            if after < 0.0:
                out_sigma[m] = np.float32(0.0)
                continue
            value = gr * colour[m, 0] + gg * colour[m, 1] + gb * colour[m, 2] + gd * t[m] + grad_weights[m]
            out_sigma[m] = np.float32(dt[m] * (after * value - behind))
            behind += w * value


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ray_start: Tensor, sigma: Tensor, colour: Tensor, t: Tensor, dt: Tensor, stop: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num = ray_start.shape[0] - 1
        out_colour = torch.zeros((num, 3))
        out_trans = torch.ones(num)
        out_depth = torch.zeros(num)
        weights = torch.zeros(sigma.shape[0])
        composite_into(
            ray_start, sigma, colour, t, dt, stop,
            colour_out=out_colour, transmittance_out=out_trans, depth_out=out_depth, weights_out=weights,
        )  # fmt: skip
        ctx.save_for_backward(ray_start, sigma, colour, t, dt, weights)
        ctx.stop = stop
        return out_colour, out_trans, out_depth, weights

    @staticmethod
    def backward(
        ctx: Any, grad_colour: Tensor, grad_trans: Tensor, grad_depth: Tensor, grad_weights: Tensor
    ) -> tuple[None, Tensor, Tensor, None, None, None]:
        ray_start, sigma, colour, t, dt, weights = ctx.saved_tensors
        out_sigma = torch.zeros_like(sigma)
        out_colour = torch.zeros_like(colour)
        with parallel_region():
            _backward(
                ray_start.numpy(), sigma.numpy(), colour.numpy(), t.numpy(), dt.numpy(), weights.numpy(),
                ctx.stop, grad_colour.contiguous().numpy(), grad_trans.contiguous().numpy(),
                grad_depth.contiguous().numpy(), grad_weights.contiguous().numpy(),
                out_sigma.numpy(), out_colour.numpy(),
            )  # fmt: skip
        return None, out_sigma, out_colour, None, None, None


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
    """Composite packed samples; differentiable with respect to density and colour.

    Args:
        ray_start: int64 [Q+1]. sigma: float32 [M], 1 / world unit. colour: float32 [M, 3]. t, dt: float32 [M].
        stop: a ray ends at its first sample with transmittance below this.
        ray_count: int32 [Q], for buffers as `march_packed` fills them: `ray_start` then is int64 [Q], and rows behind
            the last ray's weigh nothing.

    Returns:
        colour [Q, 3] (premultiplied), transmittance [Q], depth [Q] (sum of w t) and weights [M].
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _Composite.apply(
        as_offsets(ray_start, ray_count), sigma.contiguous(), colour.contiguous(), t.contiguous(), dt.contiguous(), stop
    )
    return result


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
    with parallel_region():
        _forward(
            as_offsets(ray_start, ray_count).numpy(),
            sigma.detach().contiguous().numpy(), colour.detach().contiguous().numpy(),
            t.contiguous().numpy(), dt.contiguous().numpy(), stop,
            colour_out.numpy(), transmittance_out.numpy(), depth_out.numpy(), weights_out.numpy(),
        )  # fmt: skip
