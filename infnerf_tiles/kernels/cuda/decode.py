"""The decoder in one kernel each way, in Triton: what the layers hand on stays in registers.

Rows are features of samples; layers are `F -> H -> 1 + G`, then `1 + G and 16 -> H -> H -> 3`, with rectifiers between.
The density channel h_0 enters the colour half with a weight of zero, so that rows keep their width.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.cuda.launch import launch, programs_for

_BLOCK = 64
_WARPS = 4
_PER_PROCESSOR = 4
"""Programs per multiprocessor; each loops over blocks of rows, so that weights are read and summed up once."""
_BASIS = 16
_OUT = 16
"""Columns that the three colours are padded to: the least that matrix units take."""


@triton.jit
def _rectified(x):
    """max(x, 0), which keeps NaN, so that a loss tells of it."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _density(exponent, highest, gsd):
    return tl.exp(tl.minimum(exponent, highest, propagate_nan=tl.PropagateNan.ALL)) / gsd


@triton.jit
def _matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, rows, columns, stride, first, skip, DT: tl.constexpr):
    """[ROWS, COLUMNS] of a layer's transposed weight: element (k, j) is pointer[j * stride + first + k - skip].

    Zero outside skip <= k < rows + skip and j < columns.
    """
    k = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, COLUMNS)[None, :]
    inside = (k >= skip) & (k < rows + skip) & (j < columns)
    return tl.load(pointer + j * stride + first + k - skip, mask=inside, other=0.0).to(DT)


@triton.jit
def _vector(pointer, SIZE: tl.constexpr, size):
    k = tl.arange(0, SIZE)
    return tl.load(pointer + k, mask=k < size, other=0.0)


@triton.jit
def _store_matrix(pointer, value, ROWS: tl.constexpr, COLUMNS: tl.constexpr, rows, columns, stride, first, skip):
    """The reverse of `_matrix`."""
    k = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, COLUMNS)[None, :]
    inside = (k >= skip) & (k < rows + skip) & (j < columns)
    tl.store(pointer + j * stride + first + k - skip, value, mask=inside)


@triton.jit
def _layers(
    features, ray, basis, m, live, w1, b1, w2, b2, w3a, w3b, b3, w4, b4, w5, b5,
    F: tl.constexpr, FP: tl.constexpr, DT: tl.constexpr,
):  # fmt: skip
    """Inputs and hidden values of a block of rows."""
    k = tl.arange(0, FP)
    x = tl.load(features + m[:, None] * F + k[None, :], mask=live[:, None] & (k < F)[None, :], other=0.0).to(DT)
    h1 = _rectified(tl.dot(x, w1, input_precision="ieee") + b1[None, :]).to(DT)
    h2 = tl.dot(h1, w2, input_precision="ieee") + b2[None, :]
    q = tl.load(ray + m, mask=live, other=0)
    c = tl.arange(0, 16)
    toward = tl.load(basis + q[:, None] * 16 + c[None, :], mask=live[:, None], other=0.0).to(DT)
    z1 = tl.dot(h2.to(DT), w3a, input_precision="ieee") + tl.dot(toward, w3b, input_precision="ieee")
    z1 = _rectified(z1 + b3[None, :]).to(DT)
    z2 = _rectified(tl.dot(z1, w4, input_precision="ieee") + b4[None, :]).to(DT)
    rgb = tl.sigmoid(tl.dot(z2, w5, input_precision="ieee") + b5[None, :])
    return x, h1, h2, toward, z1, z2, rgb


@triton.jit
def _exponent(features, h2, m, live, gain, bias, F: tl.constexpr, G1: tl.constexpr):
    first = tl.arange(0, G1)[None, :] == 0
    f0 = tl.load(features + m * F, mask=live, other=0.0).to(tl.float32)
    return tl.sum(tl.where(first, h2, 0.0), 1) + gain * f0 - bias


@triton.jit
def _forward_kernel(
    features, ray, basis, count, p1, q1, p2, q2, p3, q3, p4, q4, p5, q5, sigma, colour,
    gain, bias, highest, gsd, F: tl.constexpr, FP: tl.constexpr, H: tl.constexpr, G1: tl.constexpr,
    DT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    w1, b1 = _matrix(p1, FP, H, F, H, F, 0, 0, DT), _vector(q1, H, H)
    w2, b2 = _matrix(p2, H, G1, H, G1, H, 0, 0, DT), _vector(q2, G1, G1)
    w3a = _matrix(p3, G1, H, G1 - 1, H, G1 + 15, 0, 1, DT)
    w3b, b3 = _matrix(p3, 16, H, 16, H, G1 + 15, G1 - 1, 0, DT), _vector(q3, H, H)
    w4, b4 = _matrix(p4, H, H, H, H, H, 0, 0, DT), _vector(q4, H, H)
    w5, b5 = _matrix(p5, H, 16, H, 3, H, 0, 0, DT), _vector(q5, 16, 3)
    num = tl.load(count)
    for block in range(tl.program_id(0), tl.cdiv(num, BLOCK), tl.num_programs(0)):
        m = block * BLOCK + tl.arange(0, BLOCK)
        live = m < num
        _x, _h1, h2, _toward, _z1, _z2, rgb = _layers(
            features, ray, basis, m, live, w1, b1, w2, b2, w3a, w3b, b3, w4, b4, w5, b5, F, FP, DT
        )
        e = _exponent(features, h2, m, live, gain, bias, F, G1)
        tl.store(sigma + m, _density(e, highest, gsd), mask=live)
        j = tl.arange(0, 16)[None, :]
        tl.store(colour + m[:, None] * 3 + j, rgb, mask=live[:, None] & (j < 3))


@triton.jit(do_not_specialize=["num"])
def _density_kernel(
    features, p1, q1, p2, q2, sigma, num, gain, bias, highest, gsd, F: tl.constexpr, FP: tl.constexpr, H: tl.constexpr,
    G1: tl.constexpr, DT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    w1, b1 = _matrix(p1, FP, H, F, H, F, 0, 0, DT), _vector(q1, H, H)
    w2, b2 = _matrix(p2, H, G1, H, G1, H, 0, 0, DT), _vector(q2, G1, G1)
    k = tl.arange(0, FP)
    for block in range(tl.program_id(0), tl.cdiv(num, BLOCK), tl.num_programs(0)):
        m = block * BLOCK + tl.arange(0, BLOCK)
        live = m < num
        row = m.to(tl.int64)
        x = tl.load(features + row[:, None] * F + k[None, :], mask=live[:, None] & (k < F)[None, :], other=0.0).to(DT)
        h1 = _rectified(tl.dot(x, w1, input_precision="ieee") + b1[None, :]).to(DT)
        h2 = tl.dot(h1, w2, input_precision="ieee") + b2[None, :]
        e = _exponent(features, h2, row, live, gain, bias, F, G1)
        tl.store(sigma + m, _density(e, highest, gsd), mask=live)


@triton.jit
def _backward_kernel(
    features, ray, basis, count, p1, q1, p2, q2, p3, q3, p4, q4, p5, q5, grad_sigma, grad_colour, grad_features, sums,
    length, gain, bias, highest, gsd, F: tl.constexpr, FP: tl.constexpr, H: tl.constexpr, G1: tl.constexpr,
    DT: tl.constexpr, LEARN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    w1, b1 = _matrix(p1, FP, H, F, H, F, 0, 0, DT), _vector(q1, H, H)
    w2, b2 = _matrix(p2, H, G1, H, G1, H, 0, 0, DT), _vector(q2, G1, G1)
    w3a = _matrix(p3, G1, H, G1 - 1, H, G1 + 15, 0, 1, DT)
    w3b, b3 = _matrix(p3, 16, H, 16, H, G1 + 15, G1 - 1, 0, DT), _vector(q3, H, H)
    w4, b4 = _matrix(p4, H, H, H, H, H, 0, 0, DT), _vector(q4, H, H)
    w5, b5 = _matrix(p5, H, 16, H, 3, H, 0, 0, DT), _vector(q5, 16, 3)
    sum1, some1 = tl.zeros([FP, H], dtype=tl.float32), tl.zeros([H], dtype=tl.float32)
    sum2, some2 = tl.zeros([H, G1], dtype=tl.float32), tl.zeros([G1], dtype=tl.float32)
    sum3a, sum3b = tl.zeros([G1, H], dtype=tl.float32), tl.zeros([16, H], dtype=tl.float32)
    some3 = tl.zeros([H], dtype=tl.float32)
    sum4, some4 = tl.zeros([H, H], dtype=tl.float32), tl.zeros([H], dtype=tl.float32)
    sum5, some5 = tl.zeros([H, 16], dtype=tl.float32), tl.zeros([16], dtype=tl.float32)
    num = tl.load(count)
    for block in range(tl.program_id(0), tl.cdiv(num, BLOCK), tl.num_programs(0)):
        m = block * BLOCK + tl.arange(0, BLOCK)
        live = m < num
        x, h1, h2, toward, z1, z2, rgb = _layers(
            features, ray, basis, m, live, w1, b1, w2, b2, w3a, w3b, b3, w4, b4, w5, b5, F, FP, DT
        )
        e = _exponent(features, h2, m, live, gain, bias, F, G1)
        j = tl.arange(0, 16)[None, :]
        out = tl.load(grad_colour + m[:, None] * 3 + j, mask=live[:, None] & (j < 3), other=0.0)
        out = (out * rgb * (1.0 - rgb)).to(DT)
        steep = tl.load(grad_sigma + m, mask=live, other=0.0) * _density(e, highest, gsd)
        steep = tl.where(e <= highest, steep, 0.0)
        d4 = tl.where(z2 > 0.0, tl.dot(out, tl.trans(w5), input_precision="ieee"), 0.0).to(DT)
        d3 = tl.where(z1 > 0.0, tl.dot(d4, tl.trans(w4), input_precision="ieee"), 0.0).to(DT)
        d2 = tl.dot(d3, tl.trans(w3a), input_precision="ieee")
        d2 = (d2 + tl.where(tl.arange(0, G1)[None, :] == 0, steep[:, None], 0.0)).to(DT)
        d1 = tl.where(h1 > 0.0, tl.dot(d2, tl.trans(w2), input_precision="ieee"), 0.0).to(DT)
        d0 = tl.dot(d1, tl.trans(w1), input_precision="ieee")
        k = tl.arange(0, FP)[None, :]
        d0 += tl.where(k == 0, gain * steep[:, None], 0.0)
        tl.store(grad_features + m[:, None] * F + k, d0, mask=live[:, None] & (k < F))
        if LEARN:
            sum5 += tl.dot(tl.trans(z2), out, input_precision="ieee")
            some5 += tl.sum(out.to(tl.float32), 0)
            sum4 += tl.dot(tl.trans(z1), d4, input_precision="ieee")
            some4 += tl.sum(d4.to(tl.float32), 0)
            sum3a += tl.dot(tl.trans(h2.to(DT)), d3, input_precision="ieee")
            sum3b += tl.dot(tl.trans(toward), d3, input_precision="ieee")
            some3 += tl.sum(d3.to(tl.float32), 0)
            sum2 += tl.dot(tl.trans(h1), d2, input_precision="ieee")
            some2 += tl.sum(d2.to(tl.float32), 0)
            sum1 += tl.dot(tl.trans(x), d1, input_precision="ieee")
            some1 += tl.sum(d1.to(tl.float32), 0)
    if LEARN:
        # in the order of the parameters: weights [out, in] and bias of each layer
        at = sums + tl.program_id(0) * length
        h, g = tl.arange(0, H), tl.arange(0, G1)
        _store_matrix(at, sum1, FP, H, F, H, F, 0, 0)
        at += H * F
        tl.store(at + h, some1)
        at += H
        _store_matrix(at, sum2, H, G1, H, G1, H, 0, 0)
        at += G1 * H
        tl.store(at + g, some2)
        at += G1
        _store_matrix(at, sum3a, G1, H, G1 - 1, H, G1 + 15, 0, 1)
        _store_matrix(at, sum3b, 16, H, 16, H, G1 + 15, G1 - 1, 0)
        at += H * (G1 + 15)
        tl.store(at + h, some3)
        at += H
        _store_matrix(at, sum4, H, H, H, H, H, 0, 0)
        at += H * H
        tl.store(at + h, some4)
        at += H
        _store_matrix(at, sum5, H, 16, H, 3, H, 0, 0)
        at += 3 * H
        c = tl.arange(0, 16)
        tl.store(at + c, some5, mask=c < 3)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        ray: Tensor,
        basis: Tensor,
        count: Tensor,
        constants: tuple[float, float, float, float],
        dtype: torch.dtype,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num = features.shape[0]
        # rows that are not in use are zero
        sigma = torch.zeros(num, device=features.device)
        colour = torch.zeros((num, 3), device=features.device)
        launch(
            _forward_kernel, _programs(features), features, ray, basis, count, *parameters, sigma, colour, *constants,
            **_sizes(features, parameters, dtype), BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(features, ray, basis, count, *parameters)
        ctx.constants, ctx.dtype = constants, dtype
        ctx.learn = any(p.requires_grad for p in parameters)
        return sigma, colour

    @staticmethod
    def backward(ctx: Any, grad_sigma: Tensor, grad_colour: Tensor) -> tuple[Tensor | None, ...]:
        features, ray, basis, count, *parameters = ctx.saved_tensors
        grad_features = torch.zeros_like(features)
        lengths = [p.numel() for p in parameters]
        length, programs = sum(lengths), _programs(features)
        sums = torch.empty((programs if ctx.learn else 1, length), device=features.device)
        launch(
            _backward_kernel, programs, features, ray, basis, count, *parameters, grad_sigma.contiguous(),
            grad_colour.contiguous(), grad_features, sums, length, *ctx.constants,
            **_sizes(features, parameters, ctx.dtype), LEARN=ctx.learn, BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        if not ctx.learn:
            return grad_features, *([None] * (5 + len(parameters)))
        parts = torch.split(sums.sum(dim=0), lengths)
        return grad_features, *([None] * 5), *(g.view(p.shape) for g, p in zip(parts, parameters, strict=True))


def _programs(features: Tensor) -> int:
    return max(1, min(programs_for(features.shape[0], _BLOCK), _PER_PROCESSOR * _processors(features.device)))


def _sizes(features: Tensor, parameters: Any, dtype: torch.dtype) -> dict[str, Any]:
    width = features.shape[1]
    return {
        "F": width, "FP": max(16, width), "H": parameters[0].shape[0], "G1": parameters[2].shape[0],
        "DT": {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype],
    }  # fmt: skip


def decodes(parameters: list[Tensor]) -> bool:
    """Whether `decode` can take a decoder with these parameters: sizes are powers of two that matrix units take."""
    if [p.ndim for p in parameters] != [2, 1] * 5:
        return False
    hidden, features = parameters[0].shape
    width = parameters[2].shape[0]
    shapes = [(width, hidden), (hidden, width - 1 + _BASIS), (hidden, hidden), (3, hidden)]
    powers = all(n >= 16 and n & (n - 1) == 0 for n in (hidden, width))
    small = features & (features - 1) == 0 and hidden <= 64 and width <= 64 and features <= 32
    return powers and small and [tuple(p.shape) for p in parameters[2::2]] == shapes


def decode(
    features: Tensor,
    ray: Tensor,
    basis: Tensor,
    parameters: list[Tensor],
    *,
    count: Tensor,
    gain: float,
    bias: float,
    max_exponent: float,
    gsd_ref: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Density float32 [M] = exp(min(h_0 + gain f_0 - bias, max_exponent)) / gsd_ref and colour float32 [M, 3].

    Args:
        features: float32 [M, F]. ray: int32 [M]. basis: float32 [Q, 16], direction basis of each ray.
        parameters: float32 weight [out, in] and bias [out] of the five layers. See `decodes`.
        count: int32 [1], rows in use; the others come out as zero.
        dtype: format of the products' factors, float32, bfloat16 or float16; sums are float32.
    """
    result: tuple[Tensor, Tensor] = _Decode.apply(
        features, ray, basis, count, (gain, bias, max_exponent, gsd_ref), dtype, *parameters
    )
    return result


def decode_density(
    features: Tensor,
    parameters: list[Tensor],
    *,
    gain: float,
    bias: float,
    max_exponent: float,
    gsd_ref: float,
    dtype: torch.dtype,
) -> Tensor:
    """Density float32 [M] alone, no gradient; arguments as in `decode`."""
    features = features.detach().contiguous()
    sigma = torch.empty(features.shape[0], device=features.device)
    launch(
        _density_kernel, _programs(features) if len(features) else 0, features,
        *(p.detach() for p in parameters[:4]), sigma, features.shape[0], gain, bias, max_exponent, gsd_ref,
        **_sizes(features, parameters, dtype), BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return sigma
