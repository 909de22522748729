"""The decoder in blocks of a fixed size, its gradient by hand: products in one number format, masks in place.

The matrix library compiles a product for each size that it meets, which takes longer than the product: blocks all have
one size, the last one is filled up with zeros. The density channel h_0 enters the colour half with a weight of zero, so
that rows keep their width. Threads take whole blocks: a product is too short to be shared out. What a block
gives does not depend on who computes it, and sums over blocks are taken in their order.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 4096
"""Rows: many, since each product has a price of its own, but not so many that filling up costs more."""
_BASIS = 16
_ALIGN = 8
"""Columns of a matrix come in multiples of this."""

_Constants = tuple[float, float, float, float]
_T = TypeVar("_T")


def _by_block(num: int, work: Callable[[int], _T]) -> list[_T]:
    """`work` of the first row of each block of `num` rows, without gradient, by as many threads as the kernels use."""

    def quietly(first: int) -> _T:
        with torch.no_grad():
            return work(first)

    firsts = range(0, num, _BLOCK)
    threads = min(numba.get_num_threads(), len(firsts))
    if threads < 2:
        return [quietly(first) for first in firsts]
    return list(_pool(numba.get_num_threads(), os.getpid()).map(quietly, firsts))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch computes alone; a process that was forked off has none of them."""
    return ThreadPoolExecutor(threads, "decode", initializer=lambda: torch.set_num_threads(1))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        ray: Tensor,
        basis: Tensor,
        constants: _Constants,
        dtype: torch.dtype,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num = features.shape[0]
        layers = _aligned([p.detach().to(dtype) for p in parameters])
        (w3, b3), (w4, b4), (w5, b5) = layers[2:]
        towards = basis.to(dtype)
        exponent, colour = torch.empty(num), torch.empty((num, 3))

        def forward(first: int) -> list[Tensor]:
            x, h1, h2 = _density_half(layers, features, first, dtype)
            rows = _filled(ray[first : first + _BLOCK])
            seen = torch.cat([h2, towards.index_select(0, rows)], dim=1)
            z1 = torch.addmm(b3, seen, w3.t()).relu_()
            z2 = torch.addmm(b4, z1, w4.t()).relu_()
            here = min(_BLOCK, num - first)
            colour[first : first + here] = torch.addmm(b5, z2, w5.t())[:here, :3]
            exponent[first : first + here] = h2[:here, 0]
            return [x, h1, seen, z1, z2]

        kept = [value for block in _by_block(num, forward) for value in block]
        colour.sigmoid_()
        sigma = _density(exponent, features, constants)
        ctx.save_for_backward(exponent, sigma, colour, *(w for w, _ in layers), *kept)
        ctx.constants, ctx.learn = constants, any(ctx.needs_input_grad[5:])
        return sigma, colour

    @staticmethod
    def backward(ctx: Any, grad_sigma: Tensor, grad_colour: Tensor) -> tuple[Tensor | None, ...]:
        exponent, sigma, colour, w1, w2, w3, w4, w5, *kept = ctx.saved_tensors
        gain, _, highest, _ = ctx.constants
        num, dtype, width = sigma.shape[0], w1.dtype, w2.shape[0]
        steep = (grad_sigma * sigma).masked_fill_(exponent > highest, 0.0)
        outer = (1.0 - colour).mul_(colour).mul_(grad_colour)
        grad = torch.empty((num, w1.shape[1]))
        w3_own = w3[:, :width].contiguous()

        def backward(first: int) -> list[Tensor]:
            here = min(_BLOCK, num - first)
            x, h1, seen, z1, z2 = kept[first // _BLOCK * 5 : first // _BLOCK * 5 + 5]
            d5 = torch.zeros((_BLOCK, w5.shape[0]), dtype=dtype)
            d5[:here, :3] = outer[first : first + here]
            d4 = _masked(d5 @ w5, z2)
            d3 = _masked(d4 @ w4, z1)
            d2 = d3 @ w3_own
            d2[:here, 0] = steep[first : first + here]
            d1 = _masked(d2 @ w2, h1)
            grad[first : first + here] = (d1 @ w1)[:here]
            if not ctx.learn:
                return []
            found = [d1.t() @ x, d1.sum(0), d2.t() @ h1, d2.sum(0), d3.t() @ seen, d3.sum(0)]
            return [*found, d4.t() @ z1, d4.sum(0), d5.t() @ z2, d5.sum(0)]

        sums: list[Tensor] = []
        for found in _by_block(num, backward):
            sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else [b.float() for b in found]
        grad[:, 0].add_(steep, alpha=gain)
        if not ctx.learn:
            return grad, *([None] * 14)
        if not sums:
            sums = [torch.zeros_like(p) for w in (w1, w2, w3, w4, w5) for p in (w.float(), w[:, 0].float())]
        sums[4] = sums[4][:, 1:]
        return grad, None, None, None, None, *sums[:8], sums[8][:3], sums[9][:3]


def _aligned(parameters: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each layer; the third takes h_0 too, the last has spare rows."""
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = parameters
    more = -w5.shape[0] % _ALIGN
    last = functional.pad(w5, (0, 0, 0, more)), functional.pad(b5, (0, more))
    return [(w1, b1), (w2, b2), (functional.pad(w3, (1, 0)), b3), (w4, b4), last]


def _filled(values: Tensor) -> Tensor:
    """Rows of a block, zeros behind them."""
    if values.shape[0] == _BLOCK:
        return values
    full = values.new_zeros((_BLOCK, *values.shape[1:]))
    full[: values.shape[0]] = values
    return full


def _density_half(
    layers: list[tuple[Tensor, Tensor]], features: Tensor, first: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, hidden and geometry values of a block of rows."""
    (w1, b1), (w2, b2) = layers[:2]
    x = _filled(features[first : first + _BLOCK]).to(dtype)
    h1 = torch.addmm(b1, x, w1.t()).relu_()
    return x, h1, torch.addmm(b2, h1, w2.t())


def _density(exponent: Tensor, features: Tensor, constants: _Constants) -> Tensor:
    """Density of h_0, which becomes the exponent in place."""
    gain, bias, highest, gsd = constants
    exponent.add_(features[:, 0], alpha=gain).sub_(bias)
    return exponent.clamp(max=highest).exp_().div_(gsd)


def _masked(gradient: Tensor, value: Tensor) -> Tensor:
    """The gradient in front of a rectifier, in place."""
    torch.ops.aten.threshold_backward.grad_input(gradient, value, 0.0, grad_input=gradient)
    return gradient


def decodes(parameters: list[Tensor]) -> bool:
    """Whether `decode` can take a decoder with these parameters."""
    if [p.ndim for p in parameters] != [2, 1] * 5:
        return False
    hidden, width = parameters[0].shape[0], parameters[2].shape[0]
    shapes = [(width, hidden), (hidden, width - 1 + _BASIS), (hidden, hidden), (3, hidden)]
    return [tuple(p.shape) for p in parameters[2::2]] == shapes


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
        dtype: format of the products' factors and of what the layers hand on, float32 or bfloat16.
    """
    constants = (gain, bias, max_exponent, gsd_ref)
    n = int(count)
    sigma, colour = _Decode.apply(features[:n], ray[:n], basis, constants, dtype, *parameters)  # type: ignore[no-untyped-call]
    unused = features.shape[0] - n
    if unused:
        sigma, colour = functional.pad(sigma, (0, unused)), functional.pad(colour, (0, 0, 0, unused))
    return sigma, colour


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
    with torch.no_grad():
        layers = [(parameters[k].to(dtype), parameters[k + 1].to(dtype)) for k in (0, 2)]
        exponent = torch.empty(features.shape[0])

        def density(first: int) -> None:
            here = exponent[first : first + _BLOCK]
            here.copy_(_density_half(layers, features, first, dtype)[2][: here.shape[0], 0])

        _by_block(features.shape[0], density)
        return _density(exponent, features, (gain, bias, max_exponent, gsd_ref))
