"""The decoder with its gradient by hand: all layers for some samples at a time, see `layers`.

What a block of samples gives does not depend on who computes it, and sums over blocks are taken in their order.
"""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.kernels.cpu.layers import BASIS, BLOCK, ROWS, Widths, backward_kernel, density_kernel, forward_kernel
from infnerf_tiles.kernels.cpu.products import has_pairs
from infnerf_tiles.kernels.decoder_weights import DecoderWeights

_ALLOCATION = 24 << 20
"""Bytes that are kept for the gradient in one piece: what is larger than 32 MB, the C library gives back to the system
each time it is freed, and its pages cost as much as the layers do (see `hold_freed_memory`)."""

_Constants = tuple[float, float, float, float]


def _by_block(kernel: Callable[..., None], num: int, *arguments: object) -> None:
    """Let as many threads as the kernels use take the blocks of `num` samples, this one among them."""
    counter = np.zeros(1, np.int64)
    threads = min(numba.get_num_threads(), -(-num // BLOCK))
    others = []
    if threads > 1:
        pool = _pool(numba.get_num_threads(), os.getpid())
        others = [pool.submit(kernel, *arguments, counter) for _ in range(threads - 1)]
    kernel(*arguments, counter)
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; one that was forked off has none of them."""
    return ThreadPoolExecutor(threads, "decode")


def _spans(num: int, widths: Widths) -> list[slice]:
    """The samples in parts that keep `_ALLOCATION` bytes."""
    step = max(1, _ALLOCATION // (4 * widths.kept * (BLOCK // ROWS))) * BLOCK
    return [slice(first, min(first + step, num)) for first in range(0, num, step)]


def _shaded(
    features: Tensor,
    ray: Tensor,
    basis: Tensor,
    layers: list[Tensor],
    widths: Widths,
    constants: _Constants,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Density, colour, exponent and, to `keep`, what the layers hand on; no gradient."""
    num, scale = features.shape[0], [np.float32(value) for value in constants[:2]]
    exponent, colour = torch.empty(num), torch.empty((num, 3))
    towards = basis.contiguous()
    if widths.pairs:
        towards = towards.bfloat16().view(torch.int32)
    weights, biases = _factors([w.t() for w in layers[::2]], widths), torch.cat(layers[1::2])
    kind = torch.int32 if widths.pairs else torch.float32
    kept = []
    for part in _spans(num, widths) if keep else [slice(0, num)]:
        here = part.stop - part.start
        kept.append(torch.empty((-(-here // ROWS) if keep else 0, widths.kept), dtype=kind))
        _by_block(
            forward_kernel(widths), here, features[part].numpy(), ray[part].contiguous().numpy(), towards.numpy(),
            weights, biases.numpy(), *scale, kept[-1].numpy(), exponent[part].numpy(), colour[part].numpy(),
        )  # fmt: skip
    # torch's own sigmoid differs in the last bit where an array or a thread's part of it ends
    colour.neg_().exp_().add_(1.0).reciprocal_()
    return _density(exponent, constants), colour, exponent, kept


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
        features = features.detach().contiguous()
        widths, layers = _filled(list(parameters), dtype)
        sigma, colour, exponent, kept = _shaded(features, ray, basis, layers, widths, constants, keep=True)
        ctx.save_for_backward(features, exponent, sigma, colour, *layers[::2], *kept)
        ctx.constants, ctx.widths, ctx.learn = constants, widths, any(ctx.needs_input_grad[5:])
        ctx.shapes = [p.shape for p in parameters]
        return sigma, colour

    @staticmethod
    def backward(ctx: Any, grad_sigma: Tensor, grad_colour: Tensor) -> tuple[Tensor | None, ...]:
        features, exponent, sigma, colour, w1, w2, w3, w4, w5, *kept = ctx.saved_tensors
        gain, _, highest, _ = ctx.constants
        widths, grad = ctx.widths, torch.empty_like(features)
        weights = _factors([w1, w2, w3, w4, w5], widths)
        given = (features, exponent, sigma, colour, grad_sigma.contiguous(), grad_colour.contiguous(), grad)
        total = np.zeros(sum(math.prod(shape) for shape in widths.shapes), np.float32)
        for part, values in zip(_spans(len(features), widths), kept, strict=True):
            x, h, s, c, grad_s, grad_c, out = (value[part].numpy() for value in given)
            learned = np.zeros((-(-len(x) // BLOCK) if ctx.learn else 0, len(total)), np.float32)
            _by_block(
                backward_kernel(widths), len(x), x, values.numpy(), weights, h, s, c, np.float32(gain),
                np.float32(highest), grad_s, grad_c, out, learned,
            )  # fmt: skip
            for block in learned:
                total += block
        if not ctx.learn:
            return grad, *([None] * 14)
        return grad, None, None, None, None, *_unfilled(torch.from_numpy(total), widths, ctx.shapes)


def _factors(weights: list[Tensor], widths: Widths) -> AnyArray:
    """Right factors of products [terms, columns], one after the other; two rows become one of pairs."""
    if not widths.pairs:
        return torch.cat([w.reshape(-1) for w in weights]).numpy()
    pairs = [w.reshape(w.shape[0] // 2, 2, w.shape[1]).transpose(1, 2).reshape(-1) for w in weights]
    return torch.cat(pairs).bfloat16().view(torch.int32).numpy()


def _filled(parameters: list[Tensor], dtype: torch.dtype) -> tuple[Widths, list[Tensor]]:
    """Weights and biases with zeros where there are more channels; the colour half does not see h_0."""
    w1, w2 = parameters[0], parameters[2]
    pairs = dtype == torch.bfloat16 and has_pairs()
    widths = Widths.of(features=w1.shape[1], hidden=w1.shape[0], geometry=w2.shape[0], pairs=pairs)
    filled = []
    for k, (given, shape) in enumerate(zip(parameters, widths.shapes, strict=True)):
        value = given.detach().float()
        if k == 4:
            geometry, towards = value[:, :-BASIS], value[:, -BASIS:]
            value = torch.cat([functional.pad(geometry, (1, widths.geometry - w2.shape[0])), towards], dim=1)
        more = [n for have, want in zip(value.shape, shape, strict=True) for n in (want - have, 0)]
        filled.append(functional.pad(value, more[::-1]) if any(more) else value.contiguous())
    return widths, filled


def _unfilled(gradients: Tensor, widths: Widths, shapes: list[torch.Size]) -> list[Tensor]:
    """Gradients without what `_filled` added."""
    found, first = [], 0
    for k, (full, shape) in enumerate(zip(widths.shapes, shapes, strict=True)):
        last = first + math.prod(full)
        value, first = gradients[first:last].reshape(full), last
        if k == 4:
            value = torch.cat([value[:, 1 : 1 + shape[1] - BASIS], value[:, -BASIS:]], dim=1)
        found.append(value[tuple(slice(n) for n in shape)])
    return found


def _density(exponent: Tensor, constants: _Constants) -> Tensor:
    _, _, highest, gsd = constants
    return exponent.clamp(max=highest).exp_().div_(gsd)


def decodes(parameters: list[Tensor]) -> bool:
    """Whether `decode` can take a decoder with these parameters."""
    if [p.ndim for p in parameters] != [2, 1] * 5:
        return False
    hidden, width = parameters[0].shape[0], parameters[2].shape[0]
    shapes = [(width, hidden), (hidden, width - 1 + BASIS), (hidden, hidden), (3, hidden)]
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
        dtype: format of the products' factors and of what the layers hand on: bfloat16 where it is asked for and the
            processor sums up products of its pairs, otherwise float32.
    """
    constants = (gain, bias, max_exponent, gsd_ref)
    n = int(count)
    unused = features.shape[0] - n
    used, rays = (features[:n], ray[:n]) if unused else (features, ray)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (features, *parameters)):
        sigma, colour = _Decode.apply(used, rays, basis, constants, dtype, *parameters)
    else:
        widths, layers = _filled(parameters, dtype)
        sigma, colour, _, _ = _shaded(used.detach().contiguous(), rays, basis, layers, widths, constants, keep=False)
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
    features = features.detach().contiguous()
    widths, (w1, b1, w2, b2, *_) = _filled(parameters, dtype)
    exponent = torch.empty(features.shape[0])
    _by_block(
        density_kernel(widths), features.shape[0], features.numpy(), _factors([w1.t(), w2[:4].t()], widths),
        torch.cat([b1, b2[:4]]).numpy(), np.float32(gain), np.float32(bias), exponent.numpy(),
    )  # fmt: skip
    return _density(exponent, (gain, bias, max_exponent, gsd_ref))


def decode_into(
    weights: DecoderWeights,
    features: Tensor,
    basis: Tensor,
    ray: Tensor,
    sigma_out: Tensor,
    colour_out: Tensor,
    *,
    count: Tensor | None = None,
) -> None:
    """Write density and colour of samples, products in float32; arguments as in the reference twin.

    A row's bits do not depend on the rows beside it.
    """
    n = features.shape[0] if count is None else int(count)
    widths, layers = _filled(weights.parameters, torch.float32)
    constants = (weights.gain, weights.density_bias, weights.max_exponent, weights.gsd_ref)
    used = features[:n].detach().float().contiguous()
    sigma, colour, _, _ = _shaded(used, ray[:n], basis.float(), layers, widths, constants, keep=False)
    sigma_out[:n], colour_out[:n] = sigma, colour
