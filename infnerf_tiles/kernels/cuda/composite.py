"""Front-to-back compositing of packed samples in Triton, one lane per ray, sample after sample.

Not by scans: going on from a carried state then gives the same bits as one go.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.cuda.launch import launch, programs_for

__all__ = ["composite", "composite_into"]

_BLOCK = 32
_AHEAD = 4
"""Samples whose loads are under way at once."""


@triton.jit
def opacity(x):
    """1 - exp(-x), to float32 precision for small x too."""
    series = x * (1.0 - x * (0.5 - x * (0.16666667 - x * (0.041666668 - x * 0.008333334))))
    return tl.where(x < 0.1, series, 1.0 - tl.exp(-x))


@triton.jit(do_not_specialize=["num"])
def _forward_kernel(
    ray_start, ray_count, sigma, colour, t, dt, out_colour, out_transmittance, out_depth, weights, stop, num,
    PACKED: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = q < num
    begin = tl.load(ray_start + q, mask=live, other=0)
    if PACKED:
        length = tl.load(ray_count + q, mask=live, other=0).to(tl.int32)
    else:
        length = (tl.load(ray_start + q + 1, mask=live, other=0) - begin).to(tl.int32)
    trans = tl.load(out_transmittance + q, mask=live, other=0.0)
    r = tl.load(out_colour + q * 3, mask=live, other=0.0)
    g = tl.load(out_colour + q * 3 + 1, mask=live, other=0.0)
    b = tl.load(out_colour + q * 3 + 2, mask=live, other=0.0)
    depth = tl.load(out_depth + q, mask=live, other=0.0)
    for first in range(0, tl.max(length, 0), AHEAD):
        for k in tl.static_range(AHEAD):
            here = first + k < length
            m = begin + first + k
            x = tl.load(sigma + m, mask=here, other=0.0).to(tl.float32) * tl.load(dt + m, mask=here, other=0.0)
            cr = tl.load(colour + m * 3, mask=here, other=0.0).to(tl.float32)
            cg = tl.load(colour + m * 3 + 1, mask=here, other=0.0).to(tl.float32)
            cb = tl.load(colour + m * 3 + 2, mask=here, other=0.0).to(tl.float32)
            at = tl.load(t + m, mask=here, other=0.0)
            goes_on = here & (trans >= stop)
            alpha = tl.where(goes_on, opacity(x), 0.0)
            w = trans * alpha
            tl.store(weights + m, w, mask=here)
            # a colour behind the ray's end may be anything, even NaN
            r += tl.where(goes_on, w * cr, 0.0)
            g += tl.where(goes_on, w * cg, 0.0)
            b += tl.where(goes_on, w * cb, 0.0)
            depth += tl.where(goes_on, w * at, 0.0)
            trans = trans * (1.0 - alpha)
    tl.store(out_colour + q * 3, r, mask=live)
    tl.store(out_colour + q * 3 + 1, g, mask=live)
    tl.store(out_colour + q * 3 + 2, b, mask=live)
    tl.store(out_transmittance + q, trans, mask=live)
    tl.store(out_depth + q, depth, mask=live)


@triton.jit(do_not_specialize=["num"])
def _backward_kernel(
    ray_start, ray_count, sigma, colour, t, dt, weights, grad_colour, grad_transmittance, grad_depth, grad_weights,
    behind_sample, out_sigma, out_colour, stop, num,
    PACKED: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = q < num
    begin = tl.load(ray_start + q, mask=live, other=0)
    if PACKED:
        length = tl.load(ray_count + q, mask=live, other=0).to(tl.int32)
    else:
        length = (tl.load(ray_start + q + 1, mask=live, other=0) - begin).to(tl.int32)
    longest = tl.max(length, 0)
    gr = tl.load(grad_colour + q * 3, mask=live, other=0.0)
    gg = tl.load(grad_colour + q * 3 + 1, mask=live, other=0.0)
    gb = tl.load(grad_colour + q * 3 + 2, mask=live, other=0.0)
    gd = tl.load(grad_depth + q, mask=live, other=0.0)
    trans = tl.full([BLOCK], 1.0, dtype=tl.float32)
    # T behind each sample, -1 where the ray had ended
    for first in range(0, longest, AHEAD):
        for k in tl.static_range(AHEAD):
            here = first + k < length
            m = begin + first + k
            x = tl.load(sigma + m, mask=here, other=0.0).to(tl.float32) * tl.load(dt + m, mask=here, other=0.0)
            goes_on = here & (trans >= stop)
            trans = trans * (1.0 - tl.where(goes_on, opacity(x), 0.0))
            tl.store(behind_sample + m, tl.where(goes_on, trans, -1.0), mask=here)
    # a lane reads back only what it wrote itself
    tl.debug_barrier()
    behind = tl.load(grad_transmittance + q, mask=live, other=0.0) * trans
    for first in range(0, longest, AHEAD):
        for k in tl.static_range(AHEAD):
            rank = length - 1 - first - k
            here = rank >= 0
            m = begin + rank
            w = tl.load(weights + m, mask=here, other=0.0)
            after = tl.load(behind_sample + m, mask=here, other=-1.0)
            cr = tl.load(colour + m * 3, mask=here, other=0.0).to(tl.float32)
            cg = tl.load(colour + m * 3 + 1, mask=here, other=0.0).to(tl.float32)
            cb = tl.load(colour + m * 3 + 2, mask=here, other=0.0).to(tl.float32)
            at = tl.load(t + m, mask=here, other=0.0)
            length_here = tl.load(dt + m, mask=here, other=0.0)
            value = gr * cr + gg * cg + gb * cb + gd * at + tl.load(grad_weights + m, mask=here, other=0.0)
            drawn = after >= 0.0
            slope = tl.where(drawn, length_here * (after * value - behind), 0.0)
            behind += tl.where(drawn, w * value, 0.0)
            tl.store(out_sigma + m, slope.to(out_sigma.dtype.element_ty), mask=here)
            tl.store(out_colour + m * 3, (w * gr).to(out_colour.dtype.element_ty), mask=here)
            tl.store(out_colour + m * 3 + 1, (w * gg).to(out_colour.dtype.element_ty), mask=here)
            tl.store(out_colour + m * 3 + 2, (w * gb).to(out_colour.dtype.element_ty), mask=here)


def stop_at(stop: float) -> float:
    """The least float32 at or above `stop`: comparing T with it is comparing with `stop` itself."""
    rounded = np.float32(stop)
    return float(np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < stop else rounded)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ray_start: Tensor,
        ray_count: Tensor | None,
        sigma: Tensor,
        colour: Tensor,
        t: Tensor,
        dt: Tensor,
        stop: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num = ray_start.shape[0] - (ray_count is None)
        out_colour = torch.zeros((num, 3), device=sigma.device)
        out_trans = torch.ones(num, device=sigma.device)
        out_depth = torch.zeros(num, device=sigma.device)
        weights = torch.zeros(sigma.shape[0], device=sigma.device)
        composite_into(
            ray_start, sigma, colour, t, dt, stop, ray_count=ray_count,
            colour_out=out_colour, transmittance_out=out_trans, depth_out=out_depth, weights_out=weights,
        )  # fmt: skip
        ctx.save_for_backward(ray_start, ray_count, sigma, colour, t, dt, weights)
        ctx.stop = stop
        return out_colour, out_trans, out_depth, weights

    @staticmethod
    def backward(
        ctx: Any, grad_colour: Tensor, grad_trans: Tensor, grad_depth: Tensor, grad_weights: Tensor
    ) -> tuple[None, None, Tensor, Tensor, None, None, None]:
        ray_start, ray_count, sigma, colour, t, dt, weights = ctx.saved_tensors
        num = ray_start.shape[0] - (ray_count is None)
        # zeros: rows that belong to no ray have no gradient
        out_sigma, out_colour = torch.zeros_like(sigma), torch.zeros_like(colour)
        launch(
            _backward_kernel, programs_for(num, _BLOCK),
            ray_start, ray_start if ray_count is None else ray_count, sigma, colour, t, dt, weights,
            grad_colour.contiguous(), grad_trans.contiguous(), grad_depth.contiguous(), grad_weights.contiguous(),
            torch.empty_like(weights), out_sigma, out_colour, stop_at(ctx.stop), num,
            PACKED=ray_count is not None, AHEAD=_AHEAD, BLOCK=_BLOCK, num_warps=1,
        )  # fmt: skip
        return None, None, out_sigma, out_colour, None, None, None


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
        ray_start: int64 [Q+1]. sigma: float [M], 1 / world unit. colour: float [M, 3]. t, dt: float32 [M].
        stop: a ray ends at its first sample with transmittance below this.
        ray_count: int32 [Q], for buffers as `march_packed` fills them: `ray_start` then is int64 [Q], and rows behind
            the last ray's weigh nothing.

    Returns:
        colour [Q, 3] (premultiplied), transmittance [Q], depth [Q] (sum of w t) and weights [M], all float32.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _Composite.apply(
        ray_start, ray_count, sigma.contiguous(), colour.contiguous(), t.contiguous(), dt.contiguous(), stop
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
    num = ray_start.shape[0] - (ray_count is None)
    launch(
        _forward_kernel, programs_for(num, _BLOCK),
        ray_start, ray_start if ray_count is None else ray_count,
        sigma.detach().contiguous(), colour.detach().contiguous(), t.contiguous(), dt.contiguous(),
        colour_out, transmittance_out, depth_out, weights_out, stop_at(stop), num,
        PACKED=ray_count is not None, AHEAD=_AHEAD, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
